//! The pool as its ledger shows it, once a second.

use std::time::Instant;

use cistern_memory::ledger::{Level, PoolView};

/// The pool at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSample {
    /// When.
    pub at: Instant,
    /// How short of memory it was.
    pub level: Option<Level>,
    /// What was left of the budget.
    pub free_bytes: Option<i64>,
}

/// What a guest worked with, and held, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peak {
    /// Of its memory, by estimate; what it holds where it was not sampled.
    pub active_bytes: u64,
    /// The estimate that follows slowly, at its highest.
    pub active_slow_bytes: u64,
    /// Written and not given back, to the balloon neither.
    pub touched_bytes: u64,
    /// The guest was sampled: there was need.
    pub is_sampled: bool,
}

/// What the ledger told.
#[derive(Debug, Clone, Default)]
pub struct PoolRecord {
    /// How it was.
    pub samples: Vec<PoolSample>,
    /// Of each guest, by number, what it had at most while it was measured.
    pub peaks: Vec<Peak>,
}

/// The name of a guest; guests count from 1.
pub fn name(number: usize) -> String {
    format!("g{number}")
}

impl PoolRecord {
    /// Takes a look at a pool; what guests worked with is of interest only while they are measured.
    pub fn take(&mut self, at: Instant, pool: &PoolView, is_measured: bool) {
        self.samples.push(PoolSample { at, level: pool.level, free_bytes: pool.free_bytes });
        for member in pool.members.iter().filter(|_| is_measured) {
            let number = member.identity.name.strip_prefix('g').and_then(|number| number.parse::<usize>().ok());
            let Some(index) = number.and_then(|number| number.checked_sub(1)) else { continue };
            if self.peaks.len() <= index {
                self.peaks.resize(index + 1, Peak::default());
            }
            let (peak, report) = (&mut self.peaks[index], &member.report);
            peak.touched_bytes = peak.touched_bytes.max(report.touched_bytes.saturating_sub(report.ballooned_bytes));
            // From its first sample on only estimates count.
            let is_sampled = report.active_slow_bytes.is_some();
            if is_sampled && !peak.is_sampled {
                (peak.active_bytes, peak.is_sampled) = (0, true);
            }
            if is_sampled == peak.is_sampled {
                peak.active_bytes = peak.active_bytes.max(report.active_bytes);
                peak.active_slow_bytes = peak.active_slow_bytes.max(report.active_slow_bytes.unwrap_or(0));
            }
        }
    }

    /// The worst level there was.
    pub fn worst_level(&self) -> Option<Level> {
        self.samples.iter().filter_map(|sample| sample.level).max()
    }
}
