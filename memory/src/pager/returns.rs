//! Zero pages that were given back and touched again: giving one back saves a page for as long as it stays away, and costs the
//! guest a fault when it does not. Pure.
//!
//! A guest that only reads zero pages would have all of them fault again after every scan. So one that comes back too soon is
//! kept for a time, twice as long each time; meanwhile it can be merged, or leave like any other.

/// A page that stays away for so many seconds was worth giving back; one that does not is kept for twice that, at first.
const WORTHWHILE_SECONDS: u16 = 10;

/// The longest a page is kept is this many times doubled: 21 minutes.
const LEVEL_MAX: u16 = 7;

/// An entry: the level in the upper bits, whether the page was given back or is kept, and since when, in seconds. That wraps
/// after 68 minutes: whoever comes then is taken for one that was quick, at most.
const LEVEL_SHIFT: u16 = 13;
const GIVEN_BACK: u16 = 1 << 12;
const SECONDS: u16 = GIVEN_BACK - 1;

/// What is remembered of each page, in 2 bytes; memory is taken where zero pages are found.
#[derive(Debug)]
pub(super) struct Returns {
    pages: Vec<u16>,
}

impl Returns {
    pub fn new(pages: u64) -> Self {
        Self { pages: vec![0; pages as usize] }
    }

    /// Whether a page that was found zero, so many seconds after any beginning, is to be given back; it is taken to be so then.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn gives_back(&mut self, gfn: u64, seconds: u64) -> bool {
        let entry = &mut self.pages[gfn as usize];
        let now = (seconds % (u64::from(SECONDS) + 1)) as u16;
        let (level, passed) = (*entry >> LEVEL_SHIFT, now.wrapping_sub(*entry) & SECONDS);
        let (level, is_given_back) = match *entry {
            0 => (0, true),
            was if was & GIVEN_BACK == 0 => (level, passed >= keep_seconds(level)),
            _ if passed >= keep_seconds(level) => (level.saturating_sub(1), true),
            _ => ((level + 1).min(LEVEL_MAX), false),
        };
        if is_given_back {
            *entry = level << LEVEL_SHIFT | GIVEN_BACK | now;
        } else if *entry & GIVEN_BACK != 0 {
            *entry = level << LEVEL_SHIFT | now;
        }
        is_given_back
    }
}

/// How long a page of a level is kept, and how long it must stay away to have been worth it.
fn keep_seconds(level: u16) -> u16 {
    WORTHWHILE_SECONDS << level
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// When a page is given back that is found zero in each of these seconds.
    fn given_back(found: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut returns = Returns::new(1);
        found.into_iter().filter(|&second| returns.gives_back(0, second)).collect()
    }

    #[test]
    fn a_page_that_is_always_there_again_is_given_back_ever_more_rarely() {
        assert_eq!(given_back(0..1300), [0, 21, 62, 143, 304, 625, 1266]);
        let late = given_back(3000..12_000);
        assert!(late.windows(2).skip(7).all(|pair| pair[1] - pair[0] == 1281), "{late:?}");
    }

    #[test]
    fn a_page_that_stays_away_is_given_back_at_once() {
        assert_eq!(given_back([5, 15, 25, 100]), [5, 15, 25, 100]);
        // Quick twice, and slow from then on: forgiven step by step.
        assert_eq!(given_back([0, 1, 21, 22, 62, 162, 182, 192]), [0, 21, 62, 162, 182, 192]);
    }

    #[test]
    fn pages_are_told_apart() {
        let mut returns = Returns::new(2);
        assert!(returns.gives_back(0, 0) && returns.gives_back(1, 0));
        assert!(!returns.gives_back(0, 1) && returns.gives_back(1, 11));
    }

    proptest! {
        /// However often it is found, ten seconds are between two times.
        #[test]
        fn faults_are_few(found in proptest::collection::btree_set(0..4000_u64, 0..1000)) {
            prop_assert!(given_back(found).windows(2).all(|pair| pair[1] - pair[0] >= 10));
        }

        #[test]
        fn any_time_is_taken(times in proptest::collection::vec(any::<u64>(), 0..50)) {
            given_back(times);
        }
    }
}
