//! The compressed store: blocks in memory, in the order in which they came.
//!
//! Blocks are appended to one open slab at a time (`slab`), slabs lie in arenas of address space (`arena`), and only
//! pages that are filled cost memory. So the oldest blocks are the first ones of the first slab, and nothing else need be
//! kept to find them.
//!
//! **Bounds.** 16 bytes of directory a block and about 100 a slab of 256 KiB: 0.4 % of the uncompressed size. Once tidied,
//! a slab holds at most 8/7 of its live blocks plus four pages (hole, end of the data, directory), besides another page
//! of directory for each further 256 blocks that were put into it. An empty slab holds nothing.
//!
//! **Locks**, in the order in which they are taken: `tidying` (whoever tidies), `open` (writers), then either `lists` or
//! one slab's own. A reader takes only its slab's, and nobody holds that one for longer than a copy of 16 KiB takes, or
//! through a page fault or a system call.

mod arena;
mod handle;
mod slab;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};

use self::arena::Arenas;
use self::slab::{Absent, OpenSlab, Slab, Tidied};
use super::codec::{Block, CodecError, Decompressor, checksum};
use super::{PAGE_BYTES, Page, lock};

pub use self::handle::Handle;

/// Why a block could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The limit is reached.
    #[error("compressed store: full: {held_bytes} of {limit_bytes} bytes held")]
    Full {
        /// What is held.
        held_bytes: u64,
        /// What may be held.
        limit_bytes: u64,
    },
    /// The block is empty or larger than a page.
    #[error("compressed store: a block of {bytes} bytes")]
    Block {
        /// Its length.
        bytes: usize,
    },
    /// The host gives no address space.
    #[error("compressed store: mapping {bytes} bytes: {cause}")]
    Map {
        /// Size asked for.
        bytes: usize,
        /// What the kernel said.
        cause: io::Error,
    },
    /// More slabs than handles can name.
    #[error("compressed store: out of slabs")]
    Slabs,
    /// There is no such block: it was removed, or never stored.
    #[error("compressed store: no block under handle {:#x}", .0.number())]
    Missing(Handle),
    /// The block is not what was stored.
    #[error("compressed store: block {:#x} is damaged: {damage}", handle.number())]
    Damaged {
        /// Its handle.
        handle: Handle,
        /// What is wrong with it.
        damage: Damage,
    },
}

/// What is wrong with a damaged block.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It decompresses to another page.
    #[error("checksum {found:#010x}, not {expected:#010x}")]
    Checksum {
        /// Checksum of the page that was stored.
        expected: u32,
        /// Checksum of what came back.
        found: u32,
    },
    /// It does not decompress.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Its entry in the slab's directory makes no sense.
    #[error("bad directory entry")]
    Directory,
}

/// A block that has been in the store for long, to be written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldBlock {
    /// The block.
    pub handle: Handle,
    /// Whose it is, as told when it was inserted.
    pub owner: u32,
    /// When it was inserted, in the caller's seconds.
    pub inserted_seconds: u64,
}

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct CompressedStatistics {
    /// Pages stored.
    pub pages: u64,
    /// Their size before compression.
    pub bytes_in: u64,
    /// Their size after it.
    pub compressed_bytes: u64,
    /// Memory taken to hold them, as allocated: directories, holes and partly filled pages included.
    pub held_bytes: u64,
    /// What may be held.
    pub limit_bytes: u64,
}

impl CompressedStatistics {
    /// Memory held for each byte stored; `None` when nothing is.
    pub fn ratio(&self) -> Option<f64> {
        (self.bytes_in > 0).then(|| self.held_bytes as f64 / self.bytes_in as f64)
    }
}

