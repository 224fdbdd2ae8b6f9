//! What each filled page is: the fills so far, and the identity of a page that follows from them.

use crate::content::{Identity, Kind};

/// Fills a program may have in force at a time.
pub const MAX_FILLS: usize = 64;

/// The kinds of a fill, in percent of its pages; they sum to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindMix {
    /// Percent of zero pages.
    pub zero: u8,
    /// Percent of pages equal in all guests.
    pub dup: u8,
    /// Percent of compressible pages.
    pub text: u8,
    /// Percent of incompressible pages.
    pub random: u8,
}

/// What a fill makes its pages of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// Every page keeps its kind.
    Mix(KindMix),
    /// Pages take turns: zero, dup, text, random, on by one with every write; neighbours are at different turns.
    Churn,
}

impl From<KindMix> for Recipe {
    fn from(kinds: KindMix) -> Self {
        Self::Mix(kinds)
    }
}

/// Different duplicates of all churned pages.
const CHURNED_DUPLICATES: u32 = 64;

/// The kind of a churned page, and its number if it is a duplicate.
const fn turn(page: u32, writes: u32) -> (Kind, u32) {
    let turn = page.wrapping_add(writes);
    match turn % 4 {
        0 => (Kind::Zero, 0),
        1 => (Kind::Dup, turn / 4 % CHURNED_DUPLICATES),
        2 => (Kind::Text, 0),
        _ => (Kind::Random, 0),
    }
}

/// Pages after which the pattern of kinds repeats; every block has exactly the given percentages.
const BLOCK: u32 = 100;

impl KindMix {
    /// The kind of the fill's `nth` page, and how many pages of its kind come before it in its block. Kinds are spread
    /// through a block (37 and 100 have no common factor), so that every 64 KiB cluster is a mixture.
    const fn kind(self, nth: u32) -> (Kind, u32) {
        let place = ((nth % BLOCK) * 37 + 11) % BLOCK;
        let (zero, dup, text) = (self.zero as u32, self.dup as u32, self.text as u32);
        if place < zero {
            (Kind::Zero, place)
        } else if place < zero + dup {
            (Kind::Dup, place - zero)
        } else if place < zero + dup + text {
            (Kind::Text, place - zero - dup)
        } else {
            (Kind::Random, place - zero - dup - text)
        }
    }

    /// Duplicates among the first `pages` pages of a fill, a started block counted whole.
    const fn duplicates(self, pages: u32) -> u32 {
        pages.div_ceil(BLOCK) * self.dup as u32
    }
}

/// One fill: a run of pages and what they were filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fill {
    first_page: u32,
    pages: u32,
    recipe: Recipe,
    seed: u64,
    first_duplicate: u32,
}

impl Fill {
    /// Duplicates of its own, a started block counted whole.
    const fn duplicates(&self) -> u32 {
        match self.recipe {
            Recipe::Mix(kinds) => kinds.duplicates(self.pages),
            // Shared by everybody.
            Recipe::Churn => 0,
        }
    }
}

/// All fills in force, end to end from page 0.
#[derive(Debug)]
pub struct Fills {
    fills: [Fill; MAX_FILLS],
    count: usize,
}

impl Default for Fills {
    fn default() -> Self {
        Self::new()
    }
}

impl Fills {
    /// Nothing filled.
    pub const fn new() -> Self {
        const ZERO: KindMix = KindMix { zero: 100, dup: 0, text: 0, random: 0 };
        const NONE: Fill = Fill { first_page: 0, pages: 0, recipe: Recipe::Mix(ZERO), seed: 0, first_duplicate: 0 };
        Self { fills: [NONE; MAX_FILLS], count: 0 }
    }

    /// Pages filled, which are pages 0 up to this number.
    pub const fn pages(&self) -> u32 {
        match self.count {
            0 => 0,
            count => self.fills[count - 1].first_page + self.fills[count - 1].pages,
        }
    }

    /// Adds a fill behind the last; false if there are [`MAX_FILLS`] already or the page numbers run out.
    #[must_use]
    pub fn push(&mut self, pages: u32, recipe: impl Into<Recipe>, seed: u64) -> bool {
        let first_page = self.pages();
        if self.count == MAX_FILLS || first_page.checked_add(pages).is_none() {
            return false;
        }
        let first_duplicate =
            self.fills[..self.count].last().map_or(0, |last| last.first_duplicate + last.duplicates());
        self.fills[self.count] = Fill { first_page, pages, recipe: recipe.into(), seed, first_duplicate };
        self.count += 1;
        true
    }

    /// Forgets the pages from `pages` on.
    pub fn truncate(&mut self, pages: u32) {
        while self.count > 0 && self.fills[self.count - 1].first_page >= pages {
            self.count -= 1;
        }
        if self.count > 0 {
            let last = &mut self.fills[self.count - 1];
            last.pages = last.pages.min(pages - last.first_page);
        }
    }

