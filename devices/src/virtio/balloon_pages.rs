//! The set of guest pages in a balloon.

use std::ops::Range;

const BITS: u64 = u64::BITS as u64;

/// One bit a page of guest-physical memory. A set and not a mere counter, so that a page given twice counts once and a
/// page taken back that was never given counts nothing: the number can never leave the range 0 to all pages. It is
/// 32 KiB for each GiB of guest memory, and the host backs only the part that was ever written.
#[derive(Debug, Default)]
pub(super) struct PageSet {
    words: Vec<u64>,
    count: u64,
}

impl PageSet {
    /// An empty set for guest frame numbers below `end`.
    pub(super) fn new(end: u64) -> Self {
        // `vec!` of zeroes asks for zeroed memory, which the allocator maps lazily.
        Self { words: vec![0; end.div_ceil(BITS) as usize], count: 0 }
    }

    /// Pages in the set.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Adds pages. Numbers past the end of the set are left out.
    pub(super) fn insert(&mut self, frames: Range<u64>) {
        self.change(frames, |word, mask| word | mask);
    }

    /// Takes pages out.
    pub(super) fn remove(&mut self, frames: Range<u64>) {
        self.change(frames, |word, mask| word & !mask);
    }

    fn change(&mut self, frames: Range<u64>, operation: impl Fn(u64, u64) -> u64) {
        let mut frame = frames.start;
        while frame < frames.end {
            let next = frames.end.min((frame / BITS + 1) * BITS);
            let Some(word) = self.words.get_mut((frame / BITS) as usize) else { return };
            // `next - frame` ones, shifted to where `frame` lies in its word.
            let mask = (u64::MAX >> (BITS - (next - frame))) << (frame % BITS);
            let changed = operation(*word, mask);
            self.count = self.count + u64::from(changed.count_ones()) - u64::from(word.count_ones());
            *word = changed;
            frame = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn out_of_range_is_left_out() {
        let mut pages = PageSet::new(100);
        pages.insert(0..1 << 40);
        // Whole words: the set is rounded up.
        assert_eq!(pages.count(), 128);
        pages.remove(1 << 39..1 << 40);
        assert_eq!(pages.count(), 128);
        assert_eq!(PageSet::default().count(), 0);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(steps in prop::collection::vec((any::<bool>(), 0_u64..256, 0_u64..130), 1..40)) {
            let mut pages = PageSet::new(512);
            let mut model = BTreeSet::new();
            for (insert, start, length) in steps {
                let frames = start..start + length;
                if insert {
                    pages.insert(frames.clone());
                    model.extend(frames);
                } else {
                    pages.remove(frames.clone());
                    model.retain(|frame| !frames.contains(frame));
                }
                prop_assert_eq!(pages.count(), model.len() as u64);
            }
        }
    }
}
