//! What merged pages cost less than as many pages of their own, between two looks at what the kernel has merged.
//!
//! A page that n have costs each of them an n-th, so n - 1 n-ths are saved of each. Where one of them gets a page of its own, all
//! of them together cost a whole page more: it what it has saved, the others the rest, which they see only when they next
//! look. Until then it is reckoned to whoever left, or nobody would be charged for it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ram::PAGE_SIZE;

const BILLION: f64 = 1e9;

/// See the top of this file. Each number stands alone: what is between two of them is off by a page at the most, for as
/// long as it takes to write both.
#[derive(Debug)]
pub(super) struct Saving {
    saved_bytes: AtomicU64,
    /// The part of each merged page that is saved, as of the last count, in billionths.
    part: AtomicU64,
    /// The most of a merged page that is saved by what the kernel says of this process, in billionths.
    most: AtomicU64,
    /// What the others do not know of yet: since the last look of the kernel at all of the process, and since the one before.
    owed_bytes: AtomicU64,
    owed_before_bytes: AtomicU64,
}

impl Default for Saving {
    fn default() -> Self {
        Self {
            saved_bytes: AtomicU64::new(0),
            part: AtomicU64::new(BILLION as u64),
            most: AtomicU64::new(BILLION as u64),
            owed_bytes: AtomicU64::new(0),
            owed_before_bytes: AtomicU64::new(0),
        }
    }
}

impl Saving {
    /// What merging saves.
    pub fn bytes(&self) -> u64 {
        self.saved_bytes.load(Ordering::Relaxed)
    }

    /// What others come to cost more by what was done here, and have not been seen to.
    pub fn owed_bytes(&self) -> u64 {
        self.owed_bytes.load(Ordering::Relaxed).saturating_add(self.owed_before_bytes.load(Ordering::Relaxed))
    }

    /// So many pages are merged, of each of which this part is saved wherever they are.
    pub fn count(&self, merged_pages: u64, part: f64) {
        let part = part.clamp(0.0, 1.0).min(self.most.load(Ordering::Relaxed) as f64 / BILLION);
        self.part.store((part * BILLION) as u64, Ordering::Relaxed);
        // A write between the count and the store counts as none until the next look.
        self.saved_bytes.store(((merged_pages * PAGE_SIZE) as f64 * part) as u64, Ordering::Relaxed);
    }

    /// What is saved of a page.
    fn page_bytes(&self) -> u64 {
        (PAGE_SIZE as f64 * self.part.load(Ordering::Relaxed) as f64 / BILLION) as u64
    }

    /// A page is merged no more.
    pub fn lose_page(&self) {
        let saved_bytes = self.page_bytes();
        // The closure always has a new value.
        let _ = self
            .saved_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| Some(bytes.saturating_sub(saved_bytes)));
    }

    /// It is this process that has left the others. Of a page that nobody else has nobody else pays the rest.
    pub fn owe_page(&self) {
        let saved_bytes = self.page_bytes();
        self.owed_bytes.fetch_add(saved_bytes.min(PAGE_SIZE - saved_bytes), Ordering::Relaxed);
    }

    /// The kernel says that merging saves so much here, of so many merged pages: no more is saved, however much the rest of
    /// the host has merged. The others look about as often: after two such looks they know what this process has done to them.
    pub fn note_look(&self, merged_pages: u64, bytes: u64) {
        let merged_bytes = merged_pages * PAGE_SIZE;
        let part = if merged_bytes > 0 { (bytes as f64 / merged_bytes as f64).min(1.0) } else { 1.0 };
        self.most.store((part * BILLION) as u64, Ordering::Relaxed);
        self.saved_bytes.fetch_min(bytes, Ordering::Relaxed);
        self.owed_before_bytes.store(self.owed_bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Nothing is merged, and nobody asks.
    pub fn clear(&self) {
        for bytes in [&self.saved_bytes, &self.owed_bytes, &self.owed_before_bytes] {
            bytes.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_leaves_costs_all_together_a_page() {
        let saving = Saving::default();
        let cost_pages = || (1000 * PAGE_SIZE + saving.owed_bytes() - saving.bytes()) as f64 / PAGE_SIZE as f64;
        // Four guests have each of 1000 pages.
        saving.count(1000, 0.75);
        assert_eq!(cost_pages(), 250.0);
        let leave = |_| {
            saving.lose_page();
            saving.owe_page();
        };
        (0..400).for_each(leave);
        assert_eq!((saving.bytes(), cost_pages()), (600 * 3 * PAGE_SIZE / 4, 650.0));
        // All of them: more than it had saved itself.
        (0..600).for_each(leave);
        assert_eq!((saving.bytes(), cost_pages()), (0, 1250.0));
        // The others know after two looks.
        saving.note_look(0, 0);
        assert_eq!(cost_pages(), 1250.0);
        leave(0);
        saving.note_look(0, 0);
        assert_eq!(cost_pages(), 1000.25);
        saving.note_look(0, 0);
        assert_eq!(cost_pages(), 1000.0);
    }

    #[test]
    fn what_nobody_shares_is_owed_to_nobody() {
        let saving = Saving::default();
        saving.count(1000, 0.25);
        saving.lose_page();
        assert_eq!((saving.bytes(), saving.owed_bytes()), (250 * PAGE_SIZE - PAGE_SIZE / 4, 0), "others have left");
        saving.owe_page();
        assert_eq!(saving.owed_bytes(), PAGE_SIZE / 4);
        saving.count(1000, 0.0);
        saving.lose_page();
        saving.owe_page();
        assert_eq!((saving.bytes(), saving.owed_bytes()), (0, PAGE_SIZE / 4));
    }

    #[test]
    fn no_more_is_saved_than_the_kernel_says() {
        let saving = Saving::default();
        saving.count(1000, 0.9);
        saving.note_look(1000, 500 * PAGE_SIZE);
        assert_eq!(saving.bytes(), 500 * PAGE_SIZE, "at once: others have left");
        saving.count(1000, 0.9);
        assert_eq!(saving.bytes(), 500 * PAGE_SIZE);
        saving.note_look(1000, 950 * PAGE_SIZE);
        assert_eq!(saving.bytes(), 500 * PAGE_SIZE, "more is saved once it is counted");
        saving.count(1000, 0.9);
        assert_eq!(saving.bytes(), 900 * PAGE_SIZE);
        saving.clear();
        assert_eq!((saving.bytes(), saving.owed_bytes()), (0, 0));
    }
}
