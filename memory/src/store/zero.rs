//! Is a page all zero?

use super::Page;

/// Bytes looked at before deciding whether to go on: a few vector registers' worth, so that a page with content costs
/// next to nothing and an empty one runs at the speed of the cache.
const BLOCK_BYTES: usize = 256;

/// Whether every byte of the page is zero.
pub fn is_zero(page: &Page) -> bool {
    let (blocks, _) = page.as_chunks::<BLOCK_BYTES>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |seen, word| seen | u64::from_ne_bytes(*word)) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PAGE_BYTES;

    #[test]
    fn any_set_bit_is_seen() {
        let mut page = [0; PAGE_BYTES];
        assert!(is_zero(&page));
        for at in 0..PAGE_BYTES {
            for bit in [0, 7] {
                page[at] = 1 << bit;
                assert!(!is_zero(&page), "byte {at}, bit {bit}");
            }
            page[at] = 0;
        }
        assert!(is_zero(&page));
    }
}
