//! A slab: 256 KiB of address space filled with blocks from one end, in the order in which they came.
//!
//! A directory of fixed size comes first, the blocks follow. Only what is filled costs memory. Removed blocks leave
//! holes; compaction slides the others together, so that whole pages at the end can be released. A block keeps its slot
//! in the directory for life, so its handle stays good wherever it slides. Slots are not reused before the slab is
//! empty: so the directory stays sorted by age and by offset.
//!
//! **Who may touch what.** The memory beyond the extent belongs to whoever holds the slab's [`OpenSlab`]; it is written
//! without the lock, so that readers never wait for a page fault of a writer. Everything below the extent is read and
//! written under the lock, and only for about as long as it takes to copy a few pages.

use std::ptr::{self, NonNull};
use std::sync::Mutex;

use crate::store::codec::{Block, Codec};
use crate::store::{PAGE_BYTES, lock};

/// Address space of a slab.
pub(super) const SLAB_BYTES: usize = 256 << 10;
/// Blocks a slab can hold.
pub(super) const SLOTS: usize = 1024;

const ENTRY_BYTES: usize = size_of::<Entry>();
const DIRECTORY_BYTES: usize = SLOTS * ENTRY_BYTES;
const DATA_BYTES: usize = SLAB_BYTES - DIRECTORY_BYTES;
/// Blocks start at multiples of this, so that an offset fits 16 bits.
const UNIT_BYTES: usize = 4;
const _: () = assert!(DATA_BYTES / UNIT_BYTES <= 1 << 16 && DIRECTORY_BYTES.is_multiple_of(PAGE_BYTES));

/// Compaction gives the lock up after moving so much: 2 to 4 microseconds.
const STEP_BYTES: usize = 16 << 10;
/// ... or after looking at so many slots.
const STEP_SLOTS: u16 = 256;

/// Holes worth closing: a part of the data this large, and at least a page.
const HOLE_PART: u32 = 8;

/// What the directory says about a block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Entry {
    /// Start of the block in the data, in units.
    offset_units: u16,
    /// Length minus one in 12 bits, codec in 2, then whether the block is there at all.
    shape: u16,
    /// Seconds from the slab's opening to the block's insertion.
    age_seconds: u32,
    /// Checksum of the page.
    checksum: u32,
    /// Whose block it is.
    owner: u32,
}

const LIVE: u16 = 1 << 15;
const CODEC_SHIFT: u32 = 12;
const LENGTH_MASK: u16 = (1 << CODEC_SHIFT) - 1;
const _: () = assert!(PAGE_BYTES - 1 <= LENGTH_MASK as usize);

impl Entry {
    fn is_live(&self) -> bool {
        self.shape & LIVE != 0
    }

    fn length_bytes(&self) -> usize {
        usize::from(self.shape & LENGTH_MASK) + 1
    }

    /// What the block takes in the slab.
    fn padded_bytes(&self) -> usize {
        self.length_bytes().next_multiple_of(UNIT_BYTES)
    }

    fn offset_bytes(&self) -> usize {
        usize::from(self.offset_units) * UNIT_BYTES
    }
}

/// How far a slab is filled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Extent {
    slots: u16,
    data_bytes: u32,
}

impl Extent {
    fn pages(self) -> Pages {
        Pages {
            directory: (usize::from(self.slots) * ENTRY_BYTES).div_ceil(PAGE_BYTES) as u16,
            data: (self.data_bytes as usize).div_ceil(PAGE_BYTES) as u16,
        }
    }
}

/// Pages of memory a slab holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pages {
    directory: u16,
    data: u16,
}

impl Pages {
    fn max(self, other: Self) -> Self {
        Self { directory: self.directory.max(other.directory), data: self.data.max(other.data) }
    }

