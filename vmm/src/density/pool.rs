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
    /// What all guests had resident.
    pub resident_bytes: u64,
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
    /// Takes a look at a pool, if there is one; what guests worked with is of interest only while they are measured.
    pub fn take(&mut self, at: Instant, pool: Option<&PoolView>, resident_bytes: u64, is_measured: bool) {
        let (level, free_bytes) = (pool.and_then(|pool| pool.level), pool.and_then(|pool| pool.free_bytes));
        self.samples.push(PoolSample { at, level, free_bytes, resident_bytes });
        let Some(pool) = pool else { return };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::fixtures::{MIB, member, pool};

    #[test]
    fn peaks_are_of_what_was_measured() {
        let (mut record, now) = (PoolRecord::default(), Instant::now());
        let mut view = pool(vec![member(&name(2), 0), member("other", 1)]);
        let report = &mut view.members[0].report;
        (report.active_bytes, report.active_slow_bytes) = (80 * MIB, Some(30 * MIB));
        (report.touched_bytes, report.ballooned_bytes) = (100 * MIB, 60 * MIB);
        record.take(now, Some(&view), 0, false);
        assert_eq!((record.samples.len(), record.peaks.len()), (1, 0));
        record.take(now, Some(&view), 0, true);
        view.members[0].report.active_bytes = 70 * MIB;
        view.members[0].report.active_slow_bytes = Some(50 * MIB);
        record.take(now, Some(&view), 0, true);
        let peak =
            Peak { active_bytes: 80 * MIB, active_slow_bytes: 50 * MIB, touched_bytes: 40 * MIB, is_sampled: true };
        assert_eq!(record.peaks, [Peak::default(), peak], "guests count from 1, and one is not ours");
    }

    #[test]
    fn estimates_stand_above_what_is_held() {
        let (mut record, now) = (PoolRecord::default(), Instant::now());
        let mut take = |active_mib: u64, slow_mib: Option<u64>| {
            let mut view = pool(vec![member(&name(1), 0)]);
            let report = &mut view.members[0].report;
            (report.active_bytes, report.active_slow_bytes) = (active_mib * MIB, slow_mib.map(|slow| slow * MIB));
            record.take(now, Some(&view), 0, true);
            record.peaks[0].active_bytes / MIB
        };
        assert_eq!([take(90, None), take(20, Some(10)), take(25, Some(10)), take(95, None)], [90, 20, 25, 25]);
    }

    #[test]
    fn the_worst_level_counts() {
        let (mut record, now) = (PoolRecord::default(), Instant::now());
        assert_eq!(record.worst_level(), None);
        let mut view = pool(vec![]);
        for level in [None, Some(Level::Soft), Some(Level::Low), Some(Level::High)] {
            view.level = level;
            record.take(now, Some(&view), 0, true);
        }
        assert_eq!(record.worst_level(), Some(Level::Low));
    }
}
