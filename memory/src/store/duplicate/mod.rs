//! The duplicate index: what contents are stored, and how many pages share each.
//!
//! Every stored content that is not zero has an entry here: its hash, its [`Home`] and a count of references, one for
//! each page that has it. The entry's [`ShareId`] is what a page remembers. So a content can change its home while any
//! number of pages share it, and it lives until the last of them is gone.
//!
//! The hash is a hint. [`acquire`](DuplicateIndex::acquire) finds a content that is very likely equal and takes a
//! reference to it, so that it cannot go away while the caller compares the whole page; one that differs is released.
//! The hash is seeded anew for each index: a guest cannot aim at a bucket.
//!
//! **Memory** is 20 to 22 bytes a content (entry 16, bucket 4, room for more buckets) and nothing for further pages that
//! share it; up to 30 after most contents have gone. Entries come in chunks of 64 that go back when all of them are gone. The table grows and shrinks by one
//! bucket at a time (linear hashing), so nobody waits for all of it to be rebuilt.
//!
//! **Locks**: 64 shards, one lock each, held for some tens of nanoseconds and never two at a time or together with
//! another of this crate.

mod entries;
mod shard;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;

use twox_hash::XxHash3_128;

use self::shard::Shard;
use super::{Home, Page, lock};

/// More parts than threads that are at it; each has some memory of its own.
const SHARD_BITS: u32 = 4;
const SHARDS: usize = 1 << SHARD_BITS;

/// Highest number of references to one content. The next page with it is stored once more.
pub const REFERENCES_MAX: u32 = entries::REFERENCES_MAX;

/// Why the index cannot do what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DuplicateError {
    /// There are as many contents as can be named.
    #[error("duplicate index: full at {contents} contents in a shard")]
    Full {
        /// Contents in the shard that the content belongs to.
        contents: u32,
    },
    /// Nothing is stored under this name.
    #[error("duplicate index: no content {:#x}", .0.number())]
    Missing(ShareId),
    /// No further reference can be counted.
    #[error("duplicate index: content {:#x} has {REFERENCES_MAX} references", .0.number())]
    Referenced(ShareId),
}

/// Hash of a page's content, good for one index only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageHash(u128);

impl PageHash {
    fn shard(self) -> usize {
        self.0 as usize & (SHARDS - 1)
    }

    /// What an entry remembers of the hash: bits that did not choose the shard.
    fn fingerprint(self) -> u32 {
        (self.0 >> 64) as u32
    }
}

/// Names a stored content for as long as somebody holds a reference to it. A page remembers its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShareId(u32);

impl ShareId {
    fn new(shard: usize, slot: u32) -> Self {
        Self(slot << SHARD_BITS | shard as u32)
    }

    /// The name as a number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The name whose number this is.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    fn shard(self) -> usize {
        self.0 as usize & (SHARDS - 1)
    }

    fn slot(self) -> u32 {
        self.0 >> SHARD_BITS
    }
}

/// A content found by its hash, and where it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub share: ShareId,
    /// Where it was when it was found. If it is not there any more, ask [`DuplicateIndex::home`].
    pub home: Home,
}

/// What is left of a content after a reference to it was given up.
#[must_use = "a home nobody refers to must be freed"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Others share it still.
    Shared,
    /// That was the last one: the content is to be removed from this home.
    Last(Home),
}

/// What the index holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DuplicateStatistics {
    /// Different contents stored.
    pub contents: u64,
    /// References to them: pages, and work in progress.
    pub references: u64,
    /// Memory of the index.
    pub held_bytes: u64,
}

/// The index. See the top of this module.
#[derive(Debug)]
pub struct DuplicateIndex {
    seed: u64,
    #[cfg(all(test, not(loom)))]
    has_one_hash: bool,
    shards: Box<[Mutex<Shard>]>,
}

