//! When ksmd is told of pages that wait: once no more come. Pure.
//!
//! Members find what to advise bit by bit, and ksmd merges a page when it sees its equal the second time: passes over a part
//! of what is to come merge little, and cost as much a page as those that merge it all.

use std::time::Duration;

/// Less than so many pages more, or this part of those there are, do not count as growth: as in [`super::regulator`].
const GROWTH_PAGES: u64 = 256;
const GROWTH_PART: u64 = 16;

/// What waits has come when there was no growth for so long: a few looks, between which members report.
const QUIET: Duration = Duration::from_secs(3);

/// Growth is waited for no longer than this.
const PATIENCE: Duration = Duration::from_secs(15);

/// Pages that wait, as ksmd is to know of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Gathering {
    told_pages: u64,
    last_pages: u64,
    /// When growth began that was not told, and when it was seen last.
    growth: Option<(Duration, Duration)>,
}

impl Gathering {
    /// After another look, at a time since any beginning: how many pages wait that ksmd should know of.
    pub fn look(&mut self, time: Duration, waiting_pages: u64) -> u64 {
        let least_pages = self.last_pages.saturating_add(GROWTH_PAGES.max(self.last_pages / GROWTH_PART));
        if waiting_pages >= least_pages {
            let began = self.growth.map_or(time, |(began, _)| began);
            self.growth = Some((began, time));
        }
        self.last_pages = waiting_pages;
        let is_coming = self
            .growth
            .is_some_and(|(began, grew)| time.saturating_sub(grew) < QUIET && time.saturating_sub(began) < PATIENCE);
        if waiting_pages <= self.told_pages || !is_coming {
            self.told_pages = waiting_pages;
        }
        if !is_coming {
            self.growth = None;
        }
        self.told_pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of so many pages, one look a second from this one on.
    fn looks(gathering: &mut Gathering, first: u64, pages: &[u64]) -> Vec<u64> {
        let look = |(second, pages): (u64, &u64)| gathering.look(Duration::from_secs(second), *pages);
        (first..).zip(pages).map(look).collect()
    }

    #[test]
    fn growth_is_told_when_it_is_over() {
        let mut gathering = Gathering::default();
        assert_eq!(looks(&mut gathering, 0, &[0, 1000, 3000, 3000, 6000, 6100]), [0; 6]);
        assert_eq!(looks(&mut gathering, 6, &[6100, 6200, 6300]), [0, 6200, 6300]);
        // What is merged meanwhile is told at once, and what is new is not.
        assert_eq!(looks(&mut gathering, 9, &[5000, 2000, 4000, 3000, 1000]), [5000, 2000, 2000, 2000, 1000]);
    }

    #[test]
    fn what_grows_for_ever_is_told_now_and_then() {
        let mut gathering = Gathering::default();
        let pages: Vec<u64> = (1..32).map(|second| second * second * 1000).collect();
        let mut told = looks(&mut gathering, 0, &pages);
        assert_eq!((told[14], told[15]), (0, 256_000));
        told.dedup();
        assert_eq!(told, [0, 256_000], "twice in half a minute");
    }

    #[test]
    fn a_clock_that_steps_back_breaks_nothing() {
        let mut gathering = Gathering::default();
        for (time, pages) in [(1_000_000, u64::MAX), (3, 0), (0, u64::MAX), (2_000_000, u64::MAX)] {
            gathering.look(Duration::from_secs(time), pages);
        }
        assert_eq!(gathering.told_pages, u64::MAX);
    }
}
