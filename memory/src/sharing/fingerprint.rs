//! What is told of a page: 32 bits of a hash that is keyed with a secret of the pool.
//!
//! A fingerprint is a hint: the kernel compares whole pages before it merges them, so two that differ and have the same
//! one are advised in vain and no more. That happens to one pair in 2^32: of a guest's pages, beside 2^23 others in the
//! pool (32 GiB), one in 512 seems to have a copy.
//!
//! **What it reveals.** No content: 2^32736 pages have each fingerprint. A guess can be tested against it, but only with
//! the salt, which never leaves the pool's folder (mode 0600): who can read that is the user who runs the guests.
//! Without it fingerprints are numbers that say how often a content occurs, not which. A guest never sees one, so it
//! can neither test a guess nor aim at a collision. XXH3 is no cryptographic hash: nothing here rests on it against
//! somebody who has both fingerprints and pages of his choice, as only the user has.
//!
//! The hash is XXH3 of 128 bits with a part of the salt as its seed (github.com/Cyan4973/xxHash); the rest of the salt keys
//! how it is folded to 32, so that what XXH3 lets through of its seed is not seen.

use std::fmt;
use std::num::NonZeroU32;

use twox_hash::{XxHash3_64, XxHash3_128};

use crate::store::{Page, zero};

/// Bytes of a salt: a seed, and two words that key the fold.
pub const SALT_BYTES: usize = 24;

/// What is told of a page's content; good for one pool only. As an `Option` it takes 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(NonZeroU32);

impl Fingerprint {
    /// It as a number, never 0.
    pub fn number(self) -> u32 {
        self.0.get()
    }

    /// The one whose number this is; there is none for 0.
    pub fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }
}

/// The secret of a pool. All its members have the same.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt {
    bytes: [u8; SALT_BYTES],
    mask: u32,
}

impl Salt {
    /// The salt that is made of these bytes, which must be random.
    pub fn from_bytes(bytes: [u8; SALT_BYTES]) -> Self {
        Self { bytes, mask: u32::MAX }
    }

    /// A salt whose fingerprints have only these bits of the hash: pages that differ have the same one as often as a
    /// test needs it, and always with 0.
    #[must_use]
    pub fn with_mask(self, mask: u32) -> Self {
        Self { mask, ..self }
    }

    /// The page's fingerprint; `None` for one that is all zero, which needs none.
    pub fn fingerprint(&self, page: &Page) -> Option<Fingerprint> {
        (!zero::is_zero(page)).then(|| self.cut(page))
    }

    /// Tells salts apart: fingerprints of two that differ have nothing to do with each other.
    pub(super) fn id(&self) -> u64 {
        XxHash3_64::oneshot_with_seed(self.mask.into(), &self.bytes)
    }

    pub(super) fn words(&self) -> [u64; SALT_BYTES / 8] {
        let (words, _) = self.bytes.as_chunks::<8>();
        std::array::from_fn(|at| u64::from_le_bytes(words[at]))
    }

    fn cut(&self, page: &Page) -> Fingerprint {
        let [seed, low_key, high_key] = self.words();
        let hash = XxHash3_128::oneshot_with_seed(seed, page);
        let product = u128::from(hash as u64 ^ low_key) * u128::from((hash >> 64) as u64 ^ high_key);
        let folded = (product ^ product >> 64) as u32;
        // 0 is none; that 1 is there twice as often does no harm.
        Fingerprint(NonZeroU32::new(folded & self.mask).unwrap_or(NonZeroU32::MIN))
    }
}

impl fmt::Debug for Salt {
    /// It is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Salt").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::HashSet;

    use cistern_probe::content::Kind;
    use proptest::prelude::*;

    use super::*;
    use crate::store::PAGE_BYTES;
    use crate::store::samples::{page, page_of_entropy};

    fn salt(number: u8) -> Salt {
        Salt::from_bytes(std::array::from_fn(|at| number.wrapping_mul(91).wrapping_add(at as u8).wrapping_mul(167)))
    }

    #[test]
    fn a_zero_page_has_none_and_no_other_has_none() {
        assert_eq!(salt(1).fingerprint(&[0; PAGE_BYTES]), None);
        let mut page = [0; PAGE_BYTES];
        for at in (0..PAGE_BYTES).step_by(97) {
            page[at] = 1;
            assert!(salt(1).with_mask(0).fingerprint(&page).is_some(), "byte {at}");
            page[at] = 0;
        }
        assert_eq!(size_of::<Option<Fingerprint>>(), 4);
        assert_eq!(Fingerprint::from_number(0), None);
        assert_eq!(Fingerprint::from_number(7).map(Fingerprint::number), Some(7));
    }

    #[test]
    fn pages_and_salts_have_their_own() {
        let pages: Vec<_> = (0..500).map(|number| page_of_entropy(512, number)).collect();
        let text: Vec<_> = (0..500).map(|number| page(Kind::Text, number)).collect();
        let count = |salt: &Salt| -> HashSet<_> {
            pages.iter().chain(&text).map(|page| salt.fingerprint(page).unwrap()).collect()
        };
        let (one, two) = (count(&salt(1)), count(&salt(2)));
        assert_eq!((one.len(), two.len()), (1000, 1000));
        assert_eq!(one.intersection(&two).count(), 0);
        assert_ne!(salt(1).id(), salt(2).id());
        assert_ne!(salt(1).id(), salt(1).with_mask(0).id());
    }

    #[test]
    fn every_byte_of_the_salt_and_of_the_page_counts() {
        let page = page_of_entropy(PAGE_BYTES, 1);
        let fingerprint = salt(1).fingerprint(&page);
        for at in 0..SALT_BYTES {
            let mut other = salt(1);
            other.bytes[at] ^= 1;
            assert_ne!(other.fingerprint(&page), fingerprint, "byte {at} of the salt");
        }
        for at in 0..PAGE_BYTES {
            let mut other = page;
            other[at] ^= 0x10;
            assert_ne!(salt(1).fingerprint(&other), fingerprint, "byte {at} of the page");
        }
    }

    #[test]
    fn a_mask_makes_pages_collide() {
        let pages: Vec<_> = (0..64).map(|number| page_of_entropy(64, number)).collect();
        let count = |mask| -> HashSet<_> {
            pages.iter().map(|page| salt(3).with_mask(mask).fingerprint(page).unwrap().number()).collect()
        };
        assert_eq!(count(0), HashSet::from([1]));
        // 0 and 1 are both 1.
        assert_eq!(count(3), HashSet::from([1, 2, 3]));
    }

    #[test]
    fn a_salt_is_not_shown() {
        assert_eq!(format!("{:?}", salt(1)), "Salt { .. }");
    }

    proptest! {
        #[test]
        fn equal_pages_have_equal_fingerprints(entropy_bytes in 1..PAGE_BYTES, seed: u64, number: u8, mask: u32) {
            let salt = salt(number).with_mask(mask);
            let [one, two] = [0, 1].map(|_| page_of_entropy(entropy_bytes, seed));
            prop_assert_eq!(salt.fingerprint(&one), salt.fingerprint(&two));
        }
    }
}
