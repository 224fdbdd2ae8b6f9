//! What it is worth to have the kernel merge a region, and when that is reason enough to have it begin or stop. Pure.
//!
//! The kernel's own account is `(pages_sharing + ksm_zero_pages) * 4096 - rmap_items * 64` bytes (admin-guide/mm/ksm.rst,
//! "Monitoring KSM profit"). Before anything is merged, a page with `d` copies elsewhere stands for `d / (d + 1)` of a page
//! that is saved, and every page that is present for one rmap item. Pages that broke again by a write, after they had
//! been merged, are charged for: to merge one costs ksmd some microseconds and to break it costs the guest a fault, so one
//! that does not stay merged for ten seconds has saved nothing.

use std::time::Duration;

use crate::ram::PAGE_SIZE;

/// What the kernel keeps of each page that it looks at.
const RMAP_ITEM_BYTES: u64 = 64;

/// How long a page must stay merged to be worth it.
const WORTHWHILE: Duration = Duration::from_secs(10);

/// Looks that follow each other closer than this count as so far apart: a few breaks in no time say little.
const LEAST_PERIOD: Duration = Duration::from_millis(100);

/// A region is advised when it promises more than this: eight pages, half of what its rmap items cost.
const MARGIN_BYTES: i64 = 8 * PAGE_SIZE as i64;

/// It is given up after so many bad looks in a row ...
const BAD_LOOKS: u8 = 4;

/// ... of which one that is bad for churn counts as so many: two passes end it.
const CHURN_LOOKS: u8 = BAD_LOOKS / 2;

/// One that was given up so many times needs this many good looks in a row to be advised again, doubled with each.
const RETURN_LOOKS: u8 = 4;
const FALLS_MAX: u8 = 5;

/// After so many good looks in a row one time is forgotten.
const FORGET_LOOKS: u8 = 64;

/// Of one page with so many copies elsewhere, the bytes that merging saves: each has its part in what they save together.
pub fn saving_bytes(copies: u32) -> u64 {
    PAGE_SIZE * u64::from(copies) / (u64::from(copies) + 1)
}

/// What a look at a region has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// Pages that are present: the kernel keeps an item of each.
    pub present_pages: u32,
    /// Sum of [`saving_bytes`] over the stable pages that have copies.
    pub saving_bytes: u64,
    /// Pages that had copies, in an advised region, and were written since the look before.
    pub broken_pages: u32,
    /// How long ago that was.
    pub period: Duration,
}

impl Look {
    /// What merging the region is expected to save, less what it costs.
    pub fn profit_bytes(&self) -> i64 {
        let saving_bytes = i64::try_from(self.saving_bytes).unwrap_or(i64::MAX);
        saving_bytes.saturating_sub_unsigned(u64::from(self.present_pages) * RMAP_ITEM_BYTES + self.churn_bytes())
    }

    /// The charge for pages that broke: for each what it would have saved until it was worth it.
    fn churn_bytes(&self) -> u64 {
        let times = (WORTHWHILE.as_secs_f64() / self.period.max(LEAST_PERIOD).as_secs_f64()).max(1.0);
        (f64::from(self.broken_pages) * times * PAGE_SIZE as f64) as u64
    }

    /// Whether what breaks outweighs what stays merged.
    fn churns(&self) -> bool {
        self.churn_bytes() > self.saving_bytes
    }
}

/// What looks have led to for a region, with hysteresis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    is_worth: bool,
    is_present: bool,
    was_seen: bool,
    churned: bool,
    /// Looks in a row that spoke against what it is.
    against: u8,
    /// Looks in a row that spoke for it, while it is worth it.
    good: u8,
    /// Times it was given up, less those forgotten.
    falls: u8,
}

impl Standing {
    /// Where one more look leaves it.
    #[must_use]
    pub fn after(self, look: &Look) -> Self {
        let seen = Self { was_seen: true, is_present: look.present_pages > 0, ..self };
        if self.is_worth { seen.after_worth(look) } else { seen.after_not_worth(look) }
    }

    /// Where news of others' pages leaves it, between two looks: one that was never given up need not wait for the next.
    #[must_use]
    pub fn after_news(self, look: &Look) -> Self {
        let is_open = !self.is_worth && !self.churned && self.falls == 0;
        if is_open && self.was_seen { self.after_not_worth(look) } else { self }
    }

