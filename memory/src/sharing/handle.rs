//! A VM's sharing as others of its process see and control it.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::ksm::KsmProcess;
use super::mechanisms::Mechanisms;
use super::regions::LEVELS;
use super::sketch::{LiveMember, SketchStatistics};

/// What a scanner has done. Totals count up from its start.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SharingStatistics {
    /// The ways that are switched on.
    pub mechanisms: Mechanisms,
    /// Guest RAM is being scanned: the pool is short, or the user asked for it.
    pub is_scanning: bool,
    /// CPU time it may use, in percent of a core; less in a pool of many.
    pub cpu_percent: u32,
    /// CPU time it has used.
    pub cpu_ns: u64,
    /// Times it has been through all of guest RAM.
    pub rounds: u64,
    /// Pages looked at, in total.
    pub scanned_pages: u64,
    /// Zero pages given back, in total.
    pub freed_pages: u64,
    /// Regions of 2 MiB at each level, from those visited least to those visited most.
    pub levels: [u32; LEVELS],
    /// The merging of pages, while that is on.
    pub merging: Option<MergingStatistics>,
    /// Things that failed: the pool's folder, the kernel's advice. What was before stays.
    pub failures: u64,
    /// The last of them.
    pub last_failure: Option<String>,
}

/// What has become of merging. Pages as of now, unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct MergingStatistics {
    /// Pages whose content has not changed for two visits.
    pub stable_pages: u64,
    /// Of those, pages that have copies in the pool.
    pub duplicate_pages: u64,
    /// Pages that the kernel was told to merge, if it finds equal ones.
    pub advised_pages: u64,
    /// Of those, pages present that are not merged.
    pub waiting_pages: u64,
    /// Pages that are merged.
    pub merged_pages: u64,
    /// What they cost less than as many pages of their own.
    pub saved_bytes: u64,
    /// Merging is switched off, and what is still merged stays so until there is room for pages of their own.
    pub waits_for_room: bool,
    /// Merged pages that were written to, in total.
    pub broken_pages: u64,
    /// Regions given up after they had been advised, in total.
    pub given_up_regions: u64,
    /// Duplicates are spread so evenly that everything is advised.
    pub advises_all: bool,
    /// Exchanges with the other members.
    pub exchanges: u64,
    /// The last look at the other members' sketches.
    pub sketches: SketchStatistics,
    /// What the kernel says of this process.
    pub kernel: KsmProcess,
}

#[derive(Debug, Default)]
struct State {
    mechanisms: Mechanisms,
    is_asked: bool,
    is_wanted: bool,
    is_stopping: bool,
    /// How often somebody wanted something else.
    changes: u64,
    live: Vec<LiveMember>,
    statistics: SharingStatistics,
}

/// See the top of this file. Its lock is held for a copy only.
#[derive(Debug, Default)]
pub struct SharingHandle {
    state: Mutex<State>,
    changed: Condvar,
}

impl SharingHandle {
    pub(super) fn new(mechanisms: Mechanisms, is_asked: bool) -> Self {
        let handle = Self::default();
        handle.with(|state| (state.mechanisms, state.is_asked) = (mechanisms, is_asked));
        handle
    }

    /// Switches the ways of sharing, because the user asks for it. What was merged is unmerged as there is room for it.
    pub fn set_mechanisms(&self, mechanisms: Mechanisms) {
        self.change(|state| (state.mechanisms, state.is_asked) = (mechanisms, true));
    }

    /// The ways that are switched on.
    pub fn mechanisms(&self) -> Mechanisms {
        self.with(|state| state.mechanisms)
    }

    /// The pool could become short: it pays to scan before it is.
    pub fn set_wanted(&self, is_wanted: bool) {
        if self.with(|state| state.is_wanted) != is_wanted {
            self.change(|state| state.is_wanted = is_wanted);
        }
    }

    /// Who is in the pool.
    pub fn set_live(&self, live: Vec<LiveMember>) {
        self.with(|state| state.live = live);
    }

    /// What was done so far.
    pub fn statistics(&self) -> SharingStatistics {
        self.with(|state| SharingStatistics { mechanisms: state.mechanisms, ..state.statistics.clone() })
    }

    pub(super) fn live(&self) -> Vec<LiveMember> {
        self.with(|state| state.live.clone())
    }

    /// How many are in the pool, this one too; none while that is not known.
    pub(super) fn live_members(&self) -> usize {
        self.with(|state| state.live.len())
    }

    /// The user asked for sharing, whether anything is short or not.
    pub fn is_asked(&self) -> bool {
        self.with(|state| state.is_asked)
    }

    /// The pool could become short.
    pub fn is_wanted(&self) -> bool {
        self.with(|state| state.is_wanted)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.with(|state| state.is_stopping)
    }

    pub(super) fn stop(&self) {
        self.change(|state| state.is_stopping = true);
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut SharingStatistics)) {
        self.with(|state| change(&mut state.statistics));
    }

    /// How often somebody wanted something else, for [`Self::rest`]: to be asked before one looks what is wanted.
    pub(super) fn changes(&self) -> u64 {
        self.with(|state| state.changes)
    }

    /// Rests, until somebody wants something else than after so many changes.
    pub(super) fn rest(&self, length: Duration, changes: u64) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(state, length, |state| state.changes == changes));
    }

    fn change(&self, act: impl FnOnce(&mut State)) {
        self.with(|state| {
            act(state);
            state.changes += 1;
        });
        self.changed.notify_all();
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_before_a_rest_ends_it() {
        let handle = SharingHandle::new(Mechanisms::OFF, false);
        let changes = handle.changes();
        assert_eq!(handle.mechanisms(), Mechanisms::OFF);
        // Somebody wants something else, and who was about to rest for a day has not noticed.
        handle.set_mechanisms(Mechanisms::default());
        handle.rest(Duration::from_secs(86_400), changes);
        let changes = handle.changes();
        handle.set_wanted(false);
        handle.rest(Duration::from_millis(1), changes);
        assert_eq!(handle.changes(), changes, "that is no change");
        handle.stop();
        handle.rest(Duration::from_secs(86_400), changes);
    }
}
