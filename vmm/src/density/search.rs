//! The largest number that passes, where those above one that fails fail too.

/// A search by doubling, then by halving what is left between the largest that passed and the least that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    first: usize,
    most: usize,
    passed: usize,
    failed: Option<usize>,
}

impl Search {
    /// From `first` on, at least 1, to at most `most`.
    pub fn new(first: usize, most: usize) -> Self {
        Self { first: first.clamp(1, most.max(1)), most: most.max(1), passed: 0, failed: None }
    }

    /// What to try next; `None` when it is found.
    pub fn next(&self) -> Option<usize> {
        match self.failed {
            None if self.passed == 0 => Some(self.first),
            None => (self.passed < self.most).then(|| (2 * self.passed).min(self.most)),
            Some(failed) => (failed - self.passed > 1).then(|| self.passed + (failed - self.passed) / 2),
        }
    }

    /// Takes how `number` did.
    pub fn take(&mut self, number: usize, has_passed: bool) {
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
        let (mut search, mut tried) = (Search::new(first, most), Vec::new());
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
    fn it_finds_every_limit() {
        for limit in 0..=70 {
            for first in [1, 7, 64] {
                assert_eq!(search(first, 64, limit).0, limit.min(64));
            }
        }
    }
}
