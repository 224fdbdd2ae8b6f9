//! One bit a page: pages not worth trying again.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A set of pages. Each bit is a hint of its own, so relaxed operations do.
#[derive(Debug)]
pub(super) struct Marks {
    words: Box<[AtomicU64]>,
    count: AtomicU64,
}

impl Marks {
    pub fn new(pages: u64) -> Self {
        // Zeroed memory that was never written costs nothing.
        Self { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), count: AtomicU64::new(0) }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn contains(&self, gfn: u64) -> bool {
        self.word(gfn).load(Ordering::Relaxed) & Self::bit(gfn) != 0
    }

    pub fn insert(&self, gfn: u64) {
        if self.word(gfn).fetch_or(Self::bit(gfn), Ordering::Relaxed) & Self::bit(gfn) == 0 {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn remove(&self, gfn: u64) {
        if self.contains(gfn) && self.word(gfn).fetch_and(!Self::bit(gfn), Ordering::Relaxed) & Self::bit(gfn) != 0 {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub fn remove_all(&self, gfns: Range<u64>) {
        if self.count() > 0 {
            gfns.for_each(|gfn| self.remove(gfn));
        }
    }

    pub fn clear(&self) {
        if self.count() == 0 {
            return;
        }
        for word in &self.words {
            let before = word.swap(0, Ordering::Relaxed);
            self.count.fetch_sub(before.count_ones().into(), Ordering::Relaxed);
        }
    }

    fn word(&self, gfn: u64) -> &AtomicU64 {
        &self.words[(gfn / 64) as usize]
    }

    fn bit(gfn: u64) -> u64 {
        1 << (gfn % 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_one_page() {
        let marks = Marks::new(130);
        for gfn in [0, 63, 64, 129] {
            marks.insert(gfn);
            marks.insert(gfn);
        }
        assert_eq!(marks.count(), 4);
        marks.remove_all(60..65);
        marks.remove(1);
        assert_eq!((0..130).filter(|&gfn| marks.contains(gfn)).collect::<Vec<_>>(), [0, 129]);
        assert_eq!(marks.count(), 2);
        marks.clear();
        assert_eq!(marks.count(), 0);
    }
}
