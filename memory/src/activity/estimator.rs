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
    /// The estimate as it would be without the log of writes.
    pub sampled_bytes: u64,
    /// The estimate of what is written alone, where that is watched.
    pub written_bytes: Option<u64>,
}

/// The estimate over a guest's periods.
///
/// A sample jumps about what is touched by its standard error, and the guest's grant would with it. So the estimate moves
/// only where a period [contradicts](Touches::plausible_pages) it, which chance does in one of twenty: up at once, down as
/// the slow average falls, by half in 1.4 periods (7 s at the default of 5 s). It does not move down while the guest is short of
/// its pages: who waits for most of what it would touch looks idle, and would be given less for it. The averages do move, so that it
/// comes down at once, and not by halves, when a guest that was short turns out to need less.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimator {
    joined: Option<Settled>,
    sampled: Option<Settled>,
    written: Option<Settled>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Settled {
    pages: f64,
    fast_pages: f64,
    slow_pages: f64,
}

impl Settled {
    fn next(before: Option<Self>, seen: &Touches, is_short: bool) -> Self {
        let (seen_pages, plausible) = (seen.active_pages(), seen.plausible_pages());
        let Some(before) = before else {
            return Self { pages: seen_pages, fast_pages: seen_pages, slow_pages: seen_pages };
        };
        let fast_pages = before.fast_pages + FAST_WEIGHT * (seen_pages - before.fast_pages);
        let slow_pages = before.slow_pages + SLOW_WEIGHT * (seen_pages - before.slow_pages);
        let most_pages = seen_pages.max(fast_pages).max(slow_pages);
        let pages = if before.pages < *plausible.start() {
            most_pages
        } else if before.pages > *plausible.end() && !is_short {
            most_pages.min(before.pages)
        } else {
            before.pages
        };
        Self { pages, fast_pages, slow_pages }
    }
}

impl Estimator {
    /// A period has ended: what was touched, and what a sample of all of guest RAM says was written, if it was watched. What
    /// is written is touched, so the second counts only where it rules the first out; the larger of two samples that agree
    /// would be too large by half a standard error. The guest `is_short` if it waited for its pages so long that what it did not
    /// touch says nothing.
    pub fn end_period(&mut self, touches: Touches, written: Option<Touches>, is_short: bool) {
        let rules_out = |written: &Touches| written.plausible_pages().start() > touches.plausible_pages().end();
        self.joined = Some(Settled::next(self.joined, &written.filter(rules_out).unwrap_or(touches), is_short));
        self.sampled = Some(Settled::next(self.sampled, &touches, is_short));
        self.written = written.map(|written| Settled::next(self.written, &written, is_short));
    }

    /// The estimate, with what was seen in the running period; `None` before the first period has ended.
    pub fn estimate(&self, running: Touches) -> Option<Estimate> {
        let (joined, sampled) = (self.joined?, self.sampled?);
        let running_pages = running.active_pages();
        // What is touched only grows within a period: a contradiction upward stands before it is over.
        let so_far = |pages: f64| if pages < *running.plausible_pages().start() { running_pages } else { pages };
        let bytes = |pages: f64| (pages * PAGE_SIZE as f64) as u64;
        Some(Estimate {
            active_bytes: bytes(so_far(joined.pages)),
            fast_bytes: bytes(joined.fast_pages),
            slow_bytes: bytes(joined.slow_pages),
            running_bytes: bytes(running_pages),
            sampled_bytes: bytes(so_far(sampled.pages)),
            written_bytes: self.written.map(|written| bytes(written.pages)),
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
            estimator.end_period(touches(400, of_hundred, 0), None, false);
            active_mib(&estimator, Touches::default())
        };
        of_hundred.iter().map(after).collect()
    }

    #[test]
    fn growth_is_followed_at_once_and_decay_slowly() {
        let mut estimator = Estimator::default();
        assert_eq!(estimator.estimate(touches(400, 50, 0)), None);
        estimator.end_period(touches(400, 10, 0), None, false);
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
        estimator.end_period(touches(400, 30, 0), None, false);
        assert_eq!(active_mib(&estimator, touches(400, 39, 0)), 120, "nor within a period");
        // What came is counted, and no chance.
        assert_eq!(active_mib(&estimator, touches(400, 0, 121)), 121);
    }

    #[test]
    fn who_is_short_of_pages_does_not_look_idle() {
        let mut estimator = Estimator::default();
        estimator.end_period(touches(400, 60, 0), None, false);
        for _ in 0..5 {
            estimator.end_period(touches(400, 5, 0), None, true);
            assert_eq!(active_mib(&estimator, Touches::default()), 240);
        }
        estimator.end_period(touches(400, 80, 0), None, true);
        assert_eq!(active_mib(&estimator, Touches::default()), 320, "more it may be");
        estimator.end_period(touches(400, 5, 0), None, false);
        assert_eq!(active_mib(&estimator, Touches::default()), 98, "the averages have gone on falling");
    }

    #[test]
    fn a_period_without_a_sample_contradicts_only_by_what_came() {
        let unsampled =
            |resident_mib, arrived_mib| Touches { sampled_pages: 0, ..touches(resident_mib, 0, arrived_mib) };
        let mut estimator = Estimator::default();
        estimator.end_period(touches(400, 30, 0), None, false);
        estimator.end_period(unsampled(200, 10), None, false);
        assert_eq!(active_mib(&estimator, Touches::default()), 120);
        estimator.end_period(unsampled(200, 150), None, false);
        assert_eq!(active_mib(&estimator, Touches::default()), 150);
        estimator.end_period(unsampled(0, 10), None, false);
        assert!(active_mib(&estimator, Touches::default()) < 120, "nothing was there to be touched");
    }

    #[test]
    fn writes_count_where_they_rule_the_sample_out() {
        // Of 400 MiB 40 are touched, by the sample 22 to 70.
        let mib = |written_mib: u64| {
            let mut estimator = Estimator::default();
            estimator.end_period(touches(400, 10, 0), Some(touches(400, written_mib / 4, 0)), false);
            let estimate = estimator.estimate(Touches::default()).expect("a period has ended");
            (estimate.active_bytes >> 20, estimate.sampled_bytes >> 20, estimate.written_bytes.map(|bytes| bytes >> 20))
        };
        assert_eq!(mib(0), (40, 40, Some(0)));
        assert_eq!(mib(60), (40, 40, Some(60)), "that may be chance");
        assert_eq!(mib(120), (120, 40, Some(120)));
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
                estimator.end_period(period, None, false);
                let pages = estimator.joined.expect("a period has ended").pages;
                let plausible = period.plausible_pages();
                prop_assert!(pages >= *plausible.start(), "{} below {:?}", pages, plausible);
                let falls = before.is_none_or(|before| pages <= before);
                prop_assert!(plausible.contains(&pages) || falls, "{:?} to {} beyond {:?}", before, pages, plausible);
                before = Some(pages);
            }
        }
    }
}