impl Default for DuplicateIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl DuplicateIndex {
    /// An empty index with a secret of its own.
    pub fn new() -> Self {
        // The standard library's randomness is all a seed needs.
        let seed = RandomState::new().hash_one(0);
        Self {
            seed,
            #[cfg(all(test, not(loom)))]
            has_one_hash: false,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// An index in which all pages have the same hash.
    #[cfg(all(test, not(loom)))]
    pub fn colliding() -> Self {
        Self { has_one_hash: true, ..Self::new() }
    }

    /// Hash of a page, for this index.
    pub fn hash(&self, page: &Page) -> PageHash {
        #[cfg(all(test, not(loom)))]
        if self.has_one_hash {
            return PageHash(0);
        }
        PageHash(XxHash3_128::oneshot_with_seed(self.seed, page))
    }

    /// Finds a content that is probably the one with this hash, and takes a reference to it.
    pub fn acquire(&self, hash: PageHash) -> Option<Candidate> {
        let (slot, home) = self.shard(hash.shard()).acquire(hash.fingerprint())?;
        Some(Candidate { share: ShareId::new(hash.shard(), slot), home })
    }

    /// Finds the content with this hash that is at `home`, and takes a reference to it.
    pub fn acquire_at(&self, hash: PageHash, home: Home) -> Option<ShareId> {
        let slot = self.shard(hash.shard()).acquire_at(hash.fingerprint(), home)?;
        Some(ShareId::new(hash.shard(), slot))
    }

    /// Enters a content that was stored just now, with one reference.
    ///
    /// # Errors
    /// [`DuplicateError::Full`] beyond 2^26 contents a shard.
    pub fn insert(&self, hash: PageHash, home: Home) -> Result<ShareId, DuplicateError> {
        let mut shard = self.shard(hash.shard());
        let slot = shard
            .insert(hash.fingerprint(), home)
            .ok_or(DuplicateError::Full { contents: shard.entries.contents() })?;
        Ok(ShareId::new(hash.shard(), slot))
    }

    /// Where a content is now.
    ///
    /// # Errors
    /// [`DuplicateError::Missing`].
    pub fn home(&self, share: ShareId) -> Result<Home, DuplicateError> {
        let shard = self.shard(share.shard());
        shard.entries.get(share.slot()).map(|entry| entry.home()).ok_or(DuplicateError::Missing(share))
    }

    /// Takes a further reference by name and says where the content is: it stays until that is given up, however many
    /// pages leave.
    ///
    /// # Errors
    /// [`DuplicateError::Missing`], [`DuplicateError::Referenced`].
    pub fn retain(&self, share: ShareId) -> Result<Home, DuplicateError> {
        let mut shard = self.shard(share.shard());
        let home = shard.entries.get(share.slot()).ok_or(DuplicateError::Missing(share))?.home();
        if shard.retain(share.slot()) { Ok(home) } else { Err(DuplicateError::Referenced(share)) }
    }

    /// Records that a content has moved. False when it was not at `from` any more: nothing was changed, and what is at
    /// `to` belongs to the caller.
    ///
    /// # Errors
    /// [`DuplicateError::Missing`].
    pub fn relocate(&self, share: ShareId, from: Home, to: Home) -> Result<bool, DuplicateError> {
        let mut shard = self.shard(share.shard());
        let entry = shard.entries.get_mut(share.slot()).ok_or(DuplicateError::Missing(share))?;
        let moved = entry.home() == from;
        if moved {
            entry.set_home(to);
        }
        Ok(moved)
    }

    /// Gives up one reference. After the last one nobody finds the content any more.
    ///
    /// # Errors
    /// [`DuplicateError::Missing`].
    pub fn release(&self, share: ShareId) -> Result<Released, DuplicateError> {
        self.shard(share.shard()).release(share.slot()).ok_or(DuplicateError::Missing(share))
    }

    /// What the index holds now. Shards are read one after the other.
    pub fn statistics(&self) -> DuplicateStatistics {
        let mut total = DuplicateStatistics {
            held_bytes: (size_of::<Self>() + SHARDS * size_of::<Mutex<Shard>>()) as u64,
            ..Default::default()
        };
        for shard in &self.shards {
            let shard = lock(shard);
            total.contents += u64::from(shard.entries.contents());
            total.references += shard.references;
            total.held_bytes += shard.heap_bytes() as u64;
        }
        total
    }

    fn shard(&self, number: usize) -> std::sync::MutexGuard<'_, Shard> {
        lock(&self.shards[number])
    }
}
