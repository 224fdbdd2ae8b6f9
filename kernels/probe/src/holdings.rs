//! The pages that are not filled: which are free, which are clean and which the balloon holds.
//!
//! Fills take the lowest pages, so what is filled is always pages 0 up to a border; this is everything above it, as
//! a few runs. The balloon takes from the top: first freed pages, which still cost the host memory, then clean ones;
//! filled pages never.

/// Runs that can be told apart. The balloon stops short rather than need more.
const MAX_RUNS: usize = 512;
/// Runs kept back from the balloon: taking pages back and freeing each need one at a time more, and `set` two for a
/// moment.
const SPARE_RUNS: usize = 6;

/// What the host has behind a page that is not filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// Never touched, reported, or taken back from the balloon: nothing.
    Clean,
    /// Freed: still the memory that was filled.
    Freed,
    /// In the balloon: nothing, and the host counts on it.
    Ballooned,
}

/// Consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// The first page.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Pages {
    /// The page after the last.
    pub const fn end(self) -> u32 {
        self.first + self.count
    }
}

/// A run reaches from the end of the one before it up to `end`.
#[derive(Debug, Clone, Copy)]
struct Run {
    end: u32,
    holding: Holding,
}

/// All pages above the filled ones, as runs of equal holding; neighbours differ.
#[derive(Debug)]
pub struct Holdings {
    runs: [Run; MAX_RUNS],
    count: usize,
    /// The border: pages below it are filled.
    filled: u32,
    pages: u32,
}

impl Holdings {
    /// A pool of `pages` pages, all clean.
    pub const fn new(pages: u32) -> Self {
        let mut runs = [Run { end: 0, holding: Holding::Clean }; MAX_RUNS];
        runs[0] = Run { end: pages, holding: Holding::Clean };
        Self { runs, count: if pages == 0 { 0 } else { 1 }, filled: 0, pages }
    }

    /// How many pages are held so.
    pub fn count(&self, holding: Holding) -> u32 {
        self.runs().filter(|run| run.1 == holding).map(|run| run.0.count).sum()
    }

    /// The lowest run held so, at most `limit` pages of it.
    pub fn lowest(&self, holding: Holding, limit: u32) -> Option<Pages> {
        let (pages, _) = self.runs().find(|run| run.1 == holding)?;
        Some(Pages { count: pages.count.min(limit), ..pages })
    }

    /// The top of the highest run held so, at most `limit` pages of it.
    pub fn highest(&self, holding: Holding, limit: u32) -> Option<Pages> {
        let (pages, _) = self.runs().filter(|run| run.1 == holding).last()?;
        let count = pages.count.min(limit);
        Some(Pages { first: pages.end() - count, count })
    }

    /// The next pages for the balloon: freed ones first, then clean ones. `None` also when there is no room to note it.
    pub fn for_balloon(&self, limit: u32) -> Option<Pages> {
        if self.count + SPARE_RUNS > MAX_RUNS {
            return None;
        }
        self.highest(Holding::Freed, limit).or_else(|| self.highest(Holding::Clean, limit))
    }

    /// Notes what `pages`, part of one run, are held as from now on.
    pub fn set(&mut self, pages: Pages, holding: Holding) {
        let Some(at) = self.runs[..self.count].iter().position(|run| run.end >= pages.end()) else { return };
        let start = if at == 0 { self.filled } else { self.runs[at - 1].end };
        let old = self.runs[at];
        if pages.count == 0 || pages.first < start || old.holding == holding {
            return;
        }
        // From the back, so that positions stay right.
        if pages.end() < old.end {
            self.insert(at, pages.end(), holding);
        } else {
            self.runs[at].holding = holding;
        }
        if pages.first > start {
            self.insert(at, pages.first, old.holding);
        }
        self.merge();
    }

    /// Moves the border up over `count` pages, none of them in the balloon; false, and nothing changes, if they are not
    /// there.
    #[must_use]
    pub fn fill(&mut self, count: u32) -> bool {
        let Some(border) = self.filled.checked_add(count).filter(|&border| border <= self.pages) else { return false };
        let ballooned = |run: &(Pages, Holding)| run.1 == Holding::Ballooned && run.0.first < border;
        if self.runs().any(|run| ballooned(&run)) {
            return false;
        }
        let gone = self.runs[..self.count].iter().take_while(|run| run.end <= border).count();
        self.runs.copy_within(gone..self.count, 0);
        self.count -= gone;
        self.filled = border;
        true
    }

    /// Moves the border down over `count` pages, which become freed; at most all that is filled. Returns them.
    pub fn free(&mut self, count: u32) -> Pages {
        let count = count.min(self.filled);
        let freed = Pages { first: self.filled - count, count };
        if count > 0 {
            let old_border = self.filled;
            self.filled = freed.first;
            if self.count == 0 || self.runs[0].holding != Holding::Freed {
                self.insert(0, old_border, Holding::Freed);
            }
        }
        freed
    }

    fn runs(&self) -> impl Iterator<Item = (Pages, Holding)> {
        let starts = core::iter::once(self.filled).chain(self.runs.iter().map(|run| run.end));
        self.runs[..self.count]
            .iter()
            .zip(starts)
            .map(|(run, first)| (Pages { first, count: run.end - first }, run.holding))
    }

