//! The swap file: pages kept on a disk.
//!
//! The file has no name, so nobody else can open it and nothing is left when the process ends, however it ends. Pages
//! are stored whole and as they are: what compresses well is better kept in memory. A page counts as written when the
//! device has it and the page cache does not: by direct I/O, or where the file system refuses that, by a write that is
//! waited for and then dropped from the cache. Every page has a checksum in memory, seeded with its slot, so
//! a page that is damaged, stale or another's is never returned.
//!
//! No lock is held across a read. The slot lock covers bookkeeping only. Where I/O is buffered, writers take turns
//! through the write-back lock, because the kernel reports a failed write-back to one caller alone. No thread ever
//! holds both locks.

mod error;
#[cfg(test)]
pub(crate) mod fault;
mod folder;
mod page;
mod slots;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use twox_hash::XxHash3_64;

pub use error::{SwapError, WriteError};
pub use folder::OpenError;
pub use page::AlignedPage;

use super::file::{FileIo, read_pages, write_pages};
use super::{PAGE_BYTES, Page, lock};
use slots::Slots;

/// The most pages one write or read of the file carries (1 MiB).
pub const RUN_PAGES: usize = 256;

/// How often a page is read before it counts as lost, and its VM with it.
const READ_ATTEMPTS: usize = 2;

/// Where one page lies in the swap file: the page's index there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    /// The slot of an index that [`Slot::index`] gave.
    pub const fn from_index(index: u32) -> Self {
        Self(index)
    }

    /// Its index, for compact bookkeeping.
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// How a written page is kept out of the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Caching {
    /// `O_DIRECT`: it never gets there.
    Direct,
    /// It is written back and dropped.
    Buffered,
}

/// What the swap file holds and has done. Sizes are in bytes; everything but what is held counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SwapStatistics {
    /// Pages held.
    pub pages: u64,
    /// Bytes of pages held.
    pub held_bytes: u64,
    /// Bytes of freed slots whose blocks have not been given back.
    pub reclaimable_bytes: u64,
    /// The most bytes the file may have.
    pub limit_bytes: u64,
    /// Memory the bookkeeping uses.
    pub bookkeeping_bytes: u64,
    /// How pages are kept out of the page cache.
    pub caching: Caching,
    /// A write failed and nobody has called [`SwapFile::retry`] since.
    pub unavailable: bool,
    /// Runs written.
    pub writes: u64,
    /// Bytes of pages written.
    pub written_bytes: u64,
    /// Runs read.
    pub reads: u64,
    /// Bytes of pages read.
    pub read_bytes: u64,
    /// Bytes of blocks given back by holes.
    pub punched_bytes: u64,
    /// Runs whose write failed.
    pub write_errors: u64,
    /// Attempts to read a run that failed.
    pub read_errors: u64,
    /// Pages read that were not what was written, counted at each attempt.
    pub checksum_errors: u64,
    /// Holes the file system refused.
    pub hole_errors: u64,
}

impl SwapStatistics {
    /// Bytes of the disk for each byte held: blocks of freed slots count until they are given back. `None` when nothing is
    /// held.
    pub fn ratio(&self) -> Option<f64> {
        (self.held_bytes > 0).then(|| (self.held_bytes + self.reclaimable_bytes) as f64 / self.held_bytes as f64)
    }
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    pages_written: AtomicU64,
    reads: AtomicU64,
    pages_read: AtomicU64,
    pages_punched: AtomicU64,
    write_errors: AtomicU64,
    read_errors: AtomicU64,
    checksum_errors: AtomicU64,
    hole_errors: AtomicU64,
}

/// The pages of one VM that are kept on a disk. All calls may come from several threads at once.
pub struct SwapFile<F = File> {
    file: F,
    caching: Caching,
    limit_bytes: u64,
    slots: Mutex<Slots>,
    write_back: Mutex<()>,
    unavailable: AtomicBool,
    counters: Counters,
}

