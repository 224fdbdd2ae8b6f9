//! Which ranges of guest RAM the kernel is to be told to merge. Pure.
//!
//! Regions that are worth it are advised, neighbours as one range. Every border of a range splits a mapping, of which a
//! process may have 65530 (`vm.max_map_count`), and cuts the runs that the pager moves: where there would be too many,
//! those with the smallest gaps between them are joined. Where nearly all regions are worth it, duplicates are spread
//! evenly, and all of RAM is advised but for what churns: single regions would cost more to find than they save.

use std::ops::Range;

use super::layout::Layout;
use super::profit::{Look, Standing};

/// The most separate ranges: while others replace them there are up to twice as many, of two mappings each, half of what a
/// process may have.
pub const RANGES_MAX: usize = 8192;

/// When this part of the regions with pages is worth it, all are advised ...
const ALL_ABOVE: f64 = 0.90;

/// ... until it is less than this.
const ALL_BELOW: f64 = 0.75;

/// So few regions say nothing of the others, unless there are no more ...
const SAMPLE_REGIONS: u32 = 16;

/// ... nor does less than this part of them.
const SAMPLE_PART: u32 = 8;

/// What the kernel is to be told, in ranges of gfns. To make room among the mappings, what is to be given up comes first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advice {
    /// MADV_UNMERGEABLE.
    pub unadvise: Vec<Range<u64>>,
    /// MADV_MERGEABLE.
    pub advise: Vec<Range<u64>>,
}

/// The regions of a guest, what was seen of each, and what the kernel has been told.
#[derive(Debug, Clone)]
pub struct Advisor {
    layout: Layout,
    standings: Vec<Standing>,
    advised: Vec<bool>,
    all: bool,
    ranges_max: usize,
}

impl Advisor {
    /// Nothing is advised. `ranges_max` is [`RANGES_MAX`] but for tests.
    pub fn new(layout: Layout, ranges_max: usize) -> Self {
        let count = layout.count() as usize;
        Self {
            layout,
            standings: vec![Standing::default(); count],
            advised: vec![false; count],
            all: false,
            ranges_max,
        }
    }

    /// Takes note of a look at a region.
    ///
    /// # Panics
    /// If there is no such region.
    pub fn note(&mut self, region: u32, look: &Look) {
        let standing = &mut self.standings[region as usize];
        *standing = standing.after(look);
    }

    /// Takes note of what news of others' pages says of a region that was not looked at again.
    ///
    /// # Panics
    /// If there is no such region.
    pub fn note_news(&mut self, region: u32, look: &Look) {
        let standing = &mut self.standings[region as usize];
        *standing = standing.after_news(look);
    }

    /// What is to be done about what was seen. It stays so until it is [`done`](Self::done).
    pub fn advice(&mut self) -> Advice {
        self.all = self.is_all_worth();
        let wanted = self.wanted();
        let differing = |is_wanted: bool| {
            let differs = |region: usize| self.advised[region] != wanted[region] && wanted[region] == is_wanted;
            runs(&self.layout, differs).into_iter().map(|run| self.layout.gfns_of_run(run)).collect()
        };
        Advice { unadvise: differing(false), advise: differing(true) }
    }

    /// The kernel has taken advice on these pages, or the taking back of it. Part of a range is whole regions.
    pub fn done(&mut self, gfns: &Range<u64>, is_advised: bool) {
        let (Some(first), Some(last)) = (self.layout.region_of(gfns.start), self.layout.region_of(gfns.end - 1)) else {
            return;
        };
        self.advised[first as usize..=last as usize].fill(is_advised);
    }

    /// What the kernel has been told to merge: to be taken back when sharing ends.
    pub fn advised(&self) -> Vec<Range<u64>> {
        let runs = runs(&self.layout, |region| self.advised[region]);
        runs.into_iter().map(|run| self.layout.gfns_of_run(run)).collect()
    }

    /// Whether it has been told to merge this region.
    ///
    /// # Panics
    /// If there is no such region.
    pub fn is_advised(&self, region: u32) -> bool {
        self.advised[region as usize]
    }

    /// Whether all regions are advised because nearly all are worth it.
    pub fn is_all(&self) -> bool {
        self.all
    }

