//! The thread that looks over guest RAM for what need not be there: zero pages, and pages that others have too.
//!
//! It has a share of a CPU, goes where it finds something (`regions`), and uses next to none of it while it finds nothing
//! (`effort`). What it
//! finds zero goes back to the host at once; of the rest it tells the [`Merger`], where pages may be merged.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cpu_share::CpuShare;
use crate::ledger::MemberId;
use crate::pager::{Found, Pager, Scan};
use crate::ram::GuestRam;

use super::effort::{Effort, Seen};
use super::handle::SharingHandle;
use super::layout::Layout;
use super::mechanisms::Mechanisms;
use super::merger::Merger;
use super::regions::{ROUND_BEATS, Region, Regions, Yield};

/// How often one that has nothing to do looks whether it has.
const IDLE: Duration = Duration::from_secs(1);

/// How often one that is not wanted does: whoever wants it wakes it.
const UNWANTED: Duration = Duration::from_secs(3600);

/// How often one that unmerges pages looks for room.
const UNMERGING: Duration = Duration::from_millis(20);

/// CPU time used between two pauses: to wake up costs a tenth of a millisecond, of which a small share has few.
const LUMP: Duration = Duration::from_millis(2);

/// The longest pause between two looks whether something was written to that is merged.
const PAUSE_MOST: Duration = Duration::from_secs(1);

/// So many members of a pool have all the CPU time that is theirs; more share as much among them. Where many are packed, CPU
/// time is what their guests lack first.
const FULL_SHARES: usize = 5;

/// How often what was seen is acted upon.
const TEND: Duration = Duration::from_millis(250);

/// Why memory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum SharingError {
    /// A thread cannot be had.
    #[error("scanner: starting a thread: {0}")]
    Thread(std::io::Error),
}

/// What is shared, and at what price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharingConfig {
    /// The ways to begin with.
    pub mechanisms: Mechanisms,
    /// Scans also where nothing is short: the user asked for sharing.
    pub scans_always: bool,
    /// CPU time for the scanner, in percent of a core, at least 1.
    pub scan_cpu_percent: u32,
}

impl Default for SharingConfig {
    fn default() -> Self {
        Self { mechanisms: Mechanisms::default(), scans_always: false, scan_cpu_percent: 5 }
    }
}

/// A VM's place in the pool that it may merge pages with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPlace {
    /// The pool's folder.
    pub folder: PathBuf,
    /// Who it is there.
    pub id: MemberId,
}

/// Scans the RAM of one VM until it is dropped.
#[derive(Debug)]
pub struct Scanner {
    handle: Arc<SharingHandle>,
    thread: Option<JoinHandle<()>>,
}

impl Scanner {
    /// Starts the thread. `thread_id` tells a thread's kernel id, of which the pager is told.
    ///
    /// # Errors
    /// [`SharingError`].
    pub fn start(
        pager: &Arc<Pager>,
        ram: &GuestRam,
        config: SharingConfig,
        place: Option<PoolPlace>,
        thread_id: fn() -> i32,
    ) -> Result<Self, SharingError> {
        let handle = Arc::new(SharingHandle::new(config.mechanisms, config.scans_always));
        handle.update(|statistics| statistics.cpu_percent = config.scan_cpu_percent);
        let ranges: Vec<_> = ram.regions().iter().map(|region| region.gfns()).collect();
        let layout = Layout::new(&ranges);
        let mut body = Body {
            pager: Arc::clone(pager),
            scan: None,
            handle: Arc::clone(&handle),
            cpu_percent: config.scan_cpu_percent.max(1),
            place,
            regions: Regions::new(layout.clone()),
            layout,
            effort: Effort::default(),
            tended: None,
            merger: None,
        };
        let run = move || {
            body.pager.exempt_thread(thread_id());
            body.run();
        };
        let thread = thread::Builder::new().name("scanner".to_owned()).spawn(run).map_err(SharingError::Thread)?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// How others see and control it.
    pub fn handle(&self) -> Arc<SharingHandle> {
        Arc::clone(&self.handle)
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there leaves pages in flight, and what they wait for tells.
            drop(thread.join());
        }
    }
}

/// What the thread works with.
struct Body {
    pager: Arc<Pager>,
    /// From when it is first needed.
    scan: Option<Scan>,
    handle: Arc<SharingHandle>,
    cpu_percent: u32,
    place: Option<PoolPlace>,
    layout: Layout,
    regions: Regions,
    effort: Effort,
    /// When what was seen was acted upon last.
    tended: Option<Instant>,
    merger: Option<Merger>,
}

impl Body {
    fn run(&mut self) {
        let mut share = CpuShare::new(self.cpu_percent);
        while !self.handle.is_stopping() {
            let changes = self.handle.changes();
            let mechanisms = self.handle.mechanisms();
            self.pager.share_stored(mechanisms.store);
            self.settle_merging(mechanisms);
            let is_wanted = self.is_wanted(mechanisms);
            let is_scanning = is_wanted && self.is_ready();
            self.handle.update(|statistics| statistics.is_scanning = is_scanning);
            if !is_scanning {
                // Whenever it is, all may have changed.
                self.effort.wake();
                let is_unmerging = self.merger.is_some() && !mechanisms.ksm;
                let length = match is_wanted {
                    _ if is_unmerging => UNMERGING,
                    true => IDLE,
                    false => UNWANTED,
                };
                self.handle.rest(length, changes);
                continue;
            }
            share.use_part(self.effort.part(self.cpu_budget()) * self.pool_part());
            if let Some(pause) = share.pause_for(LUMP) {
                self.handle.rest(pause.min(PAUSE_MOST), changes);
            } else if let Some(region) = self.regions.next() {
                self.visit(&region, mechanisms);
            } else {
                break;
            }
            self.tend(mechanisms, &share);
        }
        self.account(&share);
    }