    fn after_worth(self, look: &Look) -> Self {
        if look.profit_bytes() >= 0 {
            let good = self.good + 1;
            let (good, forgotten) = if good >= FORGET_LOOKS { (0, 1) } else { (good, 0) };
            return Self { against: 0, good, falls: self.falls.saturating_sub(forgotten), ..self };
        }
        let churns = look.churns();
        let against = self.against + if churns { CHURN_LOOKS } else { 1 };
        if against < BAD_LOOKS {
            return Self { against, good: 0, ..self };
        }
        let falls = (self.falls + 1).min(FALLS_MAX);
        Self { is_worth: false, churned: churns, against: 0, good: 0, falls, ..self }
    }

    fn after_not_worth(self, look: &Look) -> Self {
        // It is advised nevertheless, because nearly all others are.
        let churned = self.churned || look.churns();
        if look.profit_bytes() < MARGIN_BYTES {
            return Self { against: 0, churned, ..self };
        }
        let against = self.against + 1;
        if against >= self.looks_to_return() {
            Self { is_worth: true, churned: false, against: 0, good: 0, ..self }
        } else {
            Self { against, churned, ..self }
        }
    }

    fn looks_to_return(self) -> u8 {
        match self.falls {
            0 => 1,
            falls => RETURN_LOOKS << (falls - 1),
        }
    }

    /// Whether the region is worth being merged by itself.
    pub fn is_worth(self) -> bool {
        self.is_worth
    }

    /// Whether it has been looked at.
    pub fn was_seen(self) -> bool {
        self.was_seen
    }

    /// Whether it had pages at the last look.
    pub fn is_present(self) -> bool {
        self.is_present
    }