    fn is_all_worth(&self) -> bool {
        let count = |holds: fn(Standing) -> bool| self.standings.iter().filter(|standing| holds(**standing)).count();
        let seen = count(Standing::was_seen) as u32;
        let total = self.layout.count();
        if seen < SAMPLE_REGIONS.min(total).max(total / SAMPLE_PART) {
            return false;
        }
        let (present, worth) = (count(Standing::is_present) as f64, count(Standing::is_worth) as f64);
        present > 0.0 && worth >= present * if self.all { ALL_BELOW } else { ALL_ABOVE }
    }

    /// Which regions should be advised.
    fn wanted(&self) -> Vec<bool> {
        let is_wanted = |standing: &Standing| if self.all { !standing.is_barred() } else { standing.is_worth() };
        let mut wanted: Vec<bool> = self.standings.iter().map(is_wanted).collect();
        let excess =
            |wanted: &[bool]| runs(&self.layout, |region| wanted[region]).len().saturating_sub(self.ranges_max);
        // Filling a gap makes one range of two.
        let mut gaps = self.gaps(&wanted);
        gaps.sort_by_key(Range::len);
        for gap in gaps.into_iter().take(excess(&wanted)) {
            wanted[gap.start as usize..gap.end as usize].fill(true);
        }
        // What churns stays out of it: then the shortest ranges are not worth their mappings.
        let mut rest = runs(&self.layout, |region| wanted[region]);
        rest.sort_by_key(Range::len);
        for run in rest.into_iter().take(excess(&wanted)) {
            wanted[run.start as usize..run.end as usize].fill(false);
        }
        wanted
    }

    /// What lies between two wanted ranges and can be advised with them.
    fn gaps(&self, wanted: &[bool]) -> Vec<Range<u32>> {
        let is_bounded = |gap: &Range<u32>| {
            let before = gap.start.checked_sub(1);
            let is_after = self.layout.is_joined_to_next(gap.end - 1);
            before.is_some_and(|before| self.layout.is_joined_to_next(before)) && is_after
        };
        let is_open = |gap: &Range<u32>| gap.clone().all(|region| !self.standings[region as usize].is_barred());
        let gaps = runs(&self.layout, |region| !wanted[region]);
        gaps.into_iter().filter(|gap| is_bounded(gap) && is_open(gap)).collect()
    }
}

