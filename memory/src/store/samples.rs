//! Pages for tests.

use cistern_probe::content::{self, Identity, Kind, PAGE_WORDS};
use cistern_probe::random::Generator;

use super::{PAGE_BYTES, Page};

/// The page of a kind that a probe guest fills page `number` with.
pub fn page(kind: Kind, number: u32) -> Page {
    let mut words = [0; PAGE_WORDS];
    content::write(&mut words, &Identity { kind, seed: 7, page: number, duplicate: number, writes: 1, churned: false });
    let mut page = [0; PAGE_BYTES];
    for (bytes, word) in page.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    page
}

/// A page that starts with so many random bytes and goes on with zeroes: it compresses to about as many.
pub fn page_of_entropy(entropy_bytes: usize, seed: u64) -> Page {
    let mut page = [0; PAGE_BYTES];
    let mut generator = Generator::new(seed);
    for byte in &mut page[..entropy_bytes] {
        *byte = generator.next() as u8;
    }
    page
}