    /// Whether it is not to be merged even where all others are: its pages did not stay merged.
    pub fn is_barred(self) -> bool {
        self.churned && !self.is_worth
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PAGE: i64 = PAGE_SIZE as i64;

    /// A region full of pages, of which so many have nine copies.
    fn look(duplicate_pages: u64, broken_pages: u32) -> Look {
        let saving_bytes = duplicate_pages * saving_bytes(9);
        Look { present_pages: 512, saving_bytes, broken_pages, period: SECOND }
    }

    fn after(standing: Standing, look: &Look, times: usize) -> Standing {
        (0..times).fold(standing, |standing, _| standing.after(look))
    }

    /// Advised, from the first look.
    fn advised() -> Standing {
        let standing = Standing::default().after(&look(100, 0));
        assert!(standing.is_worth() && standing.was_seen() && standing.is_present());
        standing
    }

    #[test]
    fn profit_is_the_kernels() {
        assert_eq!([0, 1, 3, u32::MAX].map(saving_bytes), [0, 2048, 3072, 4095]);
        // Two guests of one content: of 2 x 512 pages 512 are saved, and there are 1024 items.
        let half = Look { present_pages: 512, saving_bytes: 512 * saving_bytes(1), ..Look::default() };
        assert_eq!(2 * half.profit_bytes(), 512 * 4096 - 1024 * 64);
        assert_eq!(look(0, 0).profit_bytes(), -512 * 64);
        // A page a second: ten do not get to be worth it.
        assert_eq!(look(100, 1).profit_bytes(), look(100, 0).profit_bytes() - 10 * PAGE);
        let rarely = Look { period: 100 * SECOND, ..look(100, 7) };
        assert_eq!(rarely.profit_bytes(), look(100, 0).profit_bytes() - 7 * PAGE);
        let at_once = Look { period: Duration::ZERO, ..look(100, 1) };
        assert_eq!(at_once.profit_bytes(), look(100, 0).profit_bytes() - 100 * PAGE);
    }

    #[test]
    fn a_region_is_advised_when_it_promises_a_margin() {
        // Items cost eight pages, and the margin is as much.
        assert!(!Standing::default().after(&look(17, 0)).is_worth());
        assert!(Standing::default().after(&look(18, 0)).is_worth());
        assert!(!Standing::default().after(&Look::default()).is_present());
        // Once it is, it stays while it costs nothing.
        assert!(after(advised(), &look(9, 0), 1000).is_worth());
    }

    #[test]
    fn what_does_not_pay_is_given_up_after_some_looks() {
        let given_up = after(advised(), &look(8, 0), 4);
        assert!(after(advised(), &look(8, 0), 3).is_worth());
        assert!(!given_up.is_worth() && !given_up.is_barred());
        let again = after(after(advised(), &look(8, 0), 3).after(&look(100, 0)), &look(8, 0), 3);
        assert!(again.is_worth(), "in a row");
        assert!(!after(given_up, &look(100, 0), 3).is_worth());
        assert!(after(given_up, &look(100, 0), 4).is_worth());
    }

    #[test]
    fn churn_ends_it_within_two_passes() {
        // Half of 500 duplicates rewritten every second: the rest is stable, but its breaks cost more.
        let churning = look(250, 250);
        let once = advised().after(&churning);
        assert!(once.is_worth(), "whatever ends may begin anew: a process that was replaced is no churn");
        let twice = once.after(&churning);
        assert!(!twice.is_worth() && twice.is_barred());
        // Visits that are further apart see less of it.
        for seconds in [2, 5, 10] {
            let seldom = Look { period: seconds * SECOND, ..churning };
            assert!(!after(advised(), &seldom, 2).is_worth(), "{seconds} s");
        }
        // No breaks while it is not merged, so all looks are good: it needs more of them each time.
        let mut standing = twice;
        for looks in [4, 8, 16, 32, 64, 64] {
            standing = after(standing, &look(250, 0), looks - 1);
            assert!(!standing.is_worth(), "{looks}");
            standing = standing.after(&look(250, 0));
            assert!(standing.is_worth() && !standing.is_barred(), "{looks}");
            standing = after(standing, &churning, 2);
        }
        // A few breaks are none.
        assert!(after(advised(), &look(250, 2), 1000).is_worth());
    }

    #[test]
    fn a_long_time_without_trouble_is_forgiven() {
        let fallen = after(advised(), &look(0, 100), 2);
        let back = after(fallen, &look(100, 0), 4);
        let calm = after(back, &look(100, 0), FORGET_LOOKS.into());
        let fallen = after(calm, &look(0, 100), 2);
        assert!(after(fallen, &look(100, 0), 4).is_worth(), "as after the first time");
        assert!(!after(after(back, &look(0, 100), 2), &look(100, 0), 4).is_worth());
    }

    #[test]
    fn what_churns_while_all_are_advised_is_barred() {
        let standing = Standing::default().after(&look(0, 5));
        assert!(standing.is_barred() && !standing.is_worth());
        let standing = standing.after(&look(100, 0));
        assert!(!standing.is_barred() && standing.is_worth());
    }

    proptest! {
        /// Whatever a region does, it is advised again and given up only ever more rarely.
        #[test]
        fn it_does_not_flap(looks in proptest::collection::vec((0..600u64, prop_oneof![3 => Just(0), 1 => 0..600u32]), 2000)) {
            let mut standing = Standing::default();
            let mut flips = 0;
            for (duplicate_pages, broken_pages) in looks {
                let next = standing.after(&look(duplicate_pages, broken_pages));
                flips += u32::from(next.is_worth() != standing.is_worth());
                standing = next;
            }
            // Two bad looks and as many good ones as it takes, at most 5 times before that is 64.
            prop_assert!(flips <= 2 * (5 + 2000 / 66) + 2, "{}", flips);
        }

        #[test]
        fn any_numbers_are_taken(
            present_pages: u32, saving_bytes: u64, broken_pages: u32, period_ns: u64, times in 1..200usize,
        ) {
            let period = Duration::from_nanos(period_ns);
            after(Standing::default(), &Look { present_pages, saving_bytes, broken_pages, period }, times);
        }

        /// More copies never make a region worth less, more breaks never more.
        #[test]
        fn profit_is_monotone(duplicates in 0..512u64, more in 0..512u64, broken in 0..512u32, further in 0..512u32) {
            let profit = |duplicates, broken| look(duplicates, broken).profit_bytes();
            prop_assert!(profit(duplicates + more, broken) >= profit(duplicates, broken));
            prop_assert!(profit(duplicates, broken + further) <= profit(duplicates, broken));
        }
    }
}
