//! Where eviction goes next: the two hands of a clock.
//!
//! The first hand goes round guest memory and moves pages aside that have not arrived lately. The second follows it round
//! and stores those that are still aside: nobody touched them in between. So a page has a second chance for as long as the
//! second hand takes, pages go in about the order in which they came, and nothing is kept for it but two numbers. (The
//! two-handed clock of 4.3BSD.)

use std::ops::Range;

/// Pages looked at in one step, and moved by one call where they lie together.
pub(super) const STEP_PAGES: u64 = 64;

/// The hands over the pages of some regions, ascending.
#[derive(Debug)]
pub(super) struct Hands {
    regions: Vec<Range<u64>>,
    evict: Hand,
    store: Hand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hand {
    gfn: u64,
    rounds: u64,
}

impl Hands {
    /// Hands at the start of the first region. There is at least one page.
    pub fn new(regions: Vec<Range<u64>>) -> Self {
        let start = Hand { gfn: regions[0].start, rounds: 0 };
        Self { regions, evict: start, store: start }
    }

    /// The next pages to move aside.
    pub fn next_to_evict(&mut self) -> Range<u64> {
        let range = Self::advance(&self.regions, &mut self.evict);
        // Overtaken, the second hand is pushed: what it has not stored yet is what comes next.
        if self.evict.rounds > self.store.rounds && self.evict.gfn > self.store.gfn {
            self.store = Hand { gfn: self.evict.gfn, rounds: self.evict.rounds - 1 };
        }
        range
    }

    /// The next pages to store; `None` when the second hand has reached the first.
    pub fn next_to_store(&mut self) -> Option<Range<u64>> {
        (self.store != self.evict).then(|| Self::advance(&self.regions, &mut self.store))
    }

    /// How often the first hand has gone all the way round.
    pub fn rounds(&self) -> u64 {
        self.evict.rounds
    }

    fn advance(regions: &[Range<u64>], hand: &mut Hand) -> Range<u64> {
        let at = regions.iter().position(|region| region.contains(&hand.gfn)).expect("hands stay inside regions");
        let end = regions[at].end.min((hand.gfn / STEP_PAGES + 1) * STEP_PAGES);
        let range = hand.gfn..end;
        *hand = if end < regions[at].end {
            Hand { gfn: end, ..*hand }
        } else if let Some(next) = regions.get(at + 1) {
            Hand { gfn: next.start, ..*hand }
        } else {
            Hand { gfn: regions[0].start, rounds: hand.rounds + 1 }
        };
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_hand_follows_the_first() {
        let mut hands = Hands::new(vec![0..100, 1000..1064]);
        assert_eq!(hands.next_to_store(), None);
        assert_eq!(hands.next_to_evict(), 0..64);
        assert_eq!(hands.next_to_evict(), 64..100);
        assert_eq!(hands.next_to_store(), Some(0..64));
        assert_eq!(hands.next_to_evict(), 1000..1024);
        assert_eq!(hands.next_to_evict(), 1024..1064);
        assert_eq!(hands.rounds(), 1);
        assert_eq!(hands.next_to_evict(), 0..64);
        assert_eq!(hands.next_to_store(), Some(64..100));
    }

    #[test]
    fn an_overtaken_hand_is_pushed() {
        let mut hands = Hands::new(vec![0..128]);
        for _ in 0..3 {
            hands.next_to_evict();
        }
        // All but the step just taken is behind by a round: it is next.
        assert_eq!(hands.next_to_store(), Some(64..128));
        assert_eq!(hands.next_to_store(), Some(0..64));
        assert_eq!(hands.next_to_store(), None);
    }
}
