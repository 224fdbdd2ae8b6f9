//! Where a stored content is at the moment.

use super::compressed::Handle;

/// The home of a stored content. It changes when the content is written back to the swap file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Home {
    /// In the compressed store.
    Compressed(Handle),
    /// In the swap file, in this slot.
    Swapped(u32),
}

impl Home {
    /// Width of a home's number in bits.
    pub(super) const BITS: u32 = Handle::BITS + 1;

    const SWAPPED: u64 = 1 << Handle::BITS;

    /// The home as a number of [`Self::BITS`] bits.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Compressed(handle) => handle.number(),
            Self::Swapped(slot) => Self::SWAPPED | u64::from(slot),
        }
    }

    /// The home whose number this is; bits above [`Self::BITS`] are ignored.
    pub(super) fn from_number(number: u64) -> Self {
        if number & Self::SWAPPED == 0 {
            Self::Compressed(Handle::from_number(number & (Self::SWAPPED - 1)))
        } else {
            Self::Swapped(number as u32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_their_homes() {
        for home in [
            Home::Compressed(Handle::from_number(0)),
            Home::Compressed(Handle::from_number((1 << Handle::BITS) - 1)),
            Home::Swapped(0),
            Home::Swapped(u32::MAX),
        ] {
            assert_eq!(home.number() >> Home::BITS, 0, "{home:?}");
            assert_eq!(Home::from_number(home.number()), home);
        }
    }
}
