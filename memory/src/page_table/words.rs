//! The memory the state words live in: one word a page, zero until first written.
//!
//! Table memory that was never written costs the host nothing: it is a lazily populated mapping without huge pages, and
//! a bitmap says which of its pages hold anything, so that scans leave the others alone.

use super::{AtomicU64, PageTableError};
use std::sync::atomic::Ordering;

/// Words in one 4 KiB page of the table: what one bit of the bitmap stands for.
const CHUNK_WORDS: u64 = 512;

/// The words of all pages.
#[derive(Debug)]
pub(super) struct Words {
    cells: cells::Cells,
    /// One bit a chunk: some word in it has been other than zero.
    written: Box<[AtomicU64]>,
    pages: u64,
}

impl Words {
    pub(super) fn new(pages: u64) -> Result<Self, PageTableError> {
        let cells = cells::Cells::new(pages)?;
        let written = (0..pages.div_ceil(CHUNK_WORDS * 64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { cells, written, pages })
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    pub(super) fn get(&self, gfn: u64) -> Option<&AtomicU64> {
        usize::try_from(gfn).ok().and_then(|index| self.cells.as_slice().get(index))
    }

    /// Notes that the word of `gfn` is about to leave zero. Called before the word changes, so that whoever has seen the
    /// change also sees the bit.
    pub(super) fn note_write(&self, gfn: u64) {
        let (bits, bit) = self.written_bit(gfn);
        // Acquire, release: `open` reads the bits by read-modify-write, so a bit set behind its back is set after it in
        // the bits' modification order, and then the setter sees that the VM is open.
        if bits.load(Ordering::Acquire) & bit == 0 {
            bits.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// The first page at or after `gfn` in a chunk that was ever written; `pages` or more if there is none.
    pub(super) fn next_written(&self, mut gfn: u64) -> u64 {
        while gfn < self.pages {
            let (bits, bit) = self.written_bit(gfn);
            if bits.load(Ordering::Acquire) & bit != 0 {
                break;
            }
            gfn = (gfn / CHUNK_WORDS + 1) * CHUNK_WORDS;
        }
        gfn
    }

    /// As [`Words::next_written`], ordered against every later [`Words::note_write`].
    pub(super) fn next_written_exactly(&self, mut gfn: u64) -> u64 {
        while gfn < self.pages {
            let (bits, bit) = self.written_bit(gfn);
            if bits.fetch_or(0, Ordering::AcqRel) & bit != 0 {
                break;
            }
            gfn = (gfn / CHUNK_WORDS + 1) * CHUNK_WORDS;
        }
        gfn
    }

    /// Where the words lie in this process.
    #[cfg(all(test, not(loom)))]
    pub(super) fn addresses(&self) -> std::ops::Range<usize> {
        let range = self.cells.as_slice().as_ptr_range();
        range.start as usize..range.end as usize
    }

    fn written_bit(&self, gfn: u64) -> (&AtomicU64, u64) {
        let chunk = gfn / CHUNK_WORDS;
        (&self.written[(chunk / 64) as usize], 1 << (chunk % 64))
    }
}

#[cfg(not(all(test, loom)))]
mod cells {
    use std::io;
    use std::ptr::{self, NonNull};
    use std::slice;

    use super::super::{AtomicU64, PageTableError};

    /// A private anonymous mapping. The heap would do but for huge pages: with them on, the first word written would
    /// cost 2 MiB, the table of a gigabyte.
    #[derive(Debug)]
    pub struct Cells {
        start: NonNull<AtomicU64>,
        words: usize,
    }

    // SAFETY: the mapping is plain memory owned by this struct; all access is through atomics.
    unsafe impl Send for Cells {}
    // SAFETY: as above.
    unsafe impl Sync for Cells {}

    impl Cells {
        pub fn new(pages: u64) -> Result<Self, PageTableError> {
            let failed = |cause| PageTableError::Map { pages, cause };
            let words = usize::try_from(pages).ok().filter(|words| words.checked_mul(size_of::<AtomicU64>()).is_some());
            let words = words.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
            let bytes = words * size_of::<AtomicU64>();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
            let raw = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
            if raw == libc::MAP_FAILED {
                return Err(failed(io::Error::last_os_error()));
            }
            // A kernel without huge pages refuses this, and then it is not needed.
            // SAFETY: the range is the mapping made above; the advice changes no content.
            unsafe { libc::madvise(raw, bytes, libc::MADV_NOHUGEPAGE) };
            Ok(Self { start: NonNull::new(raw.cast()).expect("mmap never returns page zero"), words })
        }

        pub fn as_slice(&self) -> &[AtomicU64] {
            // SAFETY: the mapping holds `words` words, page aligned and zero from the start, which is a valid atomic;
            // it lives as long as `self`, and nothing else refers to it.
            unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
        }
    }

    impl Drop for Cells {
        fn drop(&mut self) {
            // SAFETY: this struct owns the mapping and is its last user.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * size_of::<AtomicU64>()) };
        }
    }
}

/// loom's atomics are objects with a history, not plain memory.
#[cfg(all(test, loom))]
mod cells {
    use super::super::{AtomicU64, PageTableError};

    #[derive(Debug)]
    pub struct Cells(Box<[AtomicU64]>);

    impl Cells {
        pub fn new(pages: u64) -> Result<Self, PageTableError> {
            Ok(Self((0..pages).map(|_| AtomicU64::new(0)).collect()))
        }

        pub fn as_slice(&self) -> &[AtomicU64] {
            &self.0
        }
    }
}
