//! A running member as others of its process see it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::activity::Estimate;
use crate::ledger::BalloonHealth;
use crate::policy::watermark::Level;
use crate::sharing::ksm::TunerState;

/// The balloon is the pool's.
const AUTO: u64 = u64::MAX;

/// What a member was told, and what it did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ManagerStatistics {
    /// How short of memory the pool is.
    pub level: Level,
    /// This member decides for the pool.
    pub leads: bool,
    /// Rounds it decided.
    pub rounds_led: u64,
    /// What it may use.
    pub grant_bytes: u64,
    /// What it uses, the process itself included.
    pub charge_bytes: u64,
    /// What of that is the process itself.
    pub own_bytes: u64,
    /// How far it may grow.
    pub grow_to_bytes: u64,
    /// What it is to give pages down to, if it is to.
    pub reclaim_to_bytes: Option<u64>,
    /// What the guest works with, if it is sampled.
    pub active: Option<Estimate>,
    /// Sampling periods that have ended.
    pub sample_periods: u64,
    /// Whether the balloon works.
    pub balloon: BalloonHealth,
    /// The balloon is held at a size that was asked for by hand.
    pub manual_balloon_bytes: Option<u64>,
    /// Host memory that inflating the balloon has freed.
    pub balloon_given_bytes: u64,
    /// What the guest has moved to and from its own swap while the balloon held something: what the balloon costs.
    pub balloon_cost_bytes: u64,
    /// Looks round that failed; the limits of before stayed in force.
    pub failures: u64,
    /// Orders were too old: the leader had stopped.
    pub stale_orders: u64,
    /// How this member drives the kernel's page merging, while it does.
    pub ksm_tuner: Option<TunerState>,
    /// Why it last could not, or could not put back what it found.
    pub ksm_failure: Option<String>,
    /// What was done at each level, from the best to the worst.
    pub levels: [LevelStatistics; 5],
}

/// What a member did while its pool was at one level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LevelStatistics {
    /// Times it was entered.
    pub entered: u64,
    /// Time spent there.
    pub time_ns: u64,
    /// Pages that found a home outside guest RAM.
    pub evicted_pages: u64,
    /// Pages written to the swap file.
    pub written_pages: u64,
    /// Host memory that inflating the balloon has freed.
    pub balloon_given_bytes: u64,
    /// Looks at which the guest waited for room.
    pub waits_seen: u64,
}

/// Totals at the last look.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub evicted_pages: u64,
    pub written_pages: u64,
    pub balloon_given_bytes: u64,
}

/// See the top of this file.
#[derive(Debug)]
pub struct ManagerHandle {
    // Alone: the next look round takes it.
    manual_balloon_bytes: AtomicU64,
    /// Held for a copy only.
    statistics: Mutex<ManagerStatistics>,
}

impl Default for ManagerHandle {
    fn default() -> Self {
        Self { manual_balloon_bytes: AtomicU64::new(AUTO), statistics: Mutex::default() }
    }
}

impl ManagerHandle {
    /// Holds the balloon at a size, whatever the pool wants; `None` gives it back to the pool.
    pub fn set_manual_balloon(&self, bytes: Option<u64>) {
        self.manual_balloon_bytes.store(bytes.unwrap_or(AUTO), Ordering::Relaxed);
    }

    pub(super) fn manual_balloon_bytes(&self) -> Option<u64> {
        Some(self.manual_balloon_bytes.load(Ordering::Relaxed)).filter(|&bytes| bytes != AUTO)
    }

    /// What the member was last told, and what it did so far.
    pub fn statistics(&self) -> ManagerStatistics {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut ManagerStatistics)) {
        change(&mut self.statistics.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl ManagerStatistics {
    /// Counts what was done since the last look to the level that it was done at, and enters another.
    pub(super) fn count(&mut self, level: Level, passed: Duration, before: Totals, now: Totals, waits: bool) {
        let counters = &mut self.levels[self.level as usize];
        counters.time_ns += passed.as_nanos() as u64;
        counters.evicted_pages += now.evicted_pages.saturating_sub(before.evicted_pages);
        counters.written_pages += now.written_pages.saturating_sub(before.written_pages);
        counters.balloon_given_bytes += now.balloon_given_bytes.saturating_sub(before.balloon_given_bytes);
        counters.waits_seen += u64::from(waits);
        if level != self.level {
            self.level = level;
            self.levels[level as usize].entered += 1;
        }
    }
}