    /// What the filled page `page` is after `writes` writes. A page that is not filled is taken for one of the last
    /// fill; callers ask for filled pages only.
    #[inline]
    pub fn identity(&self, page: u32, writes: u32) -> Identity {
        let mut at = 0;
        while at + 1 < self.count && self.fills[at + 1].first_page <= page {
            at += 1;
        }
        let fill = &self.fills[at];
        let Recipe::Mix(kinds) = fill.recipe else {
            let (kind, duplicate) = turn(page, writes);
            return Identity { kind, seed: fill.seed, page, duplicate, writes, churned: true };
        };
        let nth = page - fill.first_page;
        let (kind, before) = kinds.kind(nth);
        let duplicate = match kind {
            Kind::Dup => fill.first_duplicate + nth / BLOCK * kinds.dup as u32 + before,
            _ => 0,
        };
        Identity { kind, seed: fill.seed, page, duplicate, writes, churned: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const KINDS: [Kind; 4] = [Kind::Zero, Kind::Dup, Kind::Text, Kind::Random];
    const MIX: KindMix = KindMix { zero: 20, dup: 20, text: 40, random: 20 };

    fn duplicates(fills: &Fills) -> Vec<u32> {
        let all = (0..fills.pages()).map(|page| fills.identity(page, 1));
        all.filter(|identity| identity.kind == Kind::Dup).map(|identity| identity.duplicate).collect()
    }

    #[test]
    fn every_hundred_pages_have_the_percentages() {
        let mut fills = Fills::new();
        assert!(fills.push(50, KindMix { zero: 0, dup: 0, text: 0, random: 100 }, 1));
        assert!(fills.push(1_000, MIX, 7));
        for block in 0..10 {
            let of = |kind| (0..100).filter(|page| fills.identity(50 + block * 100 + page, 1).kind == kind).count();
            assert_eq!([of(Kind::Zero), of(Kind::Dup), of(Kind::Text), of(Kind::Random)], [20, 20, 40, 20]);
        }
        assert_eq!(fills.identity(49, 1).kind, Kind::Random);
        assert_eq!((fills.identity(49, 1).seed, fills.identity(50, 3).seed), (1, 7));
    }

    #[test]
    fn kinds_are_mixed_within_a_cluster() {
        let mut fills = Fills::new();
        assert!(fills.push(1_600, MIX, 7));
        for cluster in 0..100 {
            let kinds: BTreeSet<u8> = (0..16).map(|page| fills.identity(cluster * 16 + page, 1).kind as u8).collect();
            assert_eq!(kinds.len(), 4, "cluster {cluster}");
        }
    }

    #[test]
    fn the_first_duplicates_are_the_same_in_every_guest() {
        let (mut ours, mut theirs) = (Fills::new(), Fills::new());
        assert!(ours.push(1_000, MIX, 1));
        assert!(theirs.push(3_000, KindMix { zero: 0, dup: 10, text: 90, random: 0 }, 2));
        let (mut ours, mut theirs) = (duplicates(&ours), duplicates(&theirs));
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, (0..200).collect::<Vec<_>>());
        assert_eq!(theirs, (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn churned_pages_take_turns() {
        let mut fills = Fills::new();
        assert!(fills.push(100, MIX, 1) && fills.push(1_024, Recipe::Churn, 7) && fills.push(100, MIX, 1));
        for page in 100..1_124 {
            let kinds: BTreeSet<u8> = (1..5).map(|writes| fills.identity(page, writes).kind as u8).collect();
            assert_eq!(kinds.len(), 4, "page {page}");
            assert_eq!(fills.identity(page, 9).kind, fills.identity(page + 1, 8).kind);
            assert!(fills.identity(page, 3).churned);
        }
        let of = |kind| (100..1_124).map(|page| fills.identity(page, 1)).filter(move |identity| identity.kind == kind);
        assert!(KINDS.iter().all(|&kind| of(kind).count() == 256));
        let numbers: BTreeSet<u32> = of(Kind::Dup).map(|identity| identity.duplicate).collect();
        assert_eq!(numbers, (0..CHURNED_DUPLICATES).collect(), "each is shared by several pages");
        // They take no numbers from the others, and are none of theirs.
        let behind = (1_124..1_224).map(|page| fills.identity(page, 1));
        let behind: BTreeSet<u32> =
            behind.filter(|identity| identity.kind == Kind::Dup).map(|identity| identity.duplicate).collect();
        assert_eq!(behind, (20..40).collect());
        assert!(!fills.identity(99, 1).churned && !fills.identity(1_124, 1).churned);
    }

    #[test]
    fn fills_are_bounded() {
        let mut fills = Fills::new();
        assert!(!fills.push(u32::MAX, MIX, 0) || !fills.push(1, MIX, 0));
        fills.truncate(0);
        assert_eq!((0..100).filter(|_| fills.push(1, MIX, 0)).count(), MAX_FILLS);
    }

    proptest! {
        #[test]
        fn duplicates_differ_inside_a_guest(
            steps in prop::collection::vec((1..700u32, 0..=100u8, prop::option::of(0..500u32)), 1..8),
        ) {
            let mut fills = Fills::new();
            for (pages, dup, keep) in steps {
                let kinds = KindMix { zero: 100 - dup, dup, text: 0, random: 0 };
                prop_assert!(fills.push(pages, kinds, 3));
                let expected = keep.map_or(fills.pages(), |keep| fills.pages().min(keep));
                if let Some(keep) = keep {
                    fills.truncate(keep);
                }
                prop_assert_eq!(fills.pages(), expected);
                let duplicates = duplicates(&fills);
                let distinct: BTreeSet<u32> = duplicates.iter().copied().collect();
                prop_assert_eq!(distinct.len(), duplicates.len());
            }
        }
    }
}
