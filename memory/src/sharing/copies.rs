//! How many copies of each page there are in the pool: one's own pages joined with the others' sketches.

use super::fingerprint::{Fingerprint, Salt};
use super::folder::FolderError;
use super::sketch::{LiveMember, SketchStatistics, Sketches};

/// A member's stable pages, 8 bytes each: what it publishes, and what it joins with the sketches of the others.
#[derive(Debug, Clone, Default)]
pub struct StablePages {
    /// Fingerprint in the upper half, gfn in the lower: they sort as numbers, fast.
    pages: Vec<u64>,
}

impl StablePages {
    /// Gathers pages, given by fingerprint and gfn, of which each comes once.
    pub fn new(pages: impl IntoIterator<Item = (Fingerprint, u32)>) -> Self {
        let packed = |(fingerprint, gfn): (Fingerprint, u32)| u64::from(fingerprint.number()) << 32 | u64::from(gfn);
        let mut pages: Vec<u64> = pages.into_iter().map(packed).collect();
        pages.sort_unstable();
        Self { pages }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.pages.len()
    }

    /// Publishes them as the member's sketch.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn publish(&self, sketches: &mut Sketches, salt: &Salt) -> Result<(), FolderError> {
        sketches.publish(salt, self.pages.iter().map(|page| fingerprint(*page)))
    }

    /// Counts the copies of each page in the whole pool, in memory for these pages alone: 12 bytes each.
    ///
    /// # Errors
    /// The pool's folder cannot be read.
    pub fn survey(&self, sketches: &Sketches, salt: &Salt, live: &[LiveMember]) -> Result<Survey<'_>, FolderError> {
        let mut join = Join::new(&self.pages);
        let statistics = sketches.read_others(salt, live, |piece| join.take(piece))?;
        let mut copies = join.copies;
        share_out(&self.pages, &mut copies);
        Ok(Survey { pages: &self.pages, copies, statistics })
    }
}

/// What a member has learnt of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey<'a> {
    /// As in [`StablePages`].
    pages: &'a [u64],
    copies: Vec<u32>,
    /// What was read for it.
    pub statistics: SketchStatistics,
}

impl Survey<'_> {
    /// Each stable page's gfn and how many other pages there are with its content, in this guest and in others.
    pub fn copies(&self) -> impl Iterator<Item = (u32, u32)> {
        self.pages.iter().map(|page| *page as u32).zip(self.copies.iter().copied())
    }
}

fn fingerprint(page: u64) -> Fingerprint {
    Fingerprint::from_number((page >> 32) as u32).expect("it was one when it was packed")
}

/// Walks along one's own pages and another's fingerprints, both sorted.
struct Join<'a> {
    pages: &'a [u64],
    /// Others' copies, counted at the first of one's own pages with a fingerprint: a content that many pages have costs
    /// no more than others.
    copies: Vec<u32>,
    /// Own pages before this have lower fingerprints than any that is still to come.
    at: usize,
}

impl<'a> Join<'a> {
    fn new(pages: &'a [u64]) -> Self {
        Self { pages, copies: vec![0; pages.len()], at: 0 }
    }

    /// The next piece of a sketch; an empty one begins the next sketch.
    fn take(&mut self, piece: &[Fingerprint]) {
        if piece.is_empty() {
            self.at = 0;
        }
        for other in piece {
            let lowest = u64::from(other.number()) << 32;
            while self.pages.get(self.at).is_some_and(|page| *page < lowest) {
                self.at += 1;
            }
            match self.pages.get(self.at) {
                Some(page) if fingerprint(*page) == *other => {
                    self.copies[self.at] = self.copies[self.at].saturating_add(1);
                }
                Some(_) => {}
                None => return,
            }
        }
    }
}

/// Gives every page of a content what was counted at the first, and the others among one's own.
fn share_out(pages: &[u64], copies: &mut [u32]) {
    let mut rest = copies;
    for group in pages.chunk_by(|one, two| one >> 32 == two >> 32) {
        let (own, after) = rest.split_at_mut(group.len());
        own.fill(own[0].saturating_add(group.len() as u32 - 1));
        rest = after;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::fingerprint::SALT_BYTES;
    use super::*;
    use crate::ledger::MemberId;

    fn pages(numbers: &[u32]) -> StablePages {
        let number = |number: &u32| Fingerprint::from_number(*number).unwrap();
        StablePages::new(numbers.iter().map(number).zip(100..))
    }

    /// Members, each by the fingerprints of its pages; what the first of them learns, by gfn.
    fn survey(members: &[Vec<u32>]) -> (Vec<u32>, SketchStatistics) {
        let folder = tempfile::tempdir().unwrap();
        let salt = Salt::from_bytes([5; SALT_BYTES]);
        let live: Vec<_> = (0..members.len() as u16)
            .map(|slot| LiveMember { id: MemberId { slot, generation: 1 }, guest_pages: 1 << 20 })
            .collect();
        let mut sketches: Vec<_> = live.iter().map(|member| Sketches::new(folder.path(), member.id)).collect();
        for (numbers, sketches) in members.iter().zip(&mut sketches) {
            pages(numbers).publish(sketches, &salt).unwrap();
        }
        let own = pages(&members[0]);
        let survey = own.survey(&sketches[0], &salt, &live).unwrap();
        let mut copies: Vec<_> = survey.copies().collect();
        copies.sort();
        assert!(copies.iter().map(|(gfn, _)| *gfn).eq(100..100 + members[0].len() as u32), "each page once");
        (copies.into_iter().map(|(_, copies)| copies).collect(), survey.statistics)
    }

    #[test]
    fn own_copies_and_the_others_are_counted() {
        let members = [vec![9, 3, 9, u32::MAX, 1, 4], vec![9, 9, 4, 2], vec![1, 9, u32::MAX, u32::MAX, 5]];
        let (copies, statistics) = survey(&members);
        assert_eq!(copies, [4, 0, 4, 2, 1, 1]);
        assert_eq!((statistics.sketches, statistics.fingerprints), (2, 9));
        assert!(survey(&[vec![]]).0.is_empty());
        assert!(survey(&[vec![], vec![1]]).0.is_empty());
        assert_eq!(survey(&[vec![2, 2, 1]]).0, [1, 1, 0], "alone");
    }

    #[test]
    fn a_content_that_fills_guests_is_counted_in_one_walk() {
        // Pair by pair it would be 10^10 steps.
        let (copies, _) = survey(&[vec![7; 100_000], vec![7; 100_000]]);
        assert!(copies.iter().all(|copies| *copies == 199_999));
    }

    fn fingerprints() -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::vec(prop_oneof![3 => 1..40u32, 1 => 1..=u32::MAX], 0..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_what_a_map_counts(members in proptest::collection::vec(fingerprints(), 1..5)) {
            let mut map: HashMap<u32, u32> = HashMap::new();
            members.iter().flatten().for_each(|number| *map.entry(*number).or_default() += 1);
            let expected: Vec<_> = members[0].iter().map(|number| map[number] - 1).collect();
            prop_assert_eq!(survey(&members).0, expected);
        }
    }
}