    fn bytes(self) -> u64 {
        (u64::from(self.directory) + u64::from(self.data)) * PAGE_BYTES as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    Open,
    Closed,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    generation: u8,
    /// Waits to be tidied.
    queued: bool,
    extent: Extent,
    held: Pages,
    live_blocks: u16,
    /// What live blocks take, padding included.
    live_bytes: u32,
    opened_seconds: u64,
    /// The place of this slab among all that were ever opened.
    sequence: u64,
}

impl State {
    /// Whether tidying would release memory. An open slab is left alone: it is still being written.
    fn is_untidy(&self) -> bool {
        let hole_bytes = self.extent.data_bytes.saturating_sub(self.live_bytes);
        match self.phase {
            Phase::Free => false,
            _ if self.live_blocks == 0 => self.held != Pages::default() || self.phase == Phase::Closed,
            _ => hole_bytes >= PAGE_BYTES as u32 && hole_bytes >= self.extent.data_bytes / HOLE_PART,
        }
    }
}

/// The right to append to a slab. There is one for an open slab, none for others.
#[derive(Debug)]
pub(super) struct OpenSlab {
    pub(super) number: u32,
    memory: NonNull<u8>,
    generation: u8,
    extent: Extent,
    held: Pages,
    opened_seconds: u64,
}

// SAFETY: the memory outlives the store that holds this, and only the holder writes beyond the extent.
unsafe impl Send for OpenSlab {}

impl OpenSlab {
    /// Whether a block of this length fits.
    pub(super) fn fits(&self, length_bytes: usize) -> bool {
        usize::from(self.extent.slots) < SLOTS && self.extent.data_bytes as usize + length_bytes <= DATA_BYTES
    }

    /// Memory the slab will take to hold one more block of this length.
    pub(super) fn growth_bytes(&self, length_bytes: usize) -> u64 {
        self.held.max(self.grown(length_bytes).pages()).bytes() - self.held.bytes()
    }

    fn grown(&self, length_bytes: usize) -> Extent {
        let padded_bytes = length_bytes.next_multiple_of(UNIT_BYTES) as u32;
        Extent { slots: self.extent.slots + 1, data_bytes: self.extent.data_bytes + padded_bytes }
    }
}

/// A block as it lies in a slab.
pub(super) struct Found<'a> {
    /// `None` when the directory is damaged.
    pub(super) codec: Option<Codec>,
    /// The compressed bytes.
    pub(super) bytes: &'a [u8],
    /// What the page's checksum was.
    pub(super) checksum: u32,
}

/// Why a block was not found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// It is not there.
    Missing,
    /// It is there, but the directory gives it an impossible place.
    Damaged,
}

/// What became of a slab that was tidied.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tidied {
    /// It is empty, its memory is released and it may be opened again. Its sequence number is no longer in use.
    Emptied { released_bytes: u64, sequence: u64 },
    /// It is packed as far as is worth it.
    Packed { released_bytes: u64, untidy: bool },
}

/// A block that has been in the store for long.
pub(super) struct Old {
    pub(super) slot: u16,
    pub(super) generation: u8,
    pub(super) owner: u32,
    pub(super) inserted_seconds: u64,
}

/// One slab.
#[derive(Debug)]
pub(super) struct Slab {
    memory: NonNull<u8>,
    state: Mutex<State>,
}

