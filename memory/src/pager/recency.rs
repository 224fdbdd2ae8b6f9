//! Pages that come back soon after they were stored: they were taken too young.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::page_set::PageSet;

/// The pages stored lately: between one and two turns ago at the most.
#[derive(Debug)]
pub(super) struct Recency {
    stored: [PageSet; 2],
    // A page that is stored while this changes counts for one turn more or less.
    current: AtomicUsize,
}

impl Recency {
    pub fn new(pages: u64) -> Self {
        Self { stored: [PageSet::new(pages), PageSet::new(pages)], current: AtomicUsize::new(0) }
    }

    /// A page was stored.
    pub fn note_stored(&self, gfn: u64) {
        self.stored[self.current.load(Ordering::Relaxed) % 2].insert(gfn);
    }

    /// A page comes back: was it stored lately?
    pub fn take(&self, gfn: u64) -> bool {
        let is_recent = self.stored.iter().any(|set| set.contains(gfn));
        if is_recent {
            self.stored.iter().for_each(|set| {
                set.remove(gfn);
            });
        }
        is_recent
    }

    /// Forgets what was stored before the last turn.
    pub fn turn(&self) {
        let next = (self.current.load(Ordering::Relaxed) + 1) % 2;
        self.stored[next].clear();
        self.current.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_recent_for_one_turn_and_taken_once() {
        let recency = Recency::new(1000);
        recency.note_stored(7);
        recency.note_stored(8);
        recency.turn();
        recency.note_stored(9);
        assert!(recency.take(7) && !recency.take(7) && !recency.take(1));
        recency.turn();
        assert!(!recency.take(8) && recency.take(9));
    }
}
