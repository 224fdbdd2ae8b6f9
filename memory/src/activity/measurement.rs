//! What the touches of a period say, and what they leave open. Pure.

use std::ops::RangeInclusive;

use crate::pager::Touches;

/// A sample tells a part from another only where they are so many of its standard errors apart: chance goes that far in one
/// period of twenty.
const STANDARD_ERRORS: f64 = 2.0;

impl Touches {
    /// Pages touched: of those that were in guest RAM as many as the sample says, and every one that came.
    pub fn active_pages(&self) -> f64 {
        self.pages_at(self.touched_part())
    }

    /// The numbers of active pages that could have looked like this: those from which what was seen is at most two standard
    /// errors away (E. B. Wilson, Probable Inference, JASA 22, 1927). A sample of which nothing or everything was touched
    /// leaves something open too; where there is no sample, all that was resident is open.
    pub fn plausible_pages(&self) -> RangeInclusive<f64> {
        if self.sampled_pages == 0 {
            return self.pages_at(0.0)..=self.pages_at(1.0);
        }
        let (sampled_pages, part) = (self.sampled_pages as f64, self.touched_part());
        let spread = STANDARD_ERRORS * STANDARD_ERRORS / sampled_pages;
        let middle = (part + spread / 2.0) / (1.0 + spread);
        let half = STANDARD_ERRORS * ((part * (1.0 - part) + spread / 4.0) / sampled_pages).sqrt() / (1.0 + spread);
        // Rounding must not rule out what was seen itself.
        let (least, most) = ((middle - half).clamp(0.0, part), (middle + half).clamp(part, 1.0));
        self.pages_at(least)..=self.pages_at(most)
    }

    fn touched_part(&self) -> f64 {
        if self.sampled_pages == 0 { 0.0 } else { self.sampled_touched_pages as f64 / self.sampled_pages as f64 }
    }

    fn pages_at(&self, touched_part: f64) -> f64 {
        touched_part * self.resident_pages as f64 + self.arrived_pages as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn touches(resident_pages: u64, sampled_touched_pages: u64, arrived_pages: u64) -> Touches {
        Touches { resident_pages, sampled_pages: 100, sampled_touched_pages, arrived_pages }
    }

    #[test]
    fn a_sample_stands_for_all_and_what_came_for_itself() {
        assert_eq!(touches(400, 25, 0).active_pages(), 100.0);
        assert_eq!(touches(100, 100, 150).active_pages(), 250.0);
        let nothing = Touches { sampled_pages: 0, ..touches(100, 0, 3) };
        assert_eq!(nothing.active_pages(), 3.0);
        assert_eq!(nothing.plausible_pages(), 3.0..=103.0);
    }

    #[test]
    fn the_limits_are_two_standard_errors_away() {
        for touched in [0, 1, 10, 50, 97, 100] {
            let seen = touched as f64 / 100.0;
            let plausible = touches(1000, touched, 0).plausible_pages();
            let (least, most) = (plausible.start() / 1000.0, plausible.end() / 1000.0);
            let standard_error = |part: f64| (part * (1.0 - part) / 100.0).sqrt();
            for limit in [least, most].into_iter().filter(|&limit| limit > 1e-9 && limit < 1.0 - 1e-9) {
                let away = (seen - limit).abs() / standard_error(limit);
                assert!((away - 2.0).abs() < 1e-6, "{touched}: {limit} is {away} standard errors away");
            }
        }
        // A half is known to a tenth, nothing to a 26th.
        assert!((touches(1000, 50, 7).plausible_pages().end() - 605.06).abs() < 0.01);
        assert!((touches(1000, 0, 7).plausible_pages().end() - 45.46).abs() < 0.01);
    }

    proptest! {
        #[test]
        fn what_was_seen_is_plausible_and_more_pages_leave_less_open(
            resident_pages in 0..1u64 << 40, sampled_pages in 0..2000u64, per_mille in 0..=1000u64, arrived_pages in 0..1u64 << 40
        ) {
            let sampled_touched_pages = sampled_pages * per_mille / 1000;
            let touches = Touches { resident_pages, sampled_pages, sampled_touched_pages, arrived_pages };
            let plausible = touches.plausible_pages();
            prop_assert!(plausible.contains(&touches.active_pages()), "{:?} without {}", plausible, touches.active_pages());
            prop_assert!(*plausible.start() >= arrived_pages as f64);
            prop_assert!(*plausible.end() <= (arrived_pages + resident_pages) as f64);
            let more = Touches {
                sampled_pages: 4 * sampled_pages,
                sampled_touched_pages: 4 * sampled_touched_pages,
                ..touches
            };
            let width = |range: &RangeInclusive<f64>| range.end() - range.start();
            prop_assert!(width(&more.plausible_pages()) <= width(&plausible) * (1.0 + 1e-9));
        }
    }
}
