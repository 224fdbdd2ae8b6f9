//! In which order guest RAM is scanned, and how often each part of it. Pure.
//!
//! After UKSM (Xia et al., "UKSM: Swift Memory Deduplication via Hierarchical and Adaptive Memory Region Distilling",
//! FAST 2018): regions have levels, those that yield rise and those that do not, or whose pages do not last, sink; each
//! level is visited twice as often as the one below. Where UKSM divides the CPU among levels, here time goes in beats: in
//! each the top level is visited once, the one below in every second, the bottom in every sixteenth. A region's turn
//! follows from its number, spread so that those of one beat lie evenly over RAM. So none waits for more than sixteen
//! beats, whatever the others do; all that yield alike are visited alike; and a level is all there is to remember, one
//! byte for 2 MiB.
//!
//! Regions begin at the bottom: the first sixteen beats see everything once, each beat a sample of the whole.

use std::ops::Range;

use super::layout::Layout;

/// How many levels there are. The bottom is level 0.
pub const LEVELS: usize = 5;

const TOP: u8 = LEVELS as u8 - 1;

/// Beats in which every region is visited at least once.
pub const ROUND_BEATS: u64 = 1 << TOP;

/// A visit that finds this part of the scanned pages lets its region rise: half of what the kernel's items of all its pages
/// cost, as there may be more where that was.
const RISE_PART: u32 = 128;

/// A region of guest RAM and its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its number.
    pub number: u32,
    /// Its pages.
    pub gfns: Range<u64>,
}

/// What visiting a region has brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Yield {
    /// Pages that were looked at.
    pub scanned_pages: u32,
    /// Of those, zero pages that were freed.
    pub zero_pages: u32,
    /// Of those, pages that turned out to have copies and were not known to before.
    pub duplicate_pages: u32,
    /// Of those, pages that had another content at the visit before.
    pub volatile_pages: u32,
}

/// The regions of a guest and when each is visited.
#[derive(Debug, Clone)]
pub struct Regions {
    layout: Layout,
    levels: Vec<u8>,
    beat: u64,
    /// Regions below this have had their chance in this beat.
    at: u32,
}

impl Regions {
    /// All regions at the bottom.
    pub fn new(layout: Layout) -> Self {
        Self { levels: vec![0; layout.count() as usize], layout, beat: 0, at: 0 }
    }

    /// The next region to visit; `None` where there are none.
    #[expect(clippy::should_implement_trait, reason = "it does not end, and regions rise and sink between two of them")]
    pub fn next(&mut self) -> Option<Region> {
        if self.levels.is_empty() {
            return None;
        }
        // Within a round each region has its turn, so this ends.
        loop {
            if self.at as usize == self.levels.len() {
                self.at = 0;
                self.beat += 1;
            }
            let number = self.at;
            self.at += 1;
            if is_due(number, self.levels[number as usize], self.beat) {
                return Some(Region { number, gfns: self.layout.gfns(number) });
            }
        }
    }

    /// Takes note of what a visit has brought, once that is known.
    ///
    /// # Panics
    /// If there is no such region.
    pub fn note(&mut self, number: u32, found: Yield) {
        let level = &mut self.levels[number as usize];
        *level = level_after(*level, found);
    }

    /// The running beat, from 0. All regions have been visited once at the end of [`ROUND_BEATS`] of them.
    pub fn beat(&self) -> u64 {
        self.beat
    }

    /// How many regions are at each level.
    pub fn levels(&self) -> [u32; LEVELS] {
        let mut counts = [0; LEVELS];
        self.levels.iter().for_each(|level| counts[usize::from(*level)] += 1);
        counts
    }
}

/// Whether it is a region's turn.
fn is_due(number: u32, level: u8, beat: u64) -> bool {
    // The golden ratio spreads numbers in a row evenly over the turns of any level (Fibonacci hashing).
    let turn = u64::from(number.wrapping_mul(0x9e37_79b1) >> (u32::BITS - u32::from(TOP)));
    beat.wrapping_add(turn).is_multiple_of(ROUND_BEATS >> level)
}