impl SwapFile {
    /// Makes the file in `folder`. It never has more than `limit_bytes`, nor more than the process may write
    /// (`RLIMIT_FSIZE`).
    ///
    /// # Errors
    /// [`OpenError`] when there is no such folder, it lies in memory, or this user may not write to it.
    pub fn open(folder: &Path, limit_bytes: u64) -> Result<Self, OpenError> {
        Self::open_through(folder, limit_bytes, |file| file)
    }
}

impl<F: FileIo> SwapFile<F> {
    /// As [`SwapFile::open`]. `through` stands a fault injector in the file's place.
    pub(crate) fn open_through(
        folder: &Path,
        limit_bytes: u64,
        through: impl FnOnce(File) -> F,
    ) -> Result<Self, OpenError> {
        let limit_bytes = limit_bytes.min(folder::file_size_limit());
        let (file, caching) = folder::create(folder)?;
        Ok(Self::over(through(file), caching, limit_bytes))
    }

    /// What the pages are kept in, for tests that make it fail.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn file(&self) -> &F {
        &self.file
    }

    /// Keeps pages in a file that is already open and empty.
    fn over(file: F, caching: Caching, limit_bytes: u64) -> Self {
        let slots = u32::try_from(limit_bytes / PAGE_BYTES as u64).unwrap_or(u32::MAX);
        // The last segment's end must be a slot number too.
        let slots = slots.min(u32::MAX - slots::SEGMENT_SLOTS);
        Self {
            file,
            caching,
            limit_bytes: u64::from(slots) * PAGE_BYTES as u64,
            slots: Mutex::new(Slots::new(slots)),
            write_back: Mutex::new(()),
            unavailable: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// Writes pages and gives the slot of each. Pages are written in runs of up to [`RUN_PAGES`] slots in a row where
    /// the file has such runs: give 64 pages (256 KiB) or more at once. Page-aligned pages are not copied.
    ///
    /// Nobody may write to a page meanwhile. That it has been written is final: it is on the device.
    ///
    /// # Errors
    /// [`WriteError`] names the slots of the pages that were written, a prefix; the others have none and take up no
    /// slot. After a failed write every call fails at once, until [`SwapFile::retry`]; a full file does not do that.
    pub fn write(&self, pages: &[&Page]) -> Result<Vec<Slot>, WriteError> {
        let mut written = Vec::with_capacity(pages.len());
        while written.len() < pages.len() {
            let rest = &pages[written.len()..];
            match self.write_run(&rest[..rest.len().min(RUN_PAGES)]) {
                Ok(run) => written.extend(run.map(Slot)),
                Err(cause) => return Err(WriteError { refused: rest.len(), written, cause }),
            }
        }
        Ok(written)
    }

    /// Reads what lies in the slots from `first` on into the buffers, in one go for up to [`RUN_PAGES`]. A run that
    /// fails is tried once more. Page-aligned buffers are not copied.
    ///
    /// Nobody may free these slots meanwhile.
    ///
    /// # Errors
    /// [`SwapError`] when a slot holds nothing, the device fails, or a page is not what was written. The buffers'
    /// content is then of no use; read the pages one at a time to tell good from bad.
    pub fn read(&self, first: Slot, buffers: &mut [&mut Page]) -> Result<(), SwapError> {
        let mut slot = first.0;
        for run in buffers.chunks_mut(RUN_PAGES) {
            let checksums = self.checksums(slot, run.len())?;
            let mut attempt = 1;
            loop {
                match self.read_run(slot, run, &checksums) {
                    Err(_) if attempt < READ_ATTEMPTS => attempt += 1,
                    outcome => break outcome?,
                }
            }
            count(&self.counters.reads, 1);
            count(&self.counters.pages_read, run.len());
            slot += run.len() as u32;
        }
        Ok(())
    }

    /// Frees a slot. Its blocks stay until [`SwapFile::punch_holes`] or until it is written again; no I/O is done.
    ///
    /// # Errors
    /// [`SwapError::NotHeld`] when it holds nothing.
    pub fn free(&self, slot: Slot) -> Result<(), SwapError> {
        if lock(&self.slots).free(slot.0) { Ok(()) } else { Err(SwapError::NotHeld { slot }) }
    }

    /// Gives the blocks of freed runs of at least `min_pages` back to the file system, and tells how many bytes of
    /// them. Holes of few pages cost a file system more than they give: 16 is a good number until space is short.
    /// Holes the file system refuses are counted and tried again the next time.
    pub fn punch_holes(&self, min_pages: u32) -> u64 {
        let mut punched = 0;
        let mut segment = 0;
        loop {
            let runs = {
                let mut slots = lock(&self.slots);
                if segment >= slots.segments() {
                    break;
                }
                slots.reserve_holes(segment, min_pages)
            };
            for run in runs {
                let hole = self.file.punch_hole(offset(run.start), bytes(run.len()));
                match &hole {
                    Ok(()) => punched += run.len(),
                    Err(_) => count(&self.counters.hole_errors, 1),
                }
                lock(&self.slots).release_hole(run, hole.is_ok());
            }
            segment += 1;
        }
        count(&self.counters.pages_punched, punched);
        bytes(punched)
    }

    /// Lets writes be tried again after one has failed. When to do so is the caller's policy.
    pub fn retry(&self) {
        self.unavailable.store(false, Ordering::Relaxed);
    }

    /// What the file holds and has done.
    pub fn statistics(&self) -> SwapStatistics {
        let (held, reclaimable, bookkeeping_bytes) = {
            let slots = lock(&self.slots);
            (slots.held(), slots.reclaimable(), slots.bookkeeping_bytes())
        };
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counted_bytes = |counter: &AtomicU64| counted(counter) * PAGE_BYTES as u64;
        let counters = &self.counters;
        SwapStatistics {
            pages: held.into(),
            held_bytes: bytes(held as usize),
            reclaimable_bytes: bytes(reclaimable as usize),
            limit_bytes: self.limit_bytes,
            bookkeeping_bytes,
            caching: self.caching,
            unavailable: self.unavailable.load(Ordering::Relaxed),
            writes: counted(&counters.writes),
            written_bytes: counted_bytes(&counters.pages_written),
            reads: counted(&counters.reads),
            read_bytes: counted_bytes(&counters.pages_read),
            punched_bytes: counted_bytes(&counters.pages_punched),
            write_errors: counted(&counters.write_errors),
            read_errors: counted(&counters.read_errors),
            checksum_errors: counted(&counters.checksum_errors),
            hole_errors: counted(&counters.hole_errors),
        }
    }

    /// Writes a prefix of `pages`, as many as one run of free slots takes; all of them or none.
    fn write_run(&self, pages: &[&Page]) -> Result<Range<u32>, SwapError> {
        if self.unavailable.load(Ordering::Relaxed) {
            return Err(SwapError::Unavailable);
        }
        let run =
            lock(&self.slots).allocate(pages.len() as u32).ok_or(SwapError::Full { limit_bytes: self.limit_bytes })?;
        let pages = &pages[..run.len()];
        let checksums: Vec<u32> = run.clone().zip(pages).map(|(slot, page)| checksum(slot, page)).collect();
        let outcome = self.put(run.start, pages);
        let mut slots = lock(&self.slots);
        if let Err(cause) = outcome {
            for slot in run.clone() {
                slots.free(slot);
            }
            drop(slots);
            self.unavailable.store(true, Ordering::Relaxed);
            count(&self.counters.write_errors, 1);
            return Err(SwapError::Write { first: Slot(run.start), pages: run.len(), cause });
        }
        for (slot, checksum) in run.clone().zip(checksums) {
            slots.set_checksum(slot, checksum);
        }
        drop(slots);
        count(&self.counters.writes, 1);
        count(&self.counters.pages_written, run.len());
        Ok(run)
    }

    /// Brings pages to the device, out of the page cache.
    fn put(&self, slot: u32, pages: &[&Page]) -> std::io::Result<()> {
        let at = offset(slot);
        match self.caching {
            Caching::Direct if pages.iter().all(|page| is_aligned(page)) => {
                let buffers: Vec<IoSlice<'_>> = pages.iter().map(|page| IoSlice::new(*page)).collect();
                write_pages(&self.file, &buffers, at)
            }
            Caching::Direct => {
                let copies: Vec<AlignedPage> = pages.iter().map(|page| AlignedPage(**page)).collect();
                let buffers: Vec<IoSlice<'_>> = copies.iter().map(|page| IoSlice::new(&page.0)).collect();
                write_pages(&self.file, &buffers, at)
            }
            Caching::Buffered => {
                let buffers: Vec<IoSlice<'_>> = pages.iter().map(|page| IoSlice::new(*page)).collect();
                let _turn = lock(&self.write_back);
                write_pages(&self.file, &buffers, at)?;
                self.file.sync(at, bytes(pages.len()))?;
                self.file.drop_cache(at, bytes(pages.len()))
            }
        }
    }

    /// Brings pages from the device.
    fn get(&self, slot: u32, pages: &mut [&mut Page]) -> std::io::Result<()> {
        let at = offset(slot);
        if self.caching == Caching::Direct && !pages.iter().all(|page| is_aligned(page)) {
            let mut copies = vec![AlignedPage::default(); pages.len()];
            let mut buffers: Vec<IoSliceMut<'_>> = copies.iter_mut().map(|page| IoSliceMut::new(&mut page.0)).collect();
            read_pages(&self.file, &mut buffers, at)?;
            for (page, copy) in pages.iter_mut().zip(&copies) {
                **page = copy.0;
            }
            return Ok(());
        }
        let mut buffers: Vec<IoSliceMut<'_>> = pages.iter_mut().map(|page| IoSliceMut::new(&mut **page)).collect();
        read_pages(&self.file, &mut buffers, at)?;
        match self.caching {
            Caching::Direct => Ok(()),
            Caching::Buffered => self.file.drop_cache(at, bytes(pages.len())),
        }
    }

    /// Reads a run once and checks it.
    fn read_run(&self, first: u32, pages: &mut [&mut Page], checksums: &[u32]) -> Result<(), SwapError> {
        if let Err(cause) = self.get(first, pages) {
            count(&self.counters.read_errors, 1);
            return Err(SwapError::Read { first: Slot(first), pages: pages.len(), cause });
        }
        let bad = |(slot, page, expected): (u32, &mut &mut Page, &u32)| {
            (checksum(slot, page) != *expected).then_some(Slot(slot))
        };
        let slots = first..first + pages.len() as u32;
        let mut damaged = slots
            .zip(pages.iter_mut())
            .zip(checksums)
            .filter_map(|((slot, page), expected)| bad((slot, page, expected)));
        let Some(slot) = damaged.next() else { return Ok(()) };
        let pages = 1 + damaged.count();
        count(&self.counters.checksum_errors, pages);
        Err(SwapError::Checksum { slot })
    }

    /// The checksums of a run of slots.
    fn checksums(&self, first: u32, count: usize) -> Result<Vec<u32>, SwapError> {
        let slots = lock(&self.slots);
        let mut checksums = Vec::with_capacity(count);
        for index in 0..count as u64 {
            // No slot beyond the numbers is held, so the last one stands for it.
            let slot = u32::try_from(u64::from(first) + index).unwrap_or(u32::MAX);
            checksums.push(slots.checksum(slot).ok_or(SwapError::NotHeld { slot: Slot(slot) })?);
        }
        Ok(checksums)
    }
}

/// The checksum of a page in a slot. The slot is part of it, so that a page read from the wrong place is found out.
fn checksum(slot: u32, page: &Page) -> u32 {
    XxHash3_64::oneshot_with_seed(slot.into(), page) as u32
}

/// Where direct I/O needs buffers to start. Some devices are content with less; every one with this.
fn is_aligned(page: &Page) -> bool {
    page.as_ptr().addr().is_multiple_of(PAGE_BYTES)
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * PAGE_BYTES as u64
}

fn bytes(pages: usize) -> u64 {
    pages as u64 * PAGE_BYTES as u64
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}
