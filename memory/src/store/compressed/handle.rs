//! The name of a stored block.

use super::slab::SLOTS;

/// Names one block in a [`CompressedStore`](super::CompressedStore) until it is removed: 40 bits.
///
/// A handle that is used after its block was removed is found out: always while the slab still holds other blocks of
/// that time, and 255 times in 256 once the slab has been filled anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(u64);

const SLOT_BITS: u32 = SLOTS.ilog2();
const SLAB_BITS: u32 = 22;
const GENERATION_BITS: u32 = 8;

const _: () = assert!(Handle::BITS <= 40, "a page's state word has no room for more");

impl Handle {
    /// Width of a handle's number in bits.
    pub const BITS: u32 = SLOT_BITS + SLAB_BITS + GENERATION_BITS;

    /// How many slabs can be told apart.
    pub(super) const SLABS: u32 = 1 << SLAB_BITS;

    pub(super) fn new(slab: u32, slot: u16, generation: u8) -> Self {
        Self(u64::from(slot) | u64::from(slab) << SLOT_BITS | u64::from(generation) << (SLOT_BITS + SLAB_BITS))
    }

    /// The handle as a number of [`Self::BITS`] bits.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The handle whose number this is; bits above [`Self::BITS`] are ignored. A number that never was a handle's names
    /// no block.
    pub fn from_number(number: u64) -> Self {
        Self(number & ((1 << Self::BITS) - 1))
    }

    pub(super) fn slab(self) -> u32 {
        (self.0 >> SLOT_BITS) as u32 & (Self::SLABS - 1)
    }

    pub(super) fn slot(self) -> u16 {
        self.0 as u16 & (SLOTS as u16 - 1)
    }

    pub(super) fn generation(self) -> u8 {
        (self.0 >> (SLOT_BITS + SLAB_BITS)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_kept_apart() {
        let (slab, slot, generation) = (Handle::SLABS - 2, SLOTS as u16 - 3, 0xa5);
        let handle = Handle::new(slab, slot, generation);
        assert_eq!((handle.slab(), handle.slot(), handle.generation()), (slab, slot, generation));
        assert_eq!(Handle::from_number(handle.number()), handle);
        assert_eq!(handle.number() >> Handle::BITS, 0);
    }
}