/// Compressed pages in memory.
#[derive(Debug)]
pub struct CompressedStore {
    open: Mutex<Option<OpenSlab>>,
    tidying: Mutex<()>,
    lists: Mutex<Lists>,
    arenas: Arenas,
    limit_bytes: AtomicU64,
    // Counters are exact at rest. They order nothing, so relaxed operations do.
    pages: AtomicU64,
    compressed_bytes: AtomicU64,
    held_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Lists {
    /// Slabs in use by the order in which they were opened.
    in_order: BTreeMap<u64, u32>,
    next_sequence: u64,
    /// Closed slabs with something to release.
    untidy: VecDeque<u32>,
    /// Slabs that were used before. The lowest goes first, so that the highest stay untouched.
    free: BTreeSet<u32>,
    /// Slabs ever used.
    slabs: u32,
}

impl CompressedStore {
    /// An empty store that will hold at most `limit_bytes` of memory. It takes none until a page is stored.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            open: Mutex::default(),
            tidying: Mutex::default(),
            lists: Mutex::default(),
            arenas: Arenas::default(),
            limit_bytes: AtomicU64::new(limit_bytes),
            pages: AtomicU64::new(0),
            compressed_bytes: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
        }
    }

    /// Stores a compressed page of `owner`: a number that only the caller understands, and gets back from
    /// [`oldest`](Self::oldest). `now_seconds` is a clock of the caller's that does not run backwards.
    ///
    /// # Errors
    /// [`StoreError::Full`] at the limit: write the oldest blocks elsewhere and remove them. [`StoreError::Block`] when
    /// the block is empty or larger than a page. [`StoreError::Map`] and [`StoreError::Slabs`] when the host or the
    /// handles run out. Nothing was stored then.
    pub fn insert(&self, block: &Block<'_>, owner: u32, now_seconds: u64) -> Result<Handle, StoreError> {
        match self.try_insert(block, owner, now_seconds) {
            // Closing holes may make room.
            Err(StoreError::Full { .. }) if self.tidy(usize::MAX) > 0 => self.try_insert(block, owner, now_seconds),
            result => result,
        }
    }

    fn try_insert(&self, block: &Block<'_>, owner: u32, now_seconds: u64) -> Result<Handle, StoreError> {
        let length_bytes = block.bytes.len();
        if !(1..=PAGE_BYTES).contains(&length_bytes) {
            return Err(StoreError::Block { bytes: length_bytes });
        }
        let mut open = lock(&self.open);
        if let Some(full) = open.take_if(|open| !open.fits(length_bytes)) {
            self.close(full);
        }
        let open = match &mut *open {
            Some(open) => open,
            none => none.insert(self.open_slab(now_seconds)?),
        };
        // Only the holder of `open` adds to what is held, so the limit is never passed.
        let growth_bytes = open.growth_bytes(length_bytes);
        let (held_bytes, limit_bytes) =
            (self.held_bytes.load(Ordering::Relaxed), self.limit_bytes.load(Ordering::Relaxed));
        if growth_bytes > 0 && held_bytes.saturating_add(growth_bytes) > limit_bytes {
            return Err(StoreError::Full { held_bytes, limit_bytes });
        }
        self.held_bytes.fetch_add(growth_bytes, Ordering::Relaxed);
        self.compressed_bytes.fetch_add(length_bytes as u64, Ordering::Relaxed);
        self.pages.fetch_add(1, Ordering::Relaxed);
        let (slot, generation) = self.known_slab(open.number).append(open, block, owner, now_seconds);
        Ok(Handle::new(open.number, slot, generation))
    }

    /// Decompresses a page and verifies its checksum. It stays stored.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it was removed; [`StoreError::Damaged`] when it is not what was stored: `page` holds
    /// nothing of use then.
    pub fn read(&self, handle: Handle, decompressor: &mut Decompressor, page: &mut Page) -> Result<(), StoreError> {
        let damaged = |damage| StoreError::Damaged { handle, damage };
        // Copied out, so that nobody waits while it is decompressed.
        let mut bytes = [0; PAGE_BYTES];
        let slab = self.arenas.slab(handle.slab()).ok_or(StoreError::Missing(handle))?;
        let found = slab.read(handle.slot(), handle.generation(), |found| {
            bytes[..found.bytes.len()].copy_from_slice(found.bytes);
            (found.codec, found.bytes.len(), found.checksum)
        });
        let (codec, length_bytes, expected) = match found {
            Ok((Some(codec), length_bytes, expected)) => (codec, length_bytes, expected),
            Ok((None, ..)) | Err(Absent::Damaged) => return Err(damaged(Damage::Directory)),
            Err(Absent::Missing) => return Err(StoreError::Missing(handle)),
        };
        decompressor.decompress(codec, &bytes[..length_bytes], page).map_err(|cause| damaged(cause.into()))?;
        let found = checksum(page);
        if found == expected { Ok(()) } else { Err(damaged(Damage::Checksum { expected, found })) }
    }

    /// Removes a block. Its memory goes back to the host when its slab is tidied.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it was removed before.
    pub fn remove(&self, handle: Handle) -> Result<(), StoreError> {
        let slab = self.arenas.slab(handle.slab()).ok_or(StoreError::Missing(handle))?;
        let (length_bytes, queue) =
            slab.remove(handle.slot(), handle.generation()).map_err(|_| StoreError::Missing(handle))?;
        if queue {
            lock(&self.lists).untidy.push_back(handle.slab());
        }
        self.compressed_bytes.fetch_sub(length_bytes as u64, Ordering::Relaxed);
        self.pages.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Up to `count` blocks that were inserted at `inserted_by_seconds` or before (`u64::MAX`: whenever), the longest
    /// stored first. They stay stored: the next call finds them again.
    pub fn oldest(&self, count: usize, inserted_by_seconds: u64) -> Vec<OldBlock> {
        let mut blocks = Vec::new();
        let mut found = Vec::new();
        let mut after = Bound::Unbounded;
        while blocks.len() < count {
            let next = lock(&self.lists).in_order.range((after, Bound::Unbounded)).next().map(|(&s, &n)| (s, n));
            let Some((sequence, number)) = next else { break };
            after = Bound::Excluded(sequence);
            let more = self.known_slab(number).oldest(count - blocks.len(), inserted_by_seconds, &mut found);
            blocks.extend(found.drain(..).map(|old| OldBlock {
                handle: Handle::new(number, old.slot, old.generation),
                owner: old.owner,
                inserted_seconds: old.inserted_seconds,
            }));
            if !more {
                break;
            }
        }
        blocks
    }

    /// Closes holes and gives memory back to the host, in up to `slabs` slabs; returns the bytes given back. It takes a
    /// few tens of microseconds a slab, so whoever answers faults leaves it to others. Does nothing while another thread
    /// is at it.
    pub fn tidy(&self, slabs: usize) -> u64 {
        let _turn = match self.tidying.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return 0,
        };
        self.close_untidy();
        let mut total_bytes = 0;
        // What becomes untidy in the meantime is for the next call: this one ends.
        let waiting = lock(&self.lists).untidy.len();
        for _ in 0..slabs.min(waiting) {
            let Some(number) = lock(&self.lists).untidy.pop_front() else { break };
            let released_bytes = match self.known_slab(number).tidy() {
                Tidied::Emptied { released_bytes, sequence } => {
                    let mut lists = lock(&self.lists);
                    lists.in_order.remove(&sequence);
                    lists.free.insert(number);
                    released_bytes
                }
                Tidied::Packed { released_bytes, untidy } => {
                    if untidy {
                        lock(&self.lists).untidy.push_back(number);
                    }
                    released_bytes
                }
            };
            self.held_bytes.fetch_sub(released_bytes, Ordering::Relaxed);
            total_bytes += released_bytes;
        }
        total_bytes
    }

    /// Changes the limit. Over a lower one nothing is removed, but nothing more is stored that needs memory.
    pub fn set_limit_bytes(&self, limit_bytes: u64) {
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// What the store holds now.
    pub fn statistics(&self) -> CompressedStatistics {
        let pages = self.pages.load(Ordering::Relaxed);
        CompressedStatistics {
            pages,
            bytes_in: pages * PAGE_BYTES as u64,
            compressed_bytes: self.compressed_bytes.load(Ordering::Relaxed),
            held_bytes: self.held_bytes.load(Ordering::Relaxed),
            limit_bytes: self.limit_bytes.load(Ordering::Relaxed),
        }
    }

    /// Flips a bit of a stored block.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn damage(&self, handle: Handle, bit: usize) {
        let (block, length_bytes, _) = self.known_slab(handle.slab()).raw(handle.slot());
        // SAFETY: the byte is one of the block's, and the test has nobody else at it.
        unsafe { *block.add(bit / 8 % length_bytes) ^= 1 << (bit % 8) };
    }

    /// A slab whose number came from this store.
    fn known_slab(&self, number: u32) -> &Slab {
        self.arenas.slab(number).expect("a slab that is in use has its arena")
    }

    /// The caller holds `open`, so nobody else adds slabs.
    fn open_slab(&self, now_seconds: u64) -> Result<OpenSlab, StoreError> {
        let (reused, slabs) = {
            let mut lists = lock(&self.lists);
            (lists.free.pop_first(), lists.slabs)
        };
        let number = reused.unwrap_or(slabs);
        if reused.is_none() {
            self.arenas.make(number)?;
        }
        let mut lists = lock(&self.lists);
        lists.slabs = lists.slabs.max(number + 1);
        let sequence = lists.next_sequence;
        lists.next_sequence += 1;
        lists.in_order.insert(sequence, number);
        drop(lists);
        Ok(self.known_slab(number).open(number, sequence, now_seconds))
    }

    fn close(&self, open: OpenSlab) {
        let number = open.number;
        if self.known_slab(number).close(open) {
            lock(&self.lists).untidy.push_back(number);
        }
    }

    /// Closes the open slab if that lets it be tidied.
    fn close_untidy(&self) {
        let mut open = lock(&self.open);
        if let Some(untidy) = open.take_if(|open| self.known_slab(open.number).is_untidy()) {
            self.close(untidy);
        }
    }
}
