//! How old a page must be to be taken, from how many come back at once.

use std::time::Duration;

use crate::policy::brake::Thrash;
use crate::policy::turnover;

use super::paged::Paged;
use super::recency::TURN;

/// The part of guest RAM that is spared at the most, in quarters: with less to choose from, the first hand would go round in
/// vain.
const SPARED_QUARTERS_MAX: u64 = 3;

/// What is known of the pages that come and go.
#[derive(Debug, Default)]
pub(super) struct Pace {
    thrash: Thrash,
    since_turn: Duration,
    arrivals: u64,
    stored: u64,
    soon: u64,
    arrivals_per_second: f64,
}

impl Pace {
    /// Pages that arrived later than so many arrivals ago are spared: half of guest RAM, or more while pages come back soon
    /// after they were stored.
    pub fn least_age_pages(&self, resident_pages: u64) -> u64 {
        let spared_pages = (self.thrash.least_age().as_secs_f64() * self.arrivals_per_second) as u64;
        spared_pages.clamp(resident_pages / 2, resident_pages * SPARED_QUARTERS_MAX / 4)
    }

    /// How long a page stays in guest RAM, as they come now.
    pub fn residence(&self, resident_pages: u64) -> Duration {
        turnover::residence(resident_pages, self.arrivals_per_second)
    }

    /// To be called about once a second, with the time since the last call.
    pub fn second(&mut self, paged: &Paged, passed: Duration) {
        let Some(kernel) = paged.connected() else { return };
        let usage = paged.usage();
        let (arrivals, stored, soon) = (paged.arrivals(), usage.evicted_pages, paged.counters.soon.get());
        self.arrivals_per_second = arrivals.saturating_sub(self.arrivals) as f64 / passed.as_secs_f64().max(0.001);
        self.thrash = self.thrash.next(stored.saturating_sub(self.stored), soon.saturating_sub(self.soon));
        (self.arrivals, self.stored, self.soon) = (arrivals, stored, soon);
        self.since_turn += passed;
        if self.since_turn >= TURN {
            self.since_turn = Duration::ZERO;
            kernel.recency.turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_come_back_soon_make_young_ones_be_spared() {
        let mut pace = Pace { arrivals_per_second: 100.0, ..Pace::default() };
        assert_eq!(pace.least_age_pages(1000), 500, "half");
        for _ in 0..4 {
            pace.thrash = pace.thrash.next(1000, 500);
        }
        assert_eq!((pace.residence(1000), pace.residence(0)), (Duration::from_secs(10), Duration::ZERO));
        assert_eq!(Pace::default().residence(1000), Duration::MAX);
        // 8 s of arrivals.
        assert_eq!(pace.least_age_pages(1200), 800);
        assert_eq!(pace.least_age_pages(1000), 750, "not all");
        assert_eq!(pace.least_age_pages(10_000), 5000);
        assert_eq!([0, 1, 2, 3].map(|pages| pace.least_age_pages(pages)), [0, 0, 1, 2]);
    }
}
