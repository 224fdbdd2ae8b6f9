//! Pages that come back soon after they were stored, or are stored soon after they came back: they were taken too young.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::page_set::PageSet;
use crate::policy::brake::SOON;

/// Sets of pages by when it was, each for one turn: the current one and those that make up [`SOON`].
const SETS: usize = 3;

/// How long a turn lasts: what happened counts for [`SOON`], and a turn longer at the most.
pub(super) const TURN: Duration = Duration::from_millis(SOON.as_millis() as u64 / (SETS as u64 - 1));

/// What has happened lately.
#[derive(Debug)]
pub(super) struct Recency {
    stored: Lately,
    came: Lately,
}

impl Recency {
    pub fn new(pages: u64) -> Self {
        Self { stored: Lately::new(pages), came: Lately::new(pages) }
    }

    /// A page is stored: had it come back lately?
    pub fn note_stored(&self, gfn: u64) -> bool {
        self.stored.note(gfn);
        self.came.take(gfn)
    }

    /// A page comes back: was it stored lately?
    pub fn note_came(&self, gfn: u64) -> bool {
        self.came.note(gfn);
        self.stored.take(gfn)
    }

    /// A turn is over.
    pub fn turn(&self) {
        self.stored.turn();
        self.came.turn();
    }
}

/// The pages that something happened to within the last turns.
#[derive(Debug)]
struct Lately {
    sets: [PageSet; SETS],
    // A page that is noted while this changes counts for one turn more or less.
    current: AtomicUsize,
}

impl Lately {
    fn new(pages: u64) -> Self {
        Self { sets: std::array::from_fn(|_| PageSet::new(pages)), current: AtomicUsize::new(0) }
    }

    fn note(&self, gfn: u64) {
        self.sets[self.current.load(Ordering::Relaxed) % SETS].insert(gfn);
    }

    fn take(&self, gfn: u64) -> bool {
        let is_recent = self.sets.iter().any(|set| set.contains(gfn));
        if is_recent {
            self.sets.iter().for_each(|set| {
                set.remove(gfn);
            });
        }
        is_recent
    }

    fn turn(&self) {
        let next = (self.current.load(Ordering::Relaxed) + 1) % SETS;
        self.sets[next].clear();
        self.current.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_recent_for_some_turns_and_taken_once() {
        let recency = Recency::new(1000);
        assert!(!recency.note_stored(7) && !recency.note_stored(8));
        recency.turn();
        assert!(!recency.note_stored(9));
        assert!(recency.note_came(7) && !recency.note_came(7) && !recency.note_came(1));
        recency.turn();
        recency.turn();
        assert!(!recency.note_came(8) && recency.note_came(9));
    }

    #[test]
    fn pages_that_came_are_told_when_they_are_stored() {
        let recency = Recency::new(1000);
        assert!(!recency.note_came(5));
        assert!(!recency.note_came(6));
        recency.turn();
        recency.turn();
        assert!(recency.note_stored(5), "within two turns");
        recency.turn();
        assert!(!recency.note_stored(6), "three turns ago");
        assert!(recency.note_came(5) && recency.note_came(6));
    }
}
