//! The pages benches work on: zero=20,dup=20,text=40,random=20, what a probe guest fills its memory with.

use cistern_memory::store::{PAGE_BYTES, Page};
use cistern_probe::content::{self, Identity, Kind, PAGE_WORDS};

/// The kind of page `number`.
pub fn kind_of(number: u32) -> Kind {
    match number % 10 {
        0 | 1 => Kind::Zero,
        2 | 3 => Kind::Dup,
        4..=7 => Kind::Text,
        _ => Kind::Random,
    }
}

/// Page `number` of the mix; every duplicate is there four times.
pub fn mixed(number: u32) -> Page {
    page(kind_of(number), number)
}

/// Page `number` of a guest that has nothing but this kind.
pub fn page(kind: Kind, number: u32) -> Page {
    let mut words = [0; PAGE_WORDS];
    content::write(
        &mut words,
        &Identity { kind, seed: 7, page: number, duplicate: number / 40, writes: 1, churned: false },
    );
    let mut page = [0; PAGE_BYTES];
    for (bytes, word) in page.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    page
}