// SAFETY: the memory is touched under the rules at the top of this file.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    /// # Safety
    /// `memory` must be [`SLAB_BYTES`] of readable and writable private anonymous memory, aligned to a page, that nobody
    /// else uses and that outlives the slab.
    pub(super) unsafe fn new(memory: NonNull<u8>) -> Self {
        let state = State {
            phase: Phase::Free,
            generation: 0,
            queued: false,
            extent: Extent::default(),
            held: Pages::default(),
            live_blocks: 0,
            live_bytes: 0,
            opened_seconds: 0,
            sequence: 0,
        };
        Self { memory, state: Mutex::new(state) }
    }

    /// Opens a free slab.
    pub(super) fn open(&self, number: u32, sequence: u64, now_seconds: u64) -> OpenSlab {
        let mut state = lock(&self.state);
        assert_eq!(state.phase, Phase::Free, "slab {number} is opened while in use");
        state.phase = Phase::Open;
        state.opened_seconds = now_seconds;
        state.sequence = sequence;
        OpenSlab {
            number,
            memory: self.memory,
            generation: state.generation,
            extent: state.extent,
            held: state.held,
            opened_seconds: now_seconds,
        }
    }

    /// Closes the slab; true when it must be queued to be tidied.
    pub(super) fn close(&self, open: OpenSlab) -> bool {
        assert_eq!(open.memory, self.memory, "the right to another slab");
        let mut state = lock(&self.state);
        state.phase = Phase::Closed;
        self.queue(&mut state)
    }

    /// Appends a block that fits; returns its slot and generation.
    pub(super) fn append(&self, open: &mut OpenSlab, block: &Block<'_>, owner: u32, now_seconds: u64) -> (u16, u8) {
        assert!(open.memory == self.memory && open.fits(block.bytes.len()), "a block for another slab");
        let slot = open.extent.slots;
        let entry = Entry {
            offset_units: (open.extent.data_bytes as usize / UNIT_BYTES) as u16,
            shape: (block.bytes.len() - 1) as u16 | u16::from(block.codec as u8) << CODEC_SHIFT | LIVE,
            age_seconds: u32::try_from(now_seconds.saturating_sub(open.opened_seconds)).unwrap_or(u32::MAX),
            checksum: block.checksum,
            owner,
        };
        // SAFETY: `fits` holds, so both ranges lie inside the slab; both are beyond the extent, where only the holder of
        // `open` writes and nobody reads.
        unsafe {
            self.entry(slot).write(entry);
            ptr::copy_nonoverlapping(
                block.bytes.as_ptr(),
                self.data(open.extent.data_bytes as usize),
                block.bytes.len(),
            );
        }
        open.extent = open.grown(block.bytes.len());
        open.held = open.held.max(open.extent.pages());

        let mut state = lock(&self.state);
        state.extent = open.extent;
        state.held = open.held;
        state.live_blocks += 1;
        state.live_bytes += entry.padded_bytes() as u32;
        (slot, open.generation)
    }

    /// Shows a block to `look`, which must be quick: the slab is locked.
    pub(super) fn read<T>(&self, slot: u16, generation: u8, look: impl FnOnce(Found<'_>) -> T) -> Result<T, Absent> {
        let state = lock(&self.state);
        let entry = self.live_entry(&state, slot, generation)?;
        let (offset, length) = (entry.offset_bytes(), entry.length_bytes());
        if offset + length > state.extent.data_bytes as usize {
            return Err(Absent::Damaged);
        }
        // SAFETY: the range was checked to lie below the extent, where nothing is written without the lock held here.
        let bytes = unsafe { std::slice::from_raw_parts(self.data(offset), length) };
        Ok(look(Found {
            codec: Codec::from_number((entry.shape >> CODEC_SHIFT) as u8 & 3),
            bytes,
            checksum: entry.checksum,
        }))
    }

    /// Removes a block; returns its length and whether the slab must be queued to be tidied.
    pub(super) fn remove(&self, slot: u16, generation: u8) -> Result<(usize, bool), Absent> {
        let mut state = lock(&self.state);
        let mut entry = self.live_entry(&state, slot, generation)?;
        entry.shape &= !LIVE;
        // SAFETY: the slot is below the extent, and the lock is held.
        unsafe { self.entry(slot).write(entry) };
        // Damage may have brought entries to life that were never counted.
        state.live_blocks = state.live_blocks.saturating_sub(1);
        state.live_bytes = state.live_bytes.saturating_sub(entry.padded_bytes() as u32);
        Ok((entry.length_bytes(), self.queue(&mut state)))
    }

    /// Appends to `found` up to `count` live blocks inserted at `inserted_by_seconds` or before, oldest first. False
    /// when a younger one was met: there are none behind it.
    pub(super) fn oldest(&self, count: usize, inserted_by_seconds: u64, found: &mut Vec<Old>) -> bool {
        let state = lock(&self.state);
        let mut left = count;
        for slot in 0..state.extent.slots {
            if left == 0 {
                break;
            }
            // SAFETY: the slot is below the extent, and the lock is held.
            let entry = unsafe { self.entry(slot).read() };
            if !entry.is_live() {
                continue;
            }
            let inserted_seconds = state.opened_seconds.saturating_add(u64::from(entry.age_seconds));
            if inserted_seconds > inserted_by_seconds {
                return false;
            }
            found.push(Old { slot, generation: state.generation, owner: entry.owner, inserted_seconds });
            left -= 1;
        }
        true
    }

    /// Whether the slab, still open, has holes worth closing.
    pub(super) fn is_untidy(&self) -> bool {
        lock(&self.state).is_untidy()
    }

    /// Closes the holes of a closed slab and releases what that frees. One thread at a time may tidy a slab.
    pub(super) fn tidy(&self) -> Tidied {
        // Nobody appends to a closed slab, so the first slots stay packed while the lock is given up between steps.
        let mut packed = Extent::default();
        while !self.pack_step(&mut packed) {}

        let mut state = lock(&self.state);
        let emptied = state.live_blocks == 0;
        state.extent = if emptied { Extent::default() } else { packed };
        let (held, kept) = (state.held, state.extent.pages());
        // Handles of removed blocks must not name those that come next.
        let sequence = state.sequence;
        if emptied {
            state.generation = state.generation.wrapping_add(1);
            state.live_bytes = 0;
        }
        drop(state);

        // Nothing beyond the extent is in use and the slab is not open, so this needs no lock: readers go on.
        let left = Pages {
            directory: self.release(0, kept.directory, held.directory),
            data: self.release(DIRECTORY_BYTES, kept.data, held.data),
        };
        let released_bytes = held.bytes() - left.bytes();
        let mut state = lock(&self.state);
        state.held = left;
        if emptied {
            state.phase = Phase::Free;
            state.queued = false;
            return Tidied::Emptied { released_bytes, sequence };
        }
        state.queued = state.is_untidy();
        Tidied::Packed { released_bytes, untidy: state.queued }
    }

    /// Slides some blocks together. `packed` says how far the slab is packed; true when that is all of it.
    fn pack_step(&self, packed: &mut Extent) -> bool {
        let state = lock(&self.state);
        let last = state.extent.slots.min(packed.slots.saturating_add(STEP_SLOTS));
        let mut moved_bytes = 0;
        while packed.slots < last && moved_bytes < STEP_BYTES {
            let slot = packed.slots;
            packed.slots += 1;
            // SAFETY: the slot is below the extent, and the lock is held.
            let mut entry = unsafe { self.entry(slot).read() };
            let (from, to, length) = (entry.offset_bytes(), packed.data_bytes as usize, entry.padded_bytes());
            // A damaged place is left as it is: the block is lost, and a reader will say so.
            if !entry.is_live() || from < to || from + length > state.extent.data_bytes as usize {
                continue;
            }
            packed.data_bytes += length as u32;
            if from > to {
                entry.offset_units = (to / UNIT_BYTES) as u16;
                // SAFETY: both ranges lie below the extent, which nobody else touches while the lock is held.
                unsafe {
                    ptr::copy(self.data(from), self.data(to), length);
                    self.entry(slot).write(entry);
                }
                moved_bytes += length;
            }
        }
        packed.slots == state.extent.slots
    }

    /// Gives pages `kept..held` of the part at `start` back to the host; returns how many are held after that.
    fn release(&self, start: usize, kept: u16, held: u16) -> u16 {
        if kept >= held {
            return held;
        }
        let (from, to) = (start + usize::from(kept) * PAGE_BYTES, start + usize::from(held) * PAGE_BYTES);
        // SAFETY: the pages lie inside the slab, and nobody uses them: see `tidy`.
        let result = unsafe { libc::madvise(self.memory.as_ptr().add(from).cast(), to - from, libc::MADV_DONTNEED) };
        // Locked memory cannot be given back; it stays counted, and is used again.
        if result == 0 { kept } else { held }
    }

    /// Marks a slab that has become untidy; true when it was not marked before.
    fn queue(&self, state: &mut State) -> bool {
        let queue = state.phase == Phase::Closed && !state.queued && state.is_untidy();
        state.queued |= queue;
        queue
    }

    fn live_entry(&self, state: &State, slot: u16, generation: u8) -> Result<Entry, Absent> {
        if generation != state.generation || slot >= state.extent.slots {
            return Err(Absent::Missing);
        }
        // SAFETY: the slot is below the extent, and the caller holds the lock whose data `state` is.
        let entry = unsafe { self.entry(slot).read() };
        if entry.is_live() { Ok(entry) } else { Err(Absent::Missing) }
    }

    /// Where the block in a slot lies and its directory entry, for tests that damage them.
    #[cfg(test)]
    pub(super) fn raw(&self, slot: u16) -> (*mut u8, usize, *mut [u8; ENTRY_BYTES]) {
        let _state = lock(&self.state);
        // SAFETY: tests ask for slots they filled, and the lock is held.
        let entry = unsafe { self.entry(slot).read() };
        (self.data(entry.offset_bytes()), entry.length_bytes(), self.entry(slot).cast())
    }

    /// Live bytes, memory held, and how far the data reach.
    #[cfg(test)]
    pub(super) fn usage(&self) -> (u64, u64, u32) {
        let state = lock(&self.state);
        (u64::from(state.live_bytes), state.held.bytes(), state.extent.data_bytes)
    }

    /// The directory entry of a slot below [`SLOTS`].
    fn entry(&self, slot: u16) -> *mut Entry {
        self.memory.as_ptr().cast::<Entry>().wrapping_add(usize::from(slot))
    }

    /// The data at an offset below [`DATA_BYTES`].
    fn data(&self, offset_bytes: usize) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(DIRECTORY_BYTES + offset_bytes)
    }
}
