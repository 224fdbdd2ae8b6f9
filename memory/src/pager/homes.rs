//! All stores behind one door: a page goes in by content and comes out by what its state word remembers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::page_table::{Location, Stored};
use crate::store::codec::{Block, CodecError, Compressor, Decompressor};
use crate::store::compressed::{CompressedStore, Handle, OldBlock, StoreError};
use crate::store::duplicate::{DuplicateIndex, PageHash, Released, ShareId};
use crate::store::swap::{AlignedPage, Slot, SwapError, SwapFile, WriteError};
use crate::store::{Home, Page, zero};

use super::config::PagerConfig;

/// How often a page that is not where its entry says is looked for again: each time it was moved meanwhile.
const LOOKS: usize = 64;

/// Why a stored page cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// The compressed store.
    #[error(transparent)]
    Compressed(#[from] StoreError),
    /// The swap file.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// The index knows nothing of it.
    #[error("{0}")]
    Index(#[from] crate::store::duplicate::DuplicateError),
    /// There is no swap file.
    #[error("swap file: there is none")]
    NoSwap,
}

/// What became of a page that was to be stored in memory.
#[derive(Debug)]
pub(super) enum Placed {
    /// It has a home.
    Home(Stored),
    /// It needs more than it is worth; its hash, for the swap file.
    Incompressible(PageHash),
    /// It would compress, but the store has no room; its hash, for the swap file.
    Full(PageHash),
}

/// What a thread needs to store and to bring back pages.
pub(super) struct Workbench {
    compressor: Compressor,
    pub decompressor: Decompressor,
    page: Box<AlignedPage>,
    /// Room for pages that are written back, kept so that it is not allocated each time while there is work.
    old: Vec<AlignedPage>,
}

impl Workbench {
    pub fn new(config: &PagerConfig) -> Result<Self, CodecError> {
        Ok(Self {
            compressor: Compressor::new(config.codec, config.compressed_limit_bytes)?,
            decompressor: Decompressor::new(),
            page: Box::default(),
            old: Vec::new(),
        })
    }

    /// Gives room up that is needed for work only.
    pub fn rest(&mut self) {
        self.old = Vec::new();
    }
}

/// The swap file.
#[cfg(not(test))]
pub(super) type Swap = SwapFile;
/// The swap file, whose operations fail when a test says so.
#[cfg(test)]
pub(super) type Swap = SwapFile<crate::store::swap::fault::Faulty>;

/// Every store of one VM.
pub(super) struct Homes {
    pub compressed: CompressedStore,
    pub index: DuplicateIndex,
    pub swap: Option<Swap>,
    /// Equal pages are stored once.
    // Alone: the next page takes it.
    pub shares: AtomicBool,
    /// Memory of index and bookkeeping when last asked: asking takes too long for every fault.
    bookkeeping_bytes: AtomicU64,
    started: Instant,
}

/// A name as a state word remembers it.
fn location(share: ShareId) -> Location {
    Location::new(share.number().into()).expect("32 bits fit")
}

fn share_of(stored: Stored) -> Option<ShareId> {
    match stored {
        Stored::Zero => None,
        Stored::Duplicate(location) | Stored::Compressed(location) | Stored::Swapped(location) => {
            Some(ShareId::from_number(location.get() as u32))
        }
    }
}

impl Homes {
    pub fn new(config: &PagerConfig, swap: Option<Swap>) -> Self {
        Self {
            compressed: CompressedStore::new(config.store_limit_bytes),
            index: DuplicateIndex::new(),
            swap,
            shares: AtomicBool::new(true),
            bookkeeping_bytes: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// The stores' clock.
    pub fn now_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Memory that the stores cost the host; that of their bookkeeping as of the last [`Homes::count_bookkeeping`].
    pub fn held_bytes(&self) -> u64 {
        self.compressed.statistics().held_bytes + self.bookkeeping_bytes.load(Ordering::Relaxed)
    }

    /// Finds out what index and slot tables take.
    pub fn count_bookkeeping(&self) {
        let swap_bytes = self.swap.as_ref().map_or(0, |swap| swap.statistics().bookkeeping_bytes);
        self.bookkeeping_bytes.store(self.index.statistics().held_bytes + swap_bytes, Ordering::Relaxed);
    }

    /// Stores a page in memory if it is zero, equal to one that is stored, or compresses well.
    pub fn place(&self, page: &Page, gfn: u64, bench: &mut Workbench) -> Placed {
        if zero::is_zero(page) {
            return Placed::Home(Stored::Zero);
        }
        let hash = self.index.hash(page);
        if let Some(share) = self.find_equal(page, hash, bench) {
            return Placed::Home(Stored::Duplicate(location(share)));
        }
        let Some(block) = bench.compressor.compress(page) else { return Placed::Incompressible(hash) };
        match self.insert(&block, gfn, hash) {
            Some(share) => Placed::Home(Stored::Compressed(location(share))),
            None => Placed::Full(hash),
        }
    }

    fn insert(&self, block: &Block<'_>, gfn: u64, hash: PageHash) -> Option<ShareId> {
        // Beyond 16 TiB of guest memory the block has a wrong owner, which is found out when it is written back.
        let handle = self.compressed.insert(block, gfn as u32, self.now_seconds()).ok()?;
        match self.index.insert(hash, Home::Compressed(handle)) {
            Ok(share) => Some(share),
            Err(_) => {
                let _ = self.compressed.remove(handle);
                None
            }
        }
    }

    /// A stored content equal to the page, with a reference to it for the caller. The hash is a hint, the whole page is
    /// compared.
    fn find_equal(&self, page: &Page, hash: PageHash, bench: &mut Workbench) -> Option<ShareId> {
        if !self.shares.load(Ordering::Relaxed) {
            return None;
        }
        let candidate = self.index.acquire(hash)?;
        let Workbench { decompressor, page: buffer, .. } = bench;
        if self.read(candidate.share, decompressor, &mut buffer.0).is_ok() && buffer.0 == *page {
            return Some(candidate.share);
        }
        self.let_go(candidate.share);
        None
    }

    /// Writes pages to the swap file and gives each its home: those of the first ones that were written, with the error
    /// that kept the others out.
    pub fn write(&self, pages: &[(&Page, PageHash)]) -> (Vec<Stored>, Option<SwapError>) {
        let Some(swap) = &self.swap else { return (Vec::new(), Some(SwapError::Unavailable)) };
        let contents: Vec<&Page> = pages.iter().map(|(page, _)| *page).collect();
        let (slots, cause) = match swap.write(&contents) {
            Ok(slots) => (slots, None),
            Err(WriteError { written, cause, .. }) => (written, Some(cause)),
        };
        let mut homes = Vec::with_capacity(slots.len());
        let mut written = slots.into_iter().zip(pages);
        for (slot, (_, hash)) in written.by_ref() {
            match self.index.insert(*hash, Home::Swapped(slot.index())) {
                Ok(share) => homes.push(Stored::Swapped(location(share))),
                // As many contents as can be named: this page has no home, nor have those behind it.
                Err(_) => {
                    let _ = swap.free(slot);
                    break;
                }
            }
        }
        for (slot, _) in written {
            let _ = swap.free(slot);
        }
        (homes, cause)
    }

    /// Whether bringing a page back takes I/O.
    pub fn is_on_disk(&self, stored: Stored) -> bool {
        self.slot(stored).is_some()
    }

    /// Where in the swap file a page is, if it is there.
    pub fn slot(&self, stored: Stored) -> Option<Slot> {
        match self.index.home(share_of(stored)?) {
            Ok(Home::Swapped(slot)) => Some(Slot::from_index(slot)),
            _ => None,
        }
    }

    /// Flips a bit of a page in the compressed store.
    #[cfg(all(test, not(loom)))]
    pub fn damage(&self, stored: Stored) {
        let Some(Ok(Home::Compressed(handle))) = share_of(stored).map(|share| self.index.home(share)) else {
            panic!("{stored:?} is not in the compressed store");
        };
        // In the middle of the block, where it tells.
        self.compressed.damage(handle, 4001);
    }

    /// Reads a stored page; it stays stored.
    pub fn fetch(&self, stored: Stored, decompressor: &mut Decompressor, page: &mut Page) -> Result<(), FetchError> {
        match share_of(stored) {
            Some(share) => self.read(share, decompressor, page),
            None => {
                page.fill(0);
                Ok(())
            }
        }
    }

    fn read(&self, share: ShareId, decompressor: &mut Decompressor, page: &mut Page) -> Result<(), FetchError> {
        let mut looks = 0;
        loop {
            match self.index.home(share)? {
                Home::Compressed(handle) => match self.compressed.read(handle, decompressor, page) {
                    // It was written back meanwhile.
                    Err(StoreError::Missing(_)) if looks < LOOKS => looks += 1,
                    outcome => return Ok(outcome?),
                },
                Home::Swapped(slot) => {
                    let swap = self.swap.as_ref().ok_or(FetchError::NoSwap)?;
                    return Ok(swap.read(Slot::from_index(slot), &mut [page])?);
                }
            }
        }
    }

    /// A page does not need its stored content any more.
    pub fn release(&self, stored: Stored) {
        if let Some(share) = share_of(stored) {
            self.let_go(share);
        }
    }

    /// Gives up a reference, and with the last one the content.
    fn let_go(&self, share: ShareId) {
        // Each of these fails only where a reference was given up twice; then there is nothing to free.
        let _ = match self.index.release(share) {
            Ok(Released::Last(Home::Compressed(handle))) => self.compressed.remove(handle).map_err(|_| ()),
            Ok(Released::Last(Home::Swapped(slot))) => match &self.swap {
                Some(swap) => swap.free(Slot::from_index(slot)).map_err(|_| ()),
                None => Err(()),
            },
            Ok(Released::Shared) => Ok(()),
            Err(_) => Err(()),
        };
    }

    /// Reads blocks of the compressed store that are to go to the swap file; each content keeps a reference until
    /// [`Homes::write_back`]. Blocks that are gone meanwhile are left out.
    pub fn take_old(&self, blocks: &[OldBlock], bench: &mut Workbench) -> OldPages {
        let mut old = OldPages { pages: std::mem::take(&mut bench.old), contents: Vec::with_capacity(blocks.len()) };
        // At once: grown bit by bit it would leave holes of half its size in the heap.
        old.pages.reserve_exact(blocks.len().saturating_sub(old.pages.len()));
        for block in blocks {
            let next = old.contents.len();
            if next == old.pages.len() {
                old.pages.push(AlignedPage::default());
            }
            old.contents.extend(self.take_one(*block, &mut bench.decompressor, &mut old.pages[next].0));
        }
        old
    }

    fn take_one(&self, block: OldBlock, decompressor: &mut Decompressor, page: &mut Page) -> Option<OldContent> {
        self.compressed.read(block.handle, decompressor, page).ok()?;
        let share = self.index.acquire_at(self.index.hash(page), Home::Compressed(block.handle))?;
        Some(OldContent { share, handle: block.handle, gfn: block.owner.into() })
    }

    /// Writes old pages to the swap file and removes them from the compressed store. `moved` is told of each that has
    /// moved: the page that was stored first with it, its old place and its new one. Returns how many those were.
    pub fn write_back(&self, old: &OldPages, mut moved: impl FnMut(u64, Stored, Stored)) -> (usize, Option<SwapError>) {
        let contents: Vec<&Page> = old.pages.iter().take(old.contents.len()).map(|page| &page.0).collect();
        let (slots, cause) = match self.swap.as_ref().map(|swap| swap.write(&contents)) {
            Some(Ok(slots)) => (slots, None),
            Some(Err(WriteError { written, cause, .. })) => (written, Some(cause)),
            None => (Vec::new(), Some(SwapError::Unavailable)),
        };
        let mut count = 0;
        for (old, slot) in old.contents.iter().zip(slots) {
            let to = Home::Swapped(slot.index());
            if self.index.relocate(old.share, Home::Compressed(old.handle), to) == Ok(true) {
                let _ = self.compressed.remove(old.handle);
                let name = location(old.share);
                moved(old.gfn, Stored::Compressed(name), Stored::Swapped(name));
                count += 1;
            } else if let Some(swap) = &self.swap {
                let _ = swap.free(slot);
            }
        }
        // Not before the end: until then the contents could not go away under the write.
        old.contents.iter().for_each(|old| self.let_go(old.share));
        (count, cause)
    }
}

/// Pages on their way from the compressed store to the swap file.
pub(super) struct OldPages {
    /// Their content, and room for more.
    pages: Vec<AlignedPage>,
    contents: Vec<OldContent>,
}

impl OldPages {
    pub fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    /// Gives the room back to the workbench it is from.
    pub fn put_away(self, bench: &mut Workbench) {
        bench.old = self.pages;
    }
}

struct OldContent {
    share: ShareId,
    handle: Handle,
    /// The page that was stored first with this content; others may share it, or have taken it over.
    gfn: u64,
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use cistern_probe::content::Kind;

    use super::*;
    use crate::store::{PAGE_BYTES, samples};

    #[test]
    fn pages_that_differ_are_stored_apart_whatever_their_hashes() {
        let config = PagerConfig { compressed_limit_bytes: PAGE_BYTES * 3 / 4, ..PagerConfig::default() };
        let homes = Homes { index: DuplicateIndex::colliding(), ..Homes::new(&config, None) };
        let mut bench = Workbench::new(&config).unwrap();
        let page_of = |number: u64| {
            let mut page = samples::page(Kind::Text, 7);
            // One bit of the last byte or so.
            page[PAGE_BYTES - 1 - number as usize / 8] ^= 1 << (number % 8);
            page
        };
        let mut stored = Vec::new();
        for gfn in 0..20 {
            let Placed::Home(home) = homes.place(&page_of(gfn), gfn, &mut bench) else { panic!("page {gfn}") };
            assert!(matches!(home, Stored::Compressed(_)), "page {gfn}: {home:?}");
            stored.push(home);
        }
        assert_eq!(homes.index.statistics().contents, 20);
        let mut page = [0; PAGE_BYTES];
        for (gfn, home) in (0..).zip(&stored) {
            homes.fetch(*home, &mut bench.decompressor, &mut page).unwrap();
            assert!(page == page_of(gfn), "page {gfn}");
        }
        stored.into_iter().for_each(|home| homes.release(home));
        assert_eq!((homes.index.statistics().contents, homes.compressed.statistics().pages), (0, 0));
    }
}
