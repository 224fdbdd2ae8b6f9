//! A set of pages, one bit each.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of one chunk: 16 MiB of guest memory.
const CHUNK_WORDS: u64 = 64;

/// See the top of this file. Each bit is a hint of its own, so relaxed operations do. Memory is taken where pages are.
#[derive(Debug)]
pub(super) struct PageSet {
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
    count: AtomicU64,
}

impl PageSet {
    pub fn new(pages: u64) -> Self {
        let chunks = pages.div_ceil(64 * CHUNK_WORDS);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect(), count: AtomicU64::new(0) }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn contains(&self, gfn: u64) -> bool {
        self.word(gfn).is_some_and(|word| word.load(Ordering::Relaxed) & Self::bit(gfn) != 0)
    }

    /// How many pages of a range are in the set.
    pub fn count_in(&self, gfns: Range<u64>) -> u64 {
        if self.count() == 0 { 0 } else { gfns.filter(|&gfn| self.contains(gfn)).count() as u64 }
    }

    /// The page must be below the number of pages the set was made for.
    pub fn insert(&self, gfn: u64) {
        let (chunk, at) = Self::place(gfn);
        let chunk = self.chunks[chunk].get_or_init(|| (0..CHUNK_WORDS).map(|_| AtomicU64::new(0)).collect());
        if chunk[at].fetch_or(Self::bit(gfn), Ordering::Relaxed) & Self::bit(gfn) == 0 {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// True when it was in the set.
    pub fn remove(&self, gfn: u64) -> bool {
        let Some(word) = self.word(gfn).filter(|_| self.contains(gfn)) else { return false };
        let was = word.fetch_and(!Self::bit(gfn), Ordering::Relaxed) & Self::bit(gfn) != 0;
        if was {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        was
    }

    pub fn remove_all(&self, gfns: Range<u64>) {
        if self.count() > 0 {
            gfns.for_each(|gfn| {
                self.remove(gfn);
            });
        }
    }

    pub fn clear(&self) {
        if self.count() == 0 {
            return;
        }
        for word in self.chunks.iter().filter_map(OnceLock::get).flatten() {
            let before = word.swap(0, Ordering::Relaxed);
            self.count.fetch_sub(before.count_ones().into(), Ordering::Relaxed);
        }
    }

    fn word(&self, gfn: u64) -> Option<&AtomicU64> {
        let (chunk, at) = Self::place(gfn);
        self.chunks[chunk].get().map(|chunk| &chunk[at])
    }

    fn place(gfn: u64) -> (usize, usize) {
        ((gfn / 64 / CHUNK_WORDS) as usize, (gfn / 64 % CHUNK_WORDS) as usize)
    }

    fn bit(gfn: u64) -> u64 {
        1 << (gfn % 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_one_bit() {
        let set = PageSet::new(100_130);
        for gfn in [0, 63, 64, 100_129] {
            set.insert(gfn);
            set.insert(gfn);
        }
        assert_eq!((set.count(), set.count_in(0..64), set.count_in(64..100_129)), (4, 2, 1));
        set.remove_all(60..65);
        set.remove(1);
        assert_eq!((0..100_130).filter(|&gfn| set.contains(gfn)).collect::<Vec<_>>(), [0, 100_129]);
        assert_eq!(set.count(), 2);
        set.clear();
        assert_eq!(set.count(), 0);
    }
}