/// Where a visit leaves its region.
fn level_after(level: u8, found: Yield) -> u8 {
    let Yield { scanned_pages, zero_pages, duplicate_pages, volatile_pages } = found;
    let found_pages = zero_pages.saturating_add(duplicate_pages);
    // What is merged there would not stay so.
    let lasts = volatile_pages <= scanned_pages / 2;
    if found_pages == 0 || !lasts {
        level.saturating_sub(1)
    } else if u64::from(found_pages) * u64::from(RISE_PART) >= scanned_pages.into() {
        (level + 1).min(TOP)
    } else {
        level
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::REGION_PAGES;
    use super::*;

    const RICH: Yield = Yield { scanned_pages: 512, zero_pages: 0, duplicate_pages: 256, volatile_pages: 0 };
    const BARREN: Yield = Yield { duplicate_pages: 0, ..RICH };
    const VOLATILE: Yield = Yield { volatile_pages: 300, ..RICH };

    fn regions(count: u32) -> Regions {
        Regions::new(Layout::new(&[0..u64::from(count) * REGION_PAGES]))
    }

    /// Visits until so many more beats are over; how often each region was visited.
    fn run(regions: &mut Regions, beats: u64, yields: impl Fn(u32) -> Yield) -> Vec<u32> {
        let mut visits = vec![0; regions.levels.len()];
        let end = regions.beat + beats;
        loop {
            let region = regions.next().unwrap();
            if regions.beat >= end {
                // That was a visit of the beat after.
                regions.at = 0;
                return visits;
            }
            visits[region.number as usize] += 1;
            regions.note(region.number, yields(region.number));
        }
    }

    #[test]
    fn the_first_round_sees_everything_once_in_samples_of_the_whole() {
        let mut regions = regions(1024);
        let mut seen = vec![0; 1024];
        for beat in 0..ROUND_BEATS {
            let visits = run(&mut regions, 1, |_| BARREN);
            let count: u32 = visits.iter().sum();
            assert!((60..=68).contains(&count), "beat {beat}: {count}");
            for (part, visits) in visits.chunks(128).enumerate() {
                assert!(visits.iter().sum::<u32>() >= 6, "beat {beat}: part {part} is left out");
            }
            seen.iter_mut().zip(visits).for_each(|(seen, visits)| *seen += visits);
        }
        assert_eq!(seen, [1; 1024]);
    }

    #[test]
    fn each_level_is_visited_twice_as_often_as_the_one_below() {
        let mut regions = regions(100);
        (0..100).for_each(|number| regions.levels[number] = (number % LEVELS) as u8);
        let mut visits = vec![0u32; 100];
        for _ in 0..50 {
            // Whatever comes before the running round.
            let levels = regions.levels.clone();
            let round = run(&mut regions, ROUND_BEATS, |_| Yield { duplicate_pages: 1, ..RICH });
            assert_eq!(regions.levels, levels, "a little keeps the level");
            visits.iter_mut().zip(round).for_each(|(visits, more)| *visits += more);
        }
        for (number, visits) in visits.iter().enumerate() {
            assert_eq!(*visits, 50 << (number % LEVELS), "region {number}");
        }
    }

    #[test]
    fn where_a_tenth_yields_most_visits_go_there() {
        let mut regions = regions(1000);
        let yields = |number: u32| if number.is_multiple_of(10) { RICH } else { BARREN };
        run(&mut regions, 2 * ROUND_BEATS, yields);
        assert_eq!(regions.levels(), [900, 0, 0, 0, 100]);
        let visits = run(&mut regions, ROUND_BEATS, yields);
        let rich: u32 = visits.iter().step_by(10).sum();
        assert_eq!((rich, visits.iter().sum()), (1600, 2500));
    }

    #[test]
    fn where_all_yield_alike_all_are_visited_alike() {
        let mut regions = regions(300);
        // Some more, some less.
        let yields = |number: u32| Yield { duplicate_pages: 20 + number % 50, ..RICH };
        run(&mut regions, 2 * ROUND_BEATS, yields);
        assert_eq!(regions.levels(), [0, 0, 0, 0, 300]);
        assert_eq!(run(&mut regions, 7, yields), [7; 300]);
    }

    #[test]
    fn what_does_not_last_sinks_and_what_changes_its_ways_is_followed() {
        let mut regions = regions(50);
        run(&mut regions, 2 * ROUND_BEATS, |_| RICH);
        let half = |number: u32| if number < 25 { VOLATILE } else { RICH };
        run(&mut regions, 2 * ROUND_BEATS, half);
        assert_eq!(regions.levels(), [25, 0, 0, 0, 25]);
        // The bottom is found within a round, and the rest within less.
        run(&mut regions, 2 * ROUND_BEATS, |number| half(49 - number));
        assert_eq!(
            (regions.levels[..25].iter().all(|level| *level == TOP), regions.levels[25..].to_vec()),
            (true, vec![0; 25])
        );
    }

    #[test]
    fn levels_follow_from_the_yield() {
        let found = |scanned_pages, zero_pages, duplicate_pages, volatile_pages| {
            level_after(2, Yield { scanned_pages, zero_pages, duplicate_pages, volatile_pages })
        };
        assert_eq!(found(512, 4, 0, 0), 3);
        assert_eq!(found(512, 2, 2, 0), 3);
        assert_eq!(found(512, 1, 2, 0), 2, "not worth more");
        assert_eq!(found(512, 0, 0, 0), 1);
        assert_eq!(found(0, 0, 0, 0), 1, "nothing is there");
        assert_eq!(found(512, 0, 256, 256), 3);
        assert_eq!(found(512, 0, 255, 257), 1);
        assert_eq!((level_after(0, BARREN), level_after(TOP, RICH)), (0, TOP));
        assert_eq!(found(u32::MAX, u32::MAX, u32::MAX, u32::MAX), 1);
    }

    #[test]
    fn no_ram_has_no_regions() {
        assert_eq!(Regions::new(Layout::new(&[])).next(), None);
        assert_eq!(regions(1).next(), Some(Region { number: 0, gfns: 0..512 }));
    }

    fn any_yield() -> impl Strategy<Value = Yield> {
        prop_oneof![Just(RICH), Just(BARREN), Just(VOLATILE), Just(Yield { duplicate_pages: 1, ..RICH })]
    }

    proptest! {
        #[test]
        fn nobody_waits_for_more_than_a_round(
            count in 1..80u32, yields in proptest::collection::vec(any_yield(), 1..1000), late in 0..10usize,
        ) {
            let mut regions = regions(count);
            let mut last = vec![0; count as usize];
            // What a visit brought is known only so many visits later.
            let mut open = std::collections::VecDeque::new();
            for found in yields {
                let region = regions.next().unwrap();
                last[region.number as usize] = regions.beat();
                prop_assert!(last.iter().all(|last| regions.beat() - last <= ROUND_BEATS));
                open.push_back((region.number, found));
                if open.len() > late {
                    let (number, found) = open.pop_front().unwrap();
                    regions.note(number, found);
                }
            }
        }
    }
}
