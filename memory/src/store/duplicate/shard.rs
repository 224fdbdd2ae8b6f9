//! One shard of the index: entries, chained from a table of buckets that grows and shrinks by one bucket at a time.

use super::entries::{Entries, Entry, NONE};
use super::{Released, SHARD_BITS};
use crate::store::Home;

/// Entries that a shard can name.
const ENTRIES_MAX: u32 = 1 << (u32::BITS - SHARD_BITS);

/// A bucket of this many entries takes no more: a content stays unlisted, and is merely not found. With a secret seed
/// it does not happen; if it did, it must not make a search long.
pub(super) const BUCKET_MAX: usize = 32;

/// Entries of one shard and how to find them.
#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) entries: Entries,
    /// First entry of each bucket.
    buckets: Vec<u32>,
    /// Entries in buckets.
    listed: usize,
    /// References to all entries.
    pub(super) references: u64,
}

impl Shard {
    /// Finds an entry by what is remembered of its hash, and counts a reference to it.
    pub(super) fn acquire(&mut self, fingerprint: u32) -> Option<(u32, Home)> {
        let number = self.bucket(fingerprint).take(BUCKET_MAX).find(|(_, entry)| entry.fingerprint == fingerprint)?.0;
        self.retain(number).then(|| (number, self.entry(number).home()))
    }

    /// Finds the entry of a content at this home, and counts a reference to it.
    pub(super) fn acquire_at(&mut self, fingerprint: u32, home: Home) -> Option<u32> {
        let is_there = |entry: &Entry| entry.fingerprint == fingerprint && entry.home() == home;
        let number = self.bucket(fingerprint).take(BUCKET_MAX).find(|(_, entry)| is_there(entry))?.0;
        self.retain(number).then_some(number)
    }

    /// Enters a content with one reference; `None` when there is no number for it.
    pub(super) fn insert(&mut self, fingerprint: u32, home: Home) -> Option<u32> {
        let listed = self.bucket(fingerprint).take(BUCKET_MAX).count() < BUCKET_MAX;
        let number = self.entries.add(Entry::new(home, fingerprint, listed), ENTRIES_MAX)?;
        self.references += 1;
        if listed {
            if self.listed >= self.buckets.len() {
                self.split_bucket();
            }
            self.listed += 1;
            self.link(number);
        }
        Some(number)
    }

    /// Counts a reference to an entry in use; false when there can be no more.
    pub(super) fn retain(&mut self, number: u32) -> bool {
        let retained = self.entry_mut(number).retain();
        self.references += u64::from(retained);
        retained
    }

    /// Gives up a reference; `None` when there is no such entry.
    pub(super) fn release(&mut self, number: u32) -> Option<Released> {
        let entry = self.entries.get_mut(number)?;
        let (home, listed) = (entry.home(), entry.is_listed());
        self.references -= 1;
        // The last reference goes with the entry: one without any would not be in use.
        if entry.references() > 1 {
            entry.release();
            return Some(Released::Shared);
        }
        if listed {
            self.unlink(number);
            self.listed -= 1;
            // Twice at most: one entry less makes room for one and a third bucket less.
            while self.buckets.len() > self.listed + self.listed / 3 + 1 {
                self.merge_bucket();
            }
        }
        self.entries.remove(number);
        Some(Released::Last(home))
    }

    /// Memory taken.
    pub(super) fn heap_bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<u32>() + self.entries.heap_bytes()
    }

    /// Where a fingerprint belongs among `buckets` buckets: they stand for the next power of two of them, of which the
    /// upper ones that are not there yet are still part of their lower halves.
    fn address(fingerprint: u32, buckets: usize) -> usize {
        let mask = buckets.next_power_of_two() - 1;
        let at = fingerprint as usize & mask;
        if at < buckets { at } else { at & (mask >> 1) }
    }

    /// The entries that a fingerprint may be among.
    fn bucket(&self, fingerprint: u32) -> impl Iterator<Item = (u32, &Entry)> {
        let mut next = match self.buckets.len() {
            0 => NONE,
            buckets => self.buckets[Self::address(fingerprint, buckets)],
        };
        std::iter::from_fn(move || {
            let number = next;
            let entry = (number != NONE).then(|| self.entry(number))?;
            next = entry.next;
            Some((number, entry))
        })
    }

    fn link(&mut self, number: u32) {
        let at = Self::address(self.entry(number).fingerprint, self.buckets.len());
        self.entry_mut(number).next = self.buckets[at];
        self.buckets[at] = number;
    }

    fn unlink(&mut self, number: u32) {
        let Entry { fingerprint, next, .. } = *self.entry(number);
        let before = self.bucket(fingerprint).find(|(_, entry)| entry.next == number).map(|(before, _)| before);
        match before {
            Some(before) => self.entry_mut(before).next = next,
            None => {
                let at = Self::address(fingerprint, self.buckets.len());
                self.buckets[at] = next;
            }
        }
    }

    /// Adds a bucket and moves to it what belongs there from the one that stood for it.
    fn split_bucket(&mut self) {
        let added = self.buckets.len();
        if added == self.buckets.capacity() {
            self.buckets.reserve_exact(added / 4 + 4);
        }
        self.buckets.push(NONE);
        if added > 0 {
            let lower = added & ((added + 1).next_power_of_two() - 1) >> 1;
            self.relink(lower);
        }
    }

    /// Takes the last bucket away and moves its entries to the one that stands for it then.
    fn merge_bucket(&mut self) {
        if let Some(mut number) = self.buckets.pop() {
            while number != NONE {
                let next = self.entry(number).next;
                self.link(number);
                number = next;
            }
        }
        if self.buckets.capacity() > 2 * self.buckets.len() + 8 {
            self.buckets.shrink_to(self.buckets.len() / 4 * 5);
        }
    }

    /// Puts every entry of a bucket where it belongs now.
    fn relink(&mut self, bucket: usize) {
        let mut number = std::mem::replace(&mut self.buckets[bucket], NONE);
        while number != NONE {
            let next = self.entry(number).next;
            self.link(number);
            number = next;
        }
    }

    fn entry(&self, number: u32) -> &Entry {
        self.entries.get(number).expect("a number from a bucket or a caller that checked it")
    }

    fn entry_mut(&mut self, number: u32) -> &mut Entry {
        self.entries.get_mut(number).expect("a number from a bucket or a caller that checked it")
    }
}
