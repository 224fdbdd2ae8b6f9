//! From samples to an estimate. Pure.

use serde::Serialize;

use crate::pager::Touches;
use crate::ram::PAGE_SIZE;

/// Weight of a new period in the average that follows fast: a step is four fifths there after one.
const FAST_WEIGHT: f64 = 0.8;

/// Weight of a new period in the average that follows slowly: it has forgotten half after 1.4 periods.
const SLOW_WEIGHT: f64 = 0.4;

/// What a guest works with, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The estimate: the most of what follows. It grows at once and decays with the slow average.
    pub active_bytes: u64,
    /// Moving average that follows fast.
    pub fast_bytes: u64,
    /// Moving average that follows slowly.
    pub slow_bytes: u64,
    /// What was seen in the running period so far.
    pub running_bytes: u64,
    /// What is written in a period, where that is watched: a few granules, averaged over several periods. Too coarse to be
    /// part of the estimate.
    pub written_bytes: Option<u64>,
}

/// The averages over a guest's periods.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimator {
    averages: Option<Averages>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Averages {
    fast_pages: f64,
    slow_pages: f64,
}

impl Touches {
    /// Pages touched: of those that were in guest RAM as many as the sample says, and every one that came.
    pub fn active_pages(&self) -> f64 {
        let touched_part =
            if self.sampled_pages == 0 { 0.0 } else { self.sampled_touched_pages as f64 / self.sampled_pages as f64 };
        touched_part * self.resident_pages as f64 + self.arrived_pages as f64
    }
}

impl Estimator {
    /// A period has ended.
    pub fn end_period(&mut self, touches: Touches) {
        let pages = touches.active_pages();
        self.averages = Some(match self.averages {
            None => Averages { fast_pages: pages, slow_pages: pages },
            Some(Averages { fast_pages, slow_pages }) => Averages {
                fast_pages: fast_pages + FAST_WEIGHT * (pages - fast_pages),
                slow_pages: slow_pages + SLOW_WEIGHT * (pages - slow_pages),
            },
        });
    }

    /// The estimate, with what was seen in the running period; `None` before the first period has ended.
    pub fn estimate(&self, running: Touches) -> Option<Estimate> {
        let Averages { fast_pages, slow_pages } = self.averages?;
        let bytes = |pages: f64| (pages * PAGE_SIZE as f64) as u64;
        let (fast_bytes, slow_bytes, running_bytes) =
            (bytes(fast_pages), bytes(slow_pages), bytes(running.active_pages()));
        Some(Estimate {
            active_bytes: fast_bytes.max(slow_bytes).max(running_bytes),
            fast_bytes,
            slow_bytes,
            running_bytes,
            written_bytes: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB_PAGES: u64 = (1 << 20) / PAGE_SIZE;

    fn touches(resident_mib: u64, of_hundred: u64, arrived_mib: u64) -> Touches {
        Touches {
            resident_pages: resident_mib * MIB_PAGES,
            sampled_pages: 100,
            sampled_touched_pages: of_hundred,
            arrived_pages: arrived_mib * MIB_PAGES,
        }
    }

    fn active_mib(estimator: &Estimator, running: Touches) -> u64 {
        estimator.estimate(running).expect("a period has ended").active_bytes >> 20
    }

    #[test]
    fn a_sample_stands_for_all_and_what_came_for_itself() {
        assert_eq!(touches(400, 25, 0).active_pages(), 100.0 * MIB_PAGES as f64);
        assert_eq!(touches(100, 100, 150).active_pages(), 250.0 * MIB_PAGES as f64);
        let nothing = Touches { sampled_pages: 0, ..touches(100, 0, 3) };
        assert_eq!(nothing.active_pages(), 3.0 * MIB_PAGES as f64);
    }

    #[test]
    fn growth_is_followed_at_once_and_decay_slowly() {
        let mut estimator = Estimator::default();
        assert_eq!(estimator.estimate(touches(400, 50, 0)), None);
        estimator.end_period(touches(400, 10, 0));
        assert_eq!(active_mib(&estimator, Touches::default()), 40);
        // Already within the period in which it happens.
        assert_eq!(active_mib(&estimator, touches(400, 30, 0)), 120);
        estimator.end_period(touches(400, 60, 0));
        assert_eq!(active_mib(&estimator, Touches::default()), 200);
        estimator.end_period(touches(400, 60, 0));
        assert_eq!(active_mib(&estimator, Touches::default()), 232);
        let decay: Vec<_> = (0..4)
            .map(|_| {
                estimator.end_period(touches(400, 0, 0));
                active_mib(&estimator, Touches::default())
            })
            .collect();
        assert_eq!(decay, [100, 60, 36, 21]);
    }
}