    /// The budget as a part of a core.
    fn cpu_budget(&self) -> f64 {
        f64::from(self.cpu_percent) / 100.0 * self.pool_part()
    }

    /// The part of its CPU time that its pool leaves it.
    fn pool_part(&self) -> f64 {
        pool_part(self.handle.live_members())
    }

    /// Whether there is a reason to scan.
    fn is_wanted(&self, mechanisms: Mechanisms) -> bool {
        let has_work = mechanisms.zero || mechanisms.ksm;
        let is_asked = has_work && self.handle.is_asked();
        self.pager.hold_armed(is_asked);
        is_asked || (has_work && self.handle.is_wanted())
    }

    /// Has everything that scanning needs: the VM's pages are the pager's. A user who asks for sharing asks for that too.
    fn is_ready(&mut self) -> bool {
        if !self.pager.usage().is_armed {
            if !self.handle.is_asked() {
                return false;
            }
            if let Err(error) = self.pager.arm() {
                self.note_failure(&error);
                return false;
            }
        }
        if self.scan.is_none() {
            self.scan = self.pager.scan().map(Scan::sparing).inspect_err(|error| self.note_failure(error)).ok();
        }
        self.scan.is_some()
    }

    /// Begins to merge where that is wanted now, or goes on to end it.
    fn settle_merging(&mut self, mechanisms: Mechanisms) {
        match (&mut self.merger, &self.place) {
            (None, Some(place)) if mechanisms.ksm => {
                if let Some(mergeable) = self.pager.mergeable() {
                    self.merger = Some(Merger::new(mergeable, self.layout.clone(), place, self.cpu_budget()));
                    self.effort.wake();
                }
            }
            (Some(merger), _) if !mechanisms.ksm => match merger.end(Instant::now()) {
                Ok(true) => {
                    self.merger = None;
                    self.handle.update(|statistics| statistics.merging = None);
                }
                Ok(false) => {
                    let merging = Some(merger.statistics());
                    self.handle.update(|statistics| statistics.merging = merging);
                }
                Err(error) => self.note_failure(&error),
            },
            (Some(merger), _) => merger.resume(),
            _ => {}
        }
    }

    fn visit(&mut self, region: &Region, mechanisms: Mechanisms) {
        let Some(scan) = &mut self.scan else { return };
        let seen = match self.merger.as_mut().filter(|_| mechanisms.ksm) {
            None => {
                let Found { scanned_pages, freed_pages } = scan.free_zeroes(region.gfns.clone());
                let seen =
                    Yield { scanned_pages: scanned_pages as u32, zero_pages: freed_pages as u32, ..Yield::default() };
                self.regions.note(region.number, seen);
                Seen { scanned_pages, found_pages: freed_pages, ..Seen::default() }
            }
            Some(merger) => match merger.visit(region, scan, mechanisms.zero, Instant::now()) {
                Ok(seen) => seen,
                Err(error) => {
                    self.note_failure(&error);
                    Seen::default()
                }
            },
        };
        self.effort.note(seen);
        self.handle.update(|statistics| {
            statistics.scanned_pages += seen.scanned_pages;
            statistics.freed_pages += seen.found_pages;
        });
    }

    /// Acts upon what was seen, if it is time to.
    fn tend(&mut self, mechanisms: Mechanisms, share: &CpuShare) {
        let now = Instant::now();
        if self.tended.is_some_and(|tended| now.duration_since(tended) < TEND) {
            return;
        }
        self.tended = Some(now);
        let cpu_budget = self.cpu_budget();
        if let Some(merger) = self.merger.as_mut().filter(|_| mechanisms.ksm) {
            if merger.has_broken() {
                self.effort.wake();
            }
            merger.set_cpu_budget(cpu_budget);
            match merger.tend(&self.handle.live(), now) {
                Ok(yields) => yields.into_iter().for_each(|(region, seen)| self.regions.note(region, seen)),
                Err(error) => self.note_failure(&error),
            }
        }
        self.account(share);
    }

    fn account(&self, share: &CpuShare) {
        let merging = self.merger.as_ref().map(Merger::statistics);
        self.handle.update(|statistics| {
            statistics.cpu_ns = share.used().as_nanos() as u64;
            statistics.rounds = self.regions.beat() / ROUND_BEATS;
            statistics.levels = self.regions.levels();
            statistics.merging = merging;
        });
    }

    fn note_failure(&self, error: &dyn std::error::Error) {
        self.handle.update(|statistics| {
            statistics.failures += 1;
            statistics.last_failure = Some(error.to_string());
        });
    }
}

/// The part of its CPU time that each of so many members has.
fn pool_part(members: usize) -> f64 {
    (FULL_SHARES as f64 / members.max(1) as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_members_use_as_much_as_a_few() {
        assert_eq!([0, 1, 5, 50].map(pool_part), [1.0, 1.0, 1.0, 0.1]);
    }
}