    fn insert(&mut self, at: usize, end: u32, holding: Holding) {
        self.runs.copy_within(at..self.count, at + 1);
        self.runs[at] = Run { end, holding };
        self.count += 1;
    }

    fn merge(&mut self) {
        let mut kept = 0;
        for at in 0..self.count {
            if kept > 0 && self.runs[kept - 1].holding == self.runs[at].holding {
                self.runs[kept - 1].end = self.runs[at].end;
            } else {
                self.runs[kept] = self.runs[at];
                kept += 1;
            }
        }
        self.count = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_balloon_takes_freed_pages_first_and_filled_ones_never() {
        let mut holdings = Holdings::new(1_000);
        assert!(holdings.fill(600));
        assert_eq!(holdings.free(100), Pages { first: 500, count: 100 });
        let mut taken = Vec::new();
        while let Some(pages) = holdings.for_balloon(64) {
            holdings.set(pages, Holding::Ballooned);
            taken.push(pages.first);
        }
        assert_eq!(taken[..3], [536, 500, 936]);
        assert_eq!((holdings.count(Holding::Ballooned), holdings.lowest(Holding::Freed, 9)), (500, None));
        assert!(!holdings.fill(1), "ballooned pages must come back first");
        let back = holdings.lowest(Holding::Ballooned, 10).expect("the balloon is full");
        assert_eq!(back, Pages { first: 500, count: 10 });
        holdings.set(back, Holding::Clean);
        assert!(holdings.fill(10) && !holdings.fill(1));
        assert!(!holdings.fill(u32::MAX));
    }

    #[test]
    fn a_balloon_that_would_need_too_many_runs_stops_short() {
        let mut holdings = Holdings::new(100_000);
        assert!(holdings.fill(50_000));
        holdings.free(40_000);
        // Two pages in, one out leaves a gap every time.
        let mut rounds = 0;
        while let Some(pages) = holdings.for_balloon(2) {
            holdings.set(pages, Holding::Ballooned);
            holdings.set(Pages { count: 1, ..pages }, Holding::Clean);
            rounds += 1;
        }
        assert!(rounds > MAX_RUNS / 3 && holdings.count <= MAX_RUNS, "{rounds} rounds, {} runs", holdings.count);
        let ballooned = holdings.count(Holding::Ballooned);
        holdings.free(5_000);
        let mut back = 0;
        while let Some(pages) = holdings.lowest(Holding::Ballooned, 1) {
            holdings.set(pages, Holding::Clean);
            assert!(holdings.count <= MAX_RUNS);
            back += 1;
        }
        assert_eq!((back, ballooned), (ballooned, rounds as u32));
        assert!(holdings.for_balloon(2).is_some());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Fill(u32),
        Free(u32),
        Inflate(u32),
        Deflate(u32),
        Report,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40u32).prop_map(Step::Fill),
            (0..40u32).prop_map(Step::Free),
            (1..20u32).prop_map(Step::Inflate),
            (1..20u32).prop_map(Step::Deflate),
            Just(Step::Report),
        ]
    }

    proptest! {
        /// Against one note a page.
        #[test]
        fn runs_say_the_same_as_one_note_a_page(steps in prop::collection::vec(step(), 1..400)) {
            const PAGES: u32 = 2_000;
            let mut holdings = Holdings::new(PAGES);
            let (mut filled, mut notes) = (0u32, vec![Holding::Clean; PAGES as usize]);
            for step in steps {
                let range = |pages: Pages| pages.first as usize..pages.end() as usize;
                match step {
                    Step::Fill(count) => {
                        let end = (filled + count).min(PAGES);
                        let possible = filled + count <= PAGES
                            && !notes[filled as usize..end as usize].contains(&Holding::Ballooned);
                        prop_assert_eq!(holdings.fill(count), possible);
                        if possible { filled = end }
                    }
                    Step::Free(count) => {
                        let pages = holdings.free(count);
                        prop_assert_eq!(pages.end(), filled);
                        filled = pages.first;
                        notes[range(pages)].fill(Holding::Freed);
                    }
                    Step::Inflate(count) => if let Some(pages) = holdings.for_balloon(count) {
                        let free = &notes[filled as usize..];
                        let kind = if free.contains(&Holding::Freed) { Holding::Freed } else { Holding::Clean };
                        prop_assert!(notes[range(pages)].iter().all(|&note| note == kind));
                        holdings.set(pages, Holding::Ballooned);
                        notes[range(pages)].fill(Holding::Ballooned);
                    },
                    Step::Deflate(count) => if let Some(pages) = holdings.lowest(Holding::Ballooned, count) {
                        prop_assert!(notes[range(pages)].iter().all(|&note| note == Holding::Ballooned));
                        holdings.set(pages, Holding::Clean);
                        notes[range(pages)].fill(Holding::Clean);
                    },
                    Step::Report => if let Some(pages) = holdings.lowest(Holding::Freed, u32::MAX) {
                        holdings.set(pages, Holding::Clean);
                        notes[range(pages)].fill(Holding::Clean);
                    },
                }
                prop_assert!(holdings.count <= MAX_RUNS);
                for holding in [Holding::Clean, Holding::Freed, Holding::Ballooned] {
                    let expected = notes[filled as usize..].iter().filter(|&&note| note == holding).count();
                    prop_assert_eq!(holdings.count(holding) as usize, expected);
                }
            }
        }
    }
}
