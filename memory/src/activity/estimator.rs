//! From measurements to an estimate that rests where they agree. Pure.

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
    /// The estimate. One that could still be right is left alone; one that cannot becomes the most of what follows: it
    /// grows at once and decays with the slow average.
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

/// The estimate over a guest's periods.
///
/// A sample jumps about what is touched by its standard error, and the guest's grant would with it. So the estimate moves
/// only where a period [contradicts](Touches::plausible_pages) it, which chance does in one of twenty: up at once, down as
/// the slow average falls, by half in 1.4 periods (7 s at the default of 5 s).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimator {
    state: Option<Settled>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Settled {
    pages: f64,
    fast_pages: f64,
    slow_pages: f64,
}

impl Settled {
    fn after(self, touches: &Touches) -> Self {
        let (seen_pages, plausible) = (touches.active_pages(), touches.plausible_pages());
        let fast_pages = self.fast_pages + FAST_WEIGHT * (seen_pages - self.fast_pages);
        let slow_pages = self.slow_pages + SLOW_WEIGHT * (seen_pages - self.slow_pages);
        let most_pages = seen_pages.max(fast_pages).max(slow_pages);
        let pages = if self.pages < *plausible.start() {
            most_pages
        } else if self.pages > *plausible.end() {
            most_pages.min(self.pages)
        } else {
            self.pages
        };
        Self { pages, fast_pages, slow_pages }
    }
}

impl Estimator {
    /// A period has ended.
    pub fn end_period(&mut self, touches: Touches) {
        self.state = Some(match self.state {
            None => {
                let pages = touches.active_pages();
                Settled { pages, fast_pages: pages, slow_pages: pages }
            }
            Some(state) => state.after(&touches),
        });
    }

    /// The estimate, with what was seen in the running period; `None` before the first period has ended.
    pub fn estimate(&self, running: Touches) -> Option<Estimate> {
        let Settled { pages, fast_pages, slow_pages } = self.state?;
        let running_pages = running.active_pages();
        // What is touched only grows within a period: a contradiction upward stands before it is over.
        let active_pages = if pages < *running.plausible_pages().start() { running_pages } else { pages };
        let bytes = |pages: f64| (pages * PAGE_SIZE as f64) as u64;
        Some(Estimate {
            active_bytes: bytes(active_pages),
            fast_bytes: bytes(fast_pages),
            slow_bytes: bytes(slow_pages),
            running_bytes: bytes(running_pages),
            written_bytes: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    /// The estimates after each of these periods of a guest with 400 MiB.
    fn course(of_hundred: &[u64]) -> Vec<u64> {
        let mut estimator = Estimator::default();
        let after = |&of_hundred| {
            estimator.end_period(touches(400, of_hundred, 0));
            active_mib(&estimator, Touches::default())
        };
        of_hundred.iter().map(after).collect()
    }

    #[test]
    fn growth_is_followed_at_once_and_decay_slowly() {
        let mut estimator = Estimator::default();
        assert_eq!(estimator.estimate(touches(400, 50, 0)), None);
        estimator.end_period(touches(400, 10, 0));
        assert_eq!(active_mib(&estimator, Touches::default()), 40);
        // Already within the period in which it happens.
        assert_eq!(active_mib(&estimator, touches(400, 30, 0)), 120);
        assert_eq!(course(&[10, 60, 60, 0, 0, 0, 0]), [40, 240, 240, 100, 60, 36, 21]);
    }

    #[test]
    fn what_chance_may_have_done_moves_nothing() {
        // A standard error is 4 to 5 of 100 here.
        assert_eq!(course(&[30, 21, 39, 25, 36, 22]), [120; 6]);
        assert_eq!(course(&[30, 41]), [120, 164]);
        assert_eq!(course(&[30, 20]), [120, 104], "the slow average");
        let mut estimator = Estimator::default();
        estimator.end_period(touches(400, 30, 0));
        assert_eq!(active_mib(&estimator, touches(400, 39, 0)), 120, "nor within a period");
        // What came is counted, and no chance.
        assert_eq!(active_mib(&estimator, touches(400, 0, 121)), 121);
    }

    #[test]
    fn a_period_without_a_sample_contradicts_only_by_what_came() {
        let unsampled =
            |resident_mib, arrived_mib| Touches { sampled_pages: 0, ..touches(resident_mib, 0, arrived_mib) };
        let mut estimator = Estimator::default();
        estimator.end_period(touches(400, 30, 0));
        estimator.end_period(unsampled(200, 10));
        assert_eq!(active_mib(&estimator, Touches::default()), 120);
        estimator.end_period(unsampled(200, 150));
        assert_eq!(active_mib(&estimator, Touches::default()), 150);
        estimator.end_period(unsampled(0, 10));
        assert!(active_mib(&estimator, Touches::default()) < 120, "nothing was there to be touched");
    }

    /// Periods of a guest that touches the same part all the time.
    fn periods(part: f64) -> impl Strategy<Value = Vec<u64>> {
        let touched = move |draws: Vec<f64>| draws.into_iter().filter(|&draw| draw < part).count() as u64;
        prop::collection::vec(prop::collection::vec(0.0..1.0, 100).prop_map(touched), 200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_constant_guest_has_a_constant_estimate(
            (part, periods) in (0.02..0.98).prop_flat_map(|part| (Just(part), periods(part)))
        ) {
            let estimates = course(&periods);
            let moves = estimates.windows(2).filter(|pair| pair[0] != pair[1]).count();
            prop_assert!(moves <= estimates.len() / 4, "{} moves: {:?}", moves, estimates);
            // A tenth of the guest, in 95 of 100 periods and some for chance.
            let right = estimates.iter().filter(|&&mib| (mib as f64 - 400.0 * part).abs() <= 40.0).count();
            prop_assert!(right * 10 >= estimates.len() * 9, "{} right of {}: {:?}", right, 400.0 * part, estimates);
        }

        #[test]
        fn an_estimate_is_plausible_or_on_its_way_down(periods in prop::collection::vec((0..=100u64, 0..50u64), 1..40)) {
            let mut estimator = Estimator::default();
            let mut before = None;
            for (of_hundred, arrived_mib) in periods {
                let period = touches(300, of_hundred, arrived_mib);
                estimator.end_period(period);
                let pages = estimator.state.expect("a period has ended").pages;
                let plausible = period.plausible_pages();
                prop_assert!(pages >= *plausible.start(), "{} below {:?}", pages, plausible);
                let falls = before.is_none_or(|before| pages <= before);
                prop_assert!(plausible.contains(&pages) || falls, "{:?} to {} beyond {:?}", before, pages, plausible);
                before = Some(pages);
            }
        }
    }
}