/// The longest runs of regions for which something holds, without holes.
fn runs(layout: &Layout, holds: impl Fn(usize) -> bool) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for region in (0..layout.count()).filter(|region| holds(*region as usize)) {
        match runs.last_mut() {
            Some(run) if run.end == region && layout.is_joined_to_next(region - 1) => run.end += 1,
            _ => runs.push(region..region + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::layout::REGION_PAGES;
    use super::super::profit::saving_bytes;
    use super::*;

    fn layout(regions: u64) -> Layout {
        Layout::new(&[0..regions * REGION_PAGES])
    }

    fn look(duplicate_pages: u64, broken_pages: u32) -> Look {
        let saving_bytes = duplicate_pages * saving_bytes(9);
        Look { present_pages: 512, saving_bytes, broken_pages, period: Duration::from_secs(1) }
    }

    /// Has everything done that is to be done; both lists as regions.
    fn settle(advisor: &mut Advisor) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
        let advice = advisor.advice();
        advice.unadvise.iter().for_each(|gfns| advisor.done(gfns, false));
        advice.advise.iter().for_each(|gfns| advisor.done(gfns, true));
        assert_eq!(advisor.advice(), Advice::default(), "it is done");
        (in_regions(advice.unadvise), in_regions(advice.advise))
    }

    fn in_regions(gfns: Vec<Range<u64>>) -> Vec<Range<u64>> {
        gfns.into_iter().map(|gfns| gfns.start / REGION_PAGES..gfns.end.div_ceil(REGION_PAGES)).collect()
    }

    fn note_all(advisor: &mut Advisor, look_at: impl Fn(u32) -> Look) {
        (0..advisor.layout.count()).for_each(|region| advisor.note(region, &look_at(region)));
    }

    #[test]
    fn neighbours_are_one_range() {
        let mut advisor = Advisor::new(layout(40), RANGES_MAX);
        note_all(&mut advisor, |region| look(if [3, 4, 5, 20, 39].contains(&region) { 200 } else { 5 }, 0));
        assert_eq!(settle(&mut advisor), (vec![], vec![3..6, 20..21, 39..40]));
        assert_eq!(in_regions(advisor.advised()), [3..6, 20..21, 39..40]);
        assert!(advisor.is_advised(4) && !advisor.is_advised(6) && !advisor.is_all());
        (0..4).for_each(|_| advisor.note(4, &look(0, 0)));
        advisor.note(6, &look(50, 0));
        assert_eq!(settle(&mut advisor), (vec![4..5], vec![6..7]));
    }

    #[test]
    fn what_was_seen_before_others_had_the_same_is_worth_it_when_they_have() {
        let mut advisor = Advisor::new(layout(40), RANGES_MAX);
        note_all(&mut advisor, |_| look(0, 0));
        advisor.note_news(3, &look(100, 0));
        assert_eq!(settle(&mut advisor), (vec![], vec![3..4]));
        // It says nothing against a region, and no churning one comes back for it.
        (0..9).for_each(|_| advisor.note_news(3, &look(0, 0)));
        (0..2).for_each(|_| advisor.note(4, &look(0, 100)));
        advisor.note_news(4, &look(100, 0));
        assert_eq!(settle(&mut advisor), (vec![], vec![]));
        (0..4).for_each(|_| advisor.note(3, &look(0, 0)));
        advisor.note_news(3, &look(100, 0));
        assert_eq!(settle(&mut advisor), (vec![3..4], vec![]));
    }

    #[test]
    fn ranges_end_at_holes_and_with_ram() {
        let ram = Layout::new(&[0..2 * REGION_PAGES - 7, 10 * REGION_PAGES..11 * REGION_PAGES]);
        let mut advisor = Advisor::new(ram, RANGES_MAX);
        note_all(&mut advisor, |_| look(100, 0));
        let advice = advisor.advice();
        assert_eq!(advice.advise, [0..2 * REGION_PAGES - 7, 10 * REGION_PAGES..11 * REGION_PAGES]);
    }

    #[test]
    fn advice_that_was_not_taken_is_given_again() {
        let mut advisor = Advisor::new(layout(40), RANGES_MAX);
        note_all(&mut advisor, |region| look(if region < 10 { 100 } else { 0 }, 0));
        assert_eq!(advisor.advice(), advisor.advice());
        advisor.done(&(0..4 * REGION_PAGES), true);
        assert_eq!(in_regions(advisor.advice().advise), [4..10]);
    }

    #[test]
    fn where_nearly_all_are_worth_it_all_is_one_range() {
        let mut advisor = Advisor::new(layout(160), RANGES_MAX);
        // An eighth of them, spread: the rest will be like it.
        (0..19).for_each(|number| advisor.note(number * 8, &look(30, 0)));
        assert!(settle(&mut advisor).1.len() == 19 && !advisor.is_all());
        advisor.note(153, &look(30, 0));
        assert!(advisor.advice().advise.len() > 1);
        settle(&mut advisor);
        assert!(advisor.is_all());
        assert_eq!(in_regions(advisor.advised()), [0..160]);
        // Some that turn out otherwise change nothing, and what has no pages does not count.
        note_all(&mut advisor, |region| match region % 10 {
            0 | 1 => look(0, 0),
            2..5 => Look::default(),
            _ => look(30, 0),
        });
        assert_eq!(settle(&mut advisor), (vec![], vec![]));
        // What churns is left out.
        (0..2).for_each(|_| advisor.note(77, &look(30, 30)));
        assert_eq!(settle(&mut advisor), (vec![77..78], vec![]));
        // With less than three quarters it is over.
        (0..4).for_each(|_| note_all(&mut advisor, |region| look(if region % 10 < 7 { 30 } else { 0 }, 0)));
        settle(&mut advisor);
        assert!(!advisor.is_all());
        assert_eq!(in_regions(advisor.advised()).len(), 16, "seven of every ten");
        // Enough for all only with a margin.
        (0..8).for_each(|_| note_all(&mut advisor, |region| look(if region % 10 < 8 { 30 } else { 0 }, 0)));
        settle(&mut advisor);
        assert!(!advisor.is_all());
    }

    #[test]
    fn a_few_regions_say_nothing_of_the_rest() {
        let mut advisor = Advisor::new(layout(100), RANGES_MAX);
        (0..15).for_each(|region| advisor.note(region, &look(100, 0)));
        assert_eq!(settle(&mut advisor).1, [0..15]);
        let mut small = Advisor::new(layout(2), RANGES_MAX);
        (0..2).for_each(|region| small.note(region, &look(100, 0)));
        settle(&mut small);
        assert!(small.is_all(), "unless they are all there is");
    }

    #[test]
    fn what_churns_is_given_up_and_the_stable_half_stays() {
        let mut advisor = Advisor::new(layout(100), RANGES_MAX);
        note_all(&mut advisor, |_| look(470, 0));
        settle(&mut advisor);
        assert_eq!(in_regions(advisor.advised()), [0..100]);
        let churns = |region: u32| !region.is_multiple_of(2);
        let mut passes = Vec::new();
        for pass in 0..500 {
            let now: Vec<bool> = (0..100).map(|region| churns(region) && advisor.is_advised(region)).collect();
            // What is not merged does not break, and is never the same at two visits.
            note_all(&mut advisor, |region| match (churns(region), now[region as usize]) {
                (true, true) => look(0, 300),
                (true, false) => look(0, 0),
                (false, _) => look(470, 0),
            });
            let (unadvise, advise) = settle(&mut advisor);
            if !unadvise.is_empty() || !advise.is_empty() {
                passes.push((pass, unadvise.len(), advise.len()));
            }
        }
        assert_eq!(passes, [(1, 50, 0)], "at the second pass, once and for all");
        assert!((0..100).all(|region| advisor.is_advised(region) != churns(region)));
    }

    #[test]
    fn too_many_ranges_are_joined_where_the_gaps_are_smallest() {
        let mut advisor = Advisor::new(layout(64), 3);
        let worth = [0, 2, 10, 13, 30, 50, 51];
        note_all(&mut advisor, |region| look(if worth.contains(&region) { 100 } else { 0 }, 0));
        assert_eq!(settle(&mut advisor), (vec![], vec![0..14, 30..31, 50..52]));
        // What churns is not joined over: the shortest range goes.
        let mut advisor = Advisor::new(layout(64), 1);
        note_all(&mut advisor, |region| match region {
            1 => look(0, 5),
            region if worth.contains(&region) => look(100, 0),
            _ => look(0, 0),
        });
        assert_eq!(settle(&mut advisor), (vec![], vec![2..52]));
    }

    #[derive(Debug, Clone, Copy)]
    enum Kind {
        Rich,
        Poor,
        Churning,
    }

    fn kinds() -> impl Strategy<Value = Vec<Kind>> {
        let kind = prop_oneof![Just(Kind::Rich), Just(Kind::Poor), Just(Kind::Churning)];
        proptest::collection::vec(kind, 20..200)
    }

    proptest! {
        #[test]
        fn ranges_are_never_too_many_and_never_churn(
            kinds in kinds(), hole in 1..19u64, ranges_max in 2..20usize, again in kinds(),
        ) {
            let count = kinds.len() as u64;
            let ram = Layout::new(&[0..hole * REGION_PAGES, (hole + 5) * REGION_PAGES..(count + 5) * REGION_PAGES]);
            let mut advisor = Advisor::new(ram, ranges_max);
            for kinds in [kinds, again] {
                let look_at = |region: u32| match kinds.get(region as usize) {
                    Some(Kind::Rich) => look(100, 0),
                    Some(Kind::Churning) => look(0, 100),
                    Some(Kind::Poor) | None => look(0, 0),
                };
                (0..64).for_each(|_| note_all(&mut advisor, look_at));
                settle(&mut advisor);
                prop_assert!(advisor.advised().len() <= ranges_max);
                for region in 0..advisor.layout.count() {
                    let is_barred = advisor.standings[region as usize].is_barred();
                    prop_assert!(!is_barred || !advisor.is_advised(region));
                }
                let worth = runs(&advisor.layout, |region| advisor.standings[region].is_worth());
                if worth.len() <= ranges_max && !advisor.is_all() {
                    let advised = runs(&advisor.layout, |region| advisor.advised[region]);
                    prop_assert_eq!(advised, worth, "just those that are worth it");
                }
            }
        }
    }
}
