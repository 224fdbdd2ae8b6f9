//! Private anonymous memory of this process, populated lazily: what guest RAM and the pages beside it lie in.

use std::io;
use std::ptr::{self, NonNull};

/// Why memory could not be mapped or changed.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// The host refused the mapping.
    #[error("guest RAM: mapping {} MiB: {cause}: use a smaller --memory, or raise 'ulimit -v'", bytes >> 20)]
    Map {
        /// Size asked for.
        bytes: u64,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel refused advice on the mapping.
    #[error("guest RAM: madvise({advice}): {cause}")]
    Advise {
        /// The advice by its kernel name.
        advice: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Alignment of the mapping in host and guest addresses, so that both sides may use 2 MiB pages.
pub(crate) const HUGE_PAGE_SIZE: usize = 2 << 20;

/// An owned, 2 MiB aligned anonymous mapping.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory, valid from any thread; all access goes through volatile views, or by the owner of
// a page's claim.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself hands out no references.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

    pub(crate) fn new(bytes: usize) -> Result<Self, MappingError> {
        let failed = |cause| MappingError::Map { bytes: bytes as u64, cause };
        // Reserve one huge page more than asked, then cut both ends off to align the rest.
        let reserved =
            bytes.checked_add(HUGE_PAGE_SIZE).ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let raw =
            unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_READ | libc::PROT_WRITE, Self::FLAGS, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let start = (raw as usize).next_multiple_of(HUGE_PAGE_SIZE);
        let (head, tail) = (start - raw as usize, raw as usize + reserved - (start + bytes));
        // SAFETY: both pieces belong to the mapping made above and nothing points into them.
        unsafe {
            if head > 0 {
                libc::munmap(raw, head);
            }
            if tail > 0 {
                libc::munmap((start + bytes) as *mut libc::c_void, tail);
            }
        }
        let mapping = Self { start: NonNull::new(start as *mut u8).expect("mmap never returns page zero"), bytes };
        // A forked child must not share guest pages copy-on-write, and a core dump must not hold a guest's secrets.
        mapping.advise("MADV_DONTFORK", libc::MADV_DONTFORK)?;
        mapping.advise("MADV_DONTDUMP", libc::MADV_DONTDUMP)?;
        // A process may inherit that all its memory is to be merged (PR_SET_MEMORY_MERGE), and KSM drops the protection that
        // copying pages out rests on. Kernels without KSM refuse this, and need it not.
        let _ = mapping.advise("MADV_UNMERGEABLE", libc::MADV_UNMERGEABLE);
        Ok(mapping)
    }

    /// The first byte.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Gives all of it advice that changes no content.
    pub(crate) fn advise(&self, name: &'static str, advice: i32) -> Result<(), MappingError> {
        self.advise_range(self.address(), self.bytes(), name, advice)
    }

    /// Drops the pages of a range: they read as zero and cost nothing until touched again.
    pub(crate) fn drop_pages(&self, address: u64, bytes: u64) -> Result<(), MappingError> {
        self.advise_range(address, bytes, "MADV_DONTNEED", libc::MADV_DONTNEED)
    }

    /// Advice on whole pages of the mapping.
    pub(crate) fn advise_range(
        &self,
        address: u64,
        bytes: u64,
        name: &'static str,
        advice: i32,
    ) -> Result<(), MappingError> {
        let end = address.checked_add(bytes);
        let inside = address >= self.address() && end.is_some_and(|end| end <= self.address() + self.bytes());
        if !inside {
            return Err(MappingError::Advise { advice: name, cause: io::Error::from_raw_os_error(libc::EINVAL) });
        }
        // SAFETY: the range was checked to lie inside this mapping. Pages that are dropped change guest-visible bytes only,
        // which are volatile by nature and never borrowed as Rust references, or belong to the owner of their claim.
        let result = unsafe { libc::madvise(address as *mut libc::c_void, bytes as usize, advice) };
        if result != 0 {
            return Err(MappingError::Advise { advice: name, cause: io::Error::last_os_error() });
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this struct owns the mapping and is its last user.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
