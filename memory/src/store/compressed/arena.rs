//! Memory of the store: address space in arenas, taken when needed, each twice as large as the one before.
//!
//! An arena is a private anonymous mapping of slabs with their descriptors. It costs address space only; the pages that
//! slabs touch cost memory, until they are released.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use super::StoreError;
use super::handle::Handle;
use super::slab::{SLAB_BYTES, Slab};

/// Slabs in the first arena.
const FIRST_SLABS: u32 = 64;
/// Doubling arenas until the handles run out.
const ARENAS: usize = (Handle::SLABS / FIRST_SLABS).ilog2() as usize;

/// Every slab there is. The number of a slab says which arena it is in.
#[derive(Debug, Default)]
pub(super) struct Arenas([OnceLock<Arena>; ARENAS]);

#[derive(Debug)]
struct Arena {
    mapping: NonNull<u8>,
    bytes: usize,
    slabs: Box<[Slab]>,
}

// SAFETY: the mapping is plain memory that only its slabs touch, each under the rules of `Slab`, which is Sync.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// Which arena a slab is in, and at which place there.
fn place(slab: u32) -> (usize, usize) {
    let arena = (slab / FIRST_SLABS + 1).ilog2();
    (arena as usize, (slab - first_slab(arena)) as usize)
}

fn first_slab(arena: u32) -> u32 {
    FIRST_SLABS * ((1 << arena) - 1)
}

impl Arenas {
    /// The slab with this number, if its arena exists.
    pub(super) fn slab(&self, number: u32) -> Option<&Slab> {
        let (arena, place) = place(number);
        self.0.get(arena)?.get()?.slabs.get(place)
    }

    /// Makes the arena of this slab. The caller makes sure that it is not made twice at a time.
    pub(super) fn make(&self, number: u32) -> Result<(), StoreError> {
        let (arena, _) = place(number);
        let cell = self.0.get(arena).ok_or(StoreError::Slabs)?;
        if cell.get().is_none() {
            // A loser of a race would only drop its own arena.
            let _ = cell.set(Arena::new((FIRST_SLABS as usize) << arena)?);
        }
        Ok(())
    }

    /// The memory of every arena made so far, for tests that ask the kernel about it.
    #[cfg(test)]
    pub(super) fn mappings(&self) -> impl Iterator<Item = (*const u8, usize)> {
        self.0.iter().filter_map(OnceLock::get).map(|arena| (arena.mapping.as_ptr().cast_const(), arena.bytes))
    }
}

impl Arena {
    fn new(slabs: usize) -> Result<Self, StoreError> {
        let bytes = slabs * SLAB_BYTES;
        let failed = |cause| StoreError::Map { bytes, cause };
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let raw = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if raw == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let mapping = NonNull::new(raw.cast::<u8>()).expect("mmap never returns page zero");
        // A huge page would hold memory that the slabs have released. A core dump must not hold a guest's secrets, and
        // a child has no use for them. Kernels built without one of these refuse it, and do not have the problem.
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // SAFETY: the range is exactly the mapping made above; the advice changes no content.
            unsafe { libc::madvise(raw, bytes, advice) };
        }
        let slabs = (0..slabs)
            .map(|at| {
                // SAFETY: slab `at` lies inside the mapping, no other slab overlaps it, and `Arena` keeps the mapping
                // for as long as the slab.
                unsafe { Slab::new(mapping.add(at * SLAB_BYTES)) }
            })
            .collect();
        Ok(Self { mapping, bytes, slabs })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this struct owns the mapping; its slabs, the only users, go with it.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slab_has_a_place_of_its_own() {
        let mut expected = (0, 0);
        for slab in 0..FIRST_SLABS * 31 {
            assert_eq!(place(slab), expected, "slab {slab}");
            expected.1 += 1;
            if expected.1 == (FIRST_SLABS as usize) << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
    }
}
