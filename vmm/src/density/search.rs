//! The largest number that passes, where those above one that fails fail too.

/// A step from a number that is believed to be near is this part of it.
const NEAR_PART: usize = 8;

/// What is looked for around such a number is found to within this part of it: 2 %, where a trial takes minutes.
const NEAR_PRECISION: usize = 48;

/// A search in steps that double, up or down from the first number; then by halving what is left between the largest that
/// passed and the least that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    first: usize,
    step: usize,
    /// What is found is the largest to within this part of it; `usize::MAX` for the very number.
    precision_part: usize,
    most: usize,
    passed: usize,
    failed: Option<usize>,
}

impl Search {
    /// From `first` on, at least 1, to at most `most`: as many again, twice as many again, and so on.
    pub fn new(first: usize, most: usize) -> Self {
        let first = first.clamp(1, most.max(1));
        Self { first, step: first, precision_part: usize::MAX, most: most.max(1), passed: 0, failed: None }
    }

    /// As [`new`](Self::new) where the number is believed to be near `first`; to within 2 % of what it is.
    pub fn near(first: usize, most: usize) -> Self {
        let search = Self::new(first, most);
        Self { step: (search.first / NEAR_PART).max(1), precision_part: NEAR_PRECISION, ..search }
    }

    /// What to try next; `None` when it is found.
    pub fn next(&self) -> Option<usize> {
        match self.failed {
            None if self.passed == 0 => Some(self.first),
            None => (self.passed < self.most).then(|| (self.passed + self.step).min(self.most)),
            Some(failed) if self.passed == 0 && self.step < failed / 2 => Some(failed - self.step),
            Some(failed) => (failed - self.passed > self.precision()).then(|| self.passed + (failed - self.passed) / 2),
        }
    }

    fn precision(&self) -> usize {
        (self.passed / self.precision_part).max(1)
    }

    /// Takes how `number` did.
    pub fn take(&mut self, number: usize, has_passed: bool) {
        if number != self.first {
            self.step *= 2;
        }
        if has_passed {
            self.passed = self.passed.max(number);
        } else {
            self.failed = Some(self.failed.map_or(number, |failed| failed.min(number)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(first: usize, most: usize, limit: usize) -> (usize, Vec<usize>) {
        found(Search::new(first, most), limit)
    }

    fn found(mut search: Search, limit: usize) -> (usize, Vec<usize>) {
        let mut tried = Vec::new();
        while let Some(number) = search.next() {
            assert!(tried.len() < 20 && !tried.contains(&number), "{tried:?}");
            search.take(number, number <= limit);
            tried.push(number);
        }
        (search.passed, tried)
    }

    #[test]
    fn it_doubles_and_halves() {
        assert_eq!(search(4, 256, 21), (21, vec![4, 8, 16, 32, 24, 20, 22, 21]));
        assert_eq!(search(4, 256, 2), (2, vec![4, 2, 3]));
        assert_eq!(search(4, 256, 0), (0, vec![4, 2, 1]));
        assert_eq!(search(100, 256, 1000), (256, vec![100, 200, 256]));
        assert_eq!(search(0, 0, 5), (1, vec![1]));
    }

    #[test]
    fn it_looks_around_what_is_near() {
        let near = |limit| found(Search::near(48, 256), limit);
        assert_eq!(near(53), (53, vec![48, 54, 51, 52, 53]));
        assert_eq!(near(47), (47, vec![48, 42, 45, 46, 47]));
        assert_eq!(near(80), (80, vec![48, 54, 66, 90, 78, 84, 81, 79, 80]));
        assert_eq!(near(26), (26, vec![48, 42, 30, 15, 22, 26, 28, 27]));
        assert_eq!(found(Search::near(3, 256), 4), (4, vec![3, 4, 6, 5]));
        // Within 2.
        assert_eq!(found(Search::near(100, 256), 120), (119, vec![100, 112, 136, 124, 118, 121, 119]));
    }

    #[test]
    fn it_finds_every_limit() {
        for limit in 0..=70 {
            for first in [1, 7, 64] {
                assert_eq!(search(first, 64, limit).0, limit.min(64));
                assert_eq!(found(Search::near(first, 64), limit).0, limit.min(64));
            }
        }
    }
}
