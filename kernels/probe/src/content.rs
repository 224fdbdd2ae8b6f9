//! What a page holds: a pure function of its kind, the seed, its index and how often it was written.
//!
//! A page is a **header** of four words and a **body**. The header says whose page this is, masked so that it looks
//! random, and its first word proves the other three. So a page that is not what it must be can still be asked what it
//! is: an intact page of an earlier write count is *stale*, one of another page or seed is *foreign*, anything else is
//! *corrupt*. The body does not depend on the write count: a write of a walk changes one cache line, as programs do.
//!
//! | kind | written once | written again |
//! |---|---|---|
//! | zero | all zero | header, then zeroes |
//! | dup | header and body from the duplicate's number alone: the same in every guest | header of its own, same body |
//! | text | header, words of a small vocabulary (lz4 0.40 to 0.55) | new header, same body |
//! | random | header, incompressible words | new header, same body |
//!
//! A page found all zero that must not be is called stale: zero is what it held before its first fill.
//!
//! A **churned** page is made anew by every write, of another kind each time, body and all:
//!
//! | kind | every time |
//! |---|---|
//! | zero | all zero |
//! | dup | header and body from the duplicate's number alone; many pages of a guest share a number |
//! | text | header, words of a smaller vocabulary that follow from the write count too (lz4 below 0.40) |
//! | random | header, incompressible words that follow from the write count too |
//!
//! Whose a churned duplicate or zero page was cannot be told: a churned page that holds one is called stale.

use crate::random::{Generator, mix};

/// Words of 8 bytes in a page.
pub const PAGE_WORDS: usize = 512;
/// Words of the header, at the start of the page.
pub const HEADER_WORDS: usize = 4;

/// A page, as words.
pub type Page = [u64; PAGE_WORDS];

/// What sort of content a page has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// All zero until written again.
    Zero = 0,
    /// Equal to the page of the same number in every other guest.
    Dup = 1,
    /// Unique, compressible to about half.
    Text = 2,
    /// Unique, incompressible.
    Random = 3,
}

impl Kind {
    /// The name used in programs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Dup => "dup",
            Self::Text => "text",
            Self::Random => "random",
        }
    }

    const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Zero),
            1 => Some(Self::Dup),
            2 => Some(Self::Text),
            3 => Some(Self::Random),
            _ => None,
        }
    }
}

/// Everything a page's content follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The sort of content.
    pub kind: Kind,
    /// Seed of the fill that made the page.
    pub seed: u64,
    /// Index of the page in the guest's pool.
    pub page: u32,
    /// Which duplicate this is; 0 for the other kinds.
    pub duplicate: u32,
    /// How often the page was written; 1 after the fill. 0 never occurs.
    pub writes: u32,
    /// Whether every write makes the page anew.
    pub churned: bool,
}

impl Identity {
    /// The header of this page.
    #[inline]
    pub const fn header(&self) -> [u64; HEADER_WORDS] {
        let is_as_filled = self.churned || self.writes == 1;
        if matches!(self.kind, Kind::Zero) && is_as_filled {
            return [0; HEADER_WORDS];
        }
        // A duplicate, as filled, must not depend on whose it is.
        let shared = matches!(self.kind, Kind::Dup) && is_as_filled;
        let (seed, page, writes) = if shared { (0, 0, 1) } else { (self.seed, self.page, self.writes) };
        let owner = page as u64 | (self.kind as u64) << 32 | (self.churned as u64) << CHURNED_BIT;
        let version = writes as u64 | (self.duplicate as u64) << 32;
        let proof = prove(seed, owner, version);
        [proof, seed ^ mix(proof, 1), owner ^ mix(proof, 2), version ^ mix(proof, 3)]
    }

    /// The first word of the header, what a read touch checks.
    #[inline]
    pub const fn first_word(&self) -> u64 {
        self.header()[0]
    }

    /// Where the body's words come from; the same for every write count unless the page is churned.
    const fn body_seed(&self) -> u64 {
        match self.kind {
            Kind::Dup => mix(self.duplicate as u64, Kind::Dup as u64),
            _ => {
                let seed = mix(mix(self.seed, self.kind as u64), self.page as u64);
                if self.churned { mix(seed, self.writes as u64) } else { seed }
            }
        }
    }

    /// Words that are chosen from.
    const fn vocabulary_mask(&self) -> u64 {
        // Fewer where every page that compresses must do so well enough to be kept that way.
        if self.churned { 15 } else { 63 }
    }

    /// Reads an identity out of a header; `None` if the header proves none. An all-zero header proves none.
    fn from_header(header: &[u64; HEADER_WORDS]) -> Option<Self> {
        let proof = header[0];
        let seed = header[1] ^ mix(proof, 1);
        let owner = header[2] ^ mix(proof, 2);
        let version = header[3] ^ mix(proof, 3);
        let churned = owner >> CHURNED_BIT & 1 != 0;
        let kind = Kind::from_number((owner & !(1 << CHURNED_BIT)) >> 32)?;
        (prove(seed, owner, version) == proof).then_some(Self {
            kind,
            seed,
            page: owner as u32,
            duplicate: (version >> 32) as u32,
            writes: version as u32,
            churned,
        })
    }
}

/// The bit of a header's owner word, above page and kind, that says that the page is churned.
const CHURNED_BIT: u32 = 40;

/// The word that proves the other three of a header; odd, so never zero.
const fn prove(seed: u64, owner: u64, version: u64) -> u64 {
    mix(mix(seed, owner), version) | 1
}

/// Words of seven letters at most and a blank: what text pages are made of.
#[rustfmt::skip]
const VOCABULARY: [&[u8; 8]; 64] = [
    b"water   ", b"river   ", b"stone   ", b"garden  ", b"winter  ", b"summer  ", b"morning ", b"evening ",
    b"letter  ", b"window  ", b"mountain", b"forest  ", b"harbour ", b"island  ", b"bridge  ", b"village ",
    b"market  ", b"kitchen ", b"teacher ", b"doctor  ", b"farmer  ", b"soldier ", b"captain ", b"brother ",
    b"sister  ", b"mother  ", b"father  ", b"children", b"people  ", b"nothing ", b"already ", b"perhaps ",
    b"between ", b"through ", b"without ", b"against ", b"because ", b"another ", b"example ", b"question",
    b"answer  ", b"number  ", b"picture ", b"machine ", b"engine  ", b"station ", b"journey ", b"weather ",
    b"thunder ", b"shadow  ", b"silver  ", b"golden  ", b"yellow  ", b"purple  ", b"quickly ", b"slowly  ",
    b"gently  ", b"loudly  ", b"forgets ", b"remember", b"carries ", b"follows ", b"listens ", b"watches ",
];

const VOCABULARY_WORDS: [u64; 64] = {
    let mut words = [0; 64];
    let mut at = 0;
    while at < words.len() {
        words[at] = u64::from_le_bytes(*VOCABULARY[at]);
        at += 1;
    }
    words
};

/// Vocabulary choices of 6 bits taken from one random word.
const CHOICES: usize = 10;

/// Calls `word(index, value)` for every word of the body, in order.
#[inline(always)]
fn for_each_body_word(identity: &Identity, mut word: impl FnMut(usize, u64)) {
    match identity.kind {
        Kind::Zero => (HEADER_WORDS..PAGE_WORDS).for_each(|at| word(at, 0)),
        Kind::Random => {
            let mut generator = Generator::new(identity.body_seed());
            (HEADER_WORDS..PAGE_WORDS).for_each(|at| word(at, generator.next()));
        }
        Kind::Dup | Kind::Text => {
            let mut generator = Generator::new(identity.body_seed());
            let mask = identity.vocabulary_mask();
            let mut at = HEADER_WORDS;
            while at < PAGE_WORDS {
                let mut choices = generator.next();
                let end = if at + CHOICES < PAGE_WORDS { at + CHOICES } else { PAGE_WORDS };
                while at < end {
                    word(at, VOCABULARY_WORDS[(choices & mask & 63) as usize]);
                    choices >>= 6;
                    at += 1;
                }
            }
        }
    }
}

/// Writes the whole page as `identity` says.
pub fn write(page: &mut Page, identity: &Identity) {
    page[..HEADER_WORDS].copy_from_slice(&identity.header());
    for_each_body_word(identity, |at, value| page[at] = value);
}

/// Whether the page holds exactly what `identity` says.
#[inline]
pub fn matches(page: &Page, identity: &Identity) -> bool {
    let header = identity.header();
    let mut difference = 0;
    for at in 0..HEADER_WORDS {
        difference |= page[at] ^ header[at];
    }
    for_each_body_word(identity, |at, value| difference |= page[at] ^ value);
    difference == 0
}

/// What sort of wrong page this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// An intact earlier (or later) content of this very page, or the zeroes from before its first fill.
    Stale,
    /// An intact page of another index or another seed.
    Foreign,
    /// Neither: bits changed.
    Corrupt,
}

impl Damage {
    /// The name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Foreign => "foreign",
            Self::Corrupt => "corrupt",
        }
    }
}

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The sort of damage.
    pub damage: Damage,
    /// Offset in the page of the first wrong byte's word, in bytes.
    pub offset_bytes: u32,
    /// What that word must be.
    pub expected: u64,
    /// What it is.
    pub found: u64,
}

/// Compares a page with what it must be and, if it is not that, finds out what it is.
pub fn diagnose(page: &Page, identity: &Identity) -> Option<Fault> {
    let mut first_wrong = None;
    let header = identity.header();
    for at in 0..HEADER_WORDS {
        if page[at] != header[at] {
            first_wrong = first_wrong.or(Some((at, header[at])));
        }
    }
    for_each_body_word(identity, |at, value| {
        if page[at] != value {
            first_wrong = first_wrong.or(Some((at, value)));
        }
    });
    let (at, expected) = first_wrong?;
    Some(Fault { damage: damage(page, identity), offset_bytes: at as u32 * 8, expected, found: page[at] })
}

/// Names the damage of a page known not to match.
fn damage(page: &Page, identity: &Identity) -> Damage {
    if page.iter().all(|&word| word == 0) {
        return Damage::Stale;
    }
    let mut header = [0; HEADER_WORDS];
    header.copy_from_slice(&page[..HEADER_WORDS]);
    let Some(found) = Identity::from_header(&header) else { return Damage::Corrupt };
    if !matches(page, &found) {
        return Damage::Corrupt;
    }
    let unowned_duplicate = found.kind == Kind::Dup && (found.churned || found.writes == 1);
    let same_page = if unowned_duplicate && found.churned {
        identity.churned
    } else if unowned_duplicate {
        identity.kind == Kind::Dup && found.duplicate == identity.duplicate
    } else {
        found.seed == identity.seed && found.page == identity.page
    };
    if same_page { Damage::Stale } else { Damage::Foreign }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Kind; 4] = [Kind::Zero, Kind::Dup, Kind::Text, Kind::Random];

    fn identity(kind: Kind, seed: u64, page: u32, writes: u32) -> Identity {
        let duplicate = if kind == Kind::Dup { page / 3 } else { 0 };
        Identity { kind, seed, page, duplicate, writes, churned: false }
    }

    fn churned(kind: Kind, seed: u64, page: u32, writes: u32) -> Identity {
        Identity { churned: true, ..identity(kind, seed, page, writes) }
    }

    fn made(identity: &Identity) -> Page {
        let mut page = [0xaaaa_aaaa_aaaa_aaaa; PAGE_WORDS];
        write(&mut page, identity);
        page
    }

    fn lz4_ratio(page: &Page) -> f64 {
        let bytes: Vec<u8> = page.iter().flat_map(|word| word.to_le_bytes()).collect();
        lz4_flex::block::compress(&bytes).len() as f64 / bytes.len() as f64
    }

    #[test]
    fn text_compresses_to_about_half_and_random_does_not() {
        for page in 0..2_000 {
            for writes in [1, 2] {
                let text = lz4_ratio(&made(&identity(Kind::Text, 7, page, writes)));
                assert!((0.40..=0.55).contains(&text), "text page {page}: {text}");
                let random = lz4_ratio(&made(&identity(Kind::Random, 7, page, writes)));
                assert!(random > 1.0, "random page {page}: {random}");
            }
        }
    }

    #[test]
    fn duplicates_are_equal_in_every_guest_and_different_in_one() {
        let ours = Identity { kind: Kind::Dup, seed: 1, page: 10, duplicate: 4, writes: 1, churned: false };
        let theirs = Identity { seed: 2, page: 77, ..ours };
        assert_eq!(made(&ours), made(&theirs));
        assert_ne!(made(&ours), made(&Identity { duplicate: 5, ..ours }));
        let (ours, theirs) = (Identity { writes: 2, ..ours }, Identity { writes: 2, ..theirs });
        assert_ne!(made(&ours), made(&theirs), "a written duplicate is unique");
    }

    #[test]
    fn unique_kinds_differ_by_seed_page_and_write() {
        for kind in [Kind::Text, Kind::Random] {
            let page = made(&identity(kind, 1, 5, 1));
            assert_ne!(page, made(&identity(kind, 2, 5, 1)));
            assert_ne!(page, made(&identity(kind, 1, 6, 1)));
            assert_ne!(page, made(&identity(kind, 1, 5, 2)));
        }
        assert_eq!(made(&identity(Kind::Zero, 1, 5, 1)), [0; PAGE_WORDS]);
        assert_ne!(made(&identity(Kind::Zero, 1, 5, 2)), [0; PAGE_WORDS]);
    }

    #[test]
    fn churned_pages_are_made_anew_by_every_write() {
        for writes in [1, 2, 77] {
            assert_eq!(made(&churned(Kind::Zero, 1, 5, writes)), [0; PAGE_WORDS]);
            let dup = churned(Kind::Dup, 1, 5, writes);
            assert_eq!(made(&dup), made(&Identity { seed: 2, page: 9, writes: 4, ..dup }), "nobody's own");
            assert_ne!(made(&dup), made(&Identity { duplicate: dup.duplicate + 1, ..dup }));
            for kind in [Kind::Text, Kind::Random] {
                let (now, later) = (made(&churned(kind, 1, 5, writes)), made(&churned(kind, 1, 5, writes + 4)));
                let same = now.iter().zip(&later).filter(|(one, other)| one == other).count();
                assert!(same < PAGE_WORDS / 4, "{kind:?}: {same} words are what they were");
            }
        }
    }

    #[test]
    fn churned_text_compresses_well_and_random_does_not() {
        for page in 0..2_000 {
            for kind in [Kind::Text, Kind::Dup] {
                let ratio = lz4_ratio(&made(&churned(kind, 7, page, 1 + page % 9)));
                assert!((0.20..0.40).contains(&ratio), "{kind:?} page {page}: {ratio}");
            }
            let random = lz4_ratio(&made(&churned(Kind::Random, 7, page, 1 + page % 9)));
            assert!(random > 1.0, "random page {page}: {random}");
        }
    }

    #[test]
    fn a_page_lost_to_zeroes_is_stale() {
        for kind in KINDS {
            let expected = identity(kind, 3, 9, 2);
            let fault = diagnose(&[0; PAGE_WORDS], &expected).expect("the page is lost");
            assert_eq!((fault.damage, fault.found), (Damage::Stale, 0), "{kind:?}");
            assert_eq!(fault.expected, expected.first_word());
        }
    }

    proptest! {
        #[test]
        fn what_was_written_matches(
            kind in 0..4usize, seed: u64, page: u32, writes in 1..u32::MAX, churned: bool,
        ) {
            let identity = Identity { churned, ..identity(KINDS[kind], seed, page, writes) };
            let content = made(&identity);
            prop_assert!(matches(&content, &identity));
            prop_assert_eq!(diagnose(&content, &identity), None);
            prop_assert_eq!(content[0], identity.first_word());
        }

        #[test]
        fn an_earlier_write_is_stale(
            kind in 0..4usize, seed: u64, page: u32, now in 2..1_000_000u32, back in 1..50u32,
        ) {
            let expected = identity(KINDS[kind], seed, page, now);
            let found = made(&identity(KINDS[kind], seed, page, now.saturating_sub(back).max(1)));
            prop_assert!(!matches(&found, &expected));
            prop_assert_eq!(diagnose(&found, &expected).map(|fault| fault.damage), Some(Damage::Stale));
        }

        #[test]
        fn an_earlier_content_of_a_churned_page_is_stale(
            kind in 0..4usize, earlier_kind in 0..4usize, seed: u64, page: u32, now in 2..1_000_000u32,
            back in 1..50u32,
        ) {
            let expected = churned(KINDS[kind], seed, page, now);
            let earlier = churned(KINDS[earlier_kind], seed, page, now.saturating_sub(back).max(1));
            // Zero pages and duplicates are the same every time.
            prop_assume!(!(kind == earlier_kind && kind < 2));
            prop_assert_eq!(diagnose(&made(&earlier), &expected).map(|fault| fault.damage), Some(Damage::Stale));
        }

        #[test]
        fn another_churned_page_is_foreign(
            kind in 0..4usize, other_kind in 2..4usize, seed: u64, page in 0..1000u32, writes in 1..5u32,
            other_page in 1000..2000u32,
        ) {
            let expected = churned(KINDS[kind], seed, page, writes);
            let other = made(&churned(KINDS[other_kind], seed, other_page, writes));
            prop_assert_eq!(diagnose(&other, &expected).map(|fault| fault.damage), Some(Damage::Foreign));
        }

        #[test]
        fn another_page_or_seed_is_foreign(
            kind in 0..4usize, other_kind in 1..4usize, seed: u64, page in 0..1000u32, writes in 1..5u32,
            other_page in 1003..2000u32, other_seed: u64,
        ) {
            let expected = identity(KINDS[kind], seed, page, writes);
            let another_page = made(&identity(KINDS[other_kind], seed, other_page, writes));
            prop_assert_eq!(diagnose(&another_page, &expected).map(|fault| fault.damage), Some(Damage::Foreign));
            prop_assume!(other_seed != seed);
            let another_seed = made(&identity(KINDS[other_kind], other_seed, page, 2));
            prop_assert_eq!(diagnose(&another_seed, &expected).map(|fault| fault.damage), Some(Damage::Foreign));
        }

        #[test]
        fn a_flipped_bit_is_corrupt(
            kind in 0..4usize, seed: u64, page: u32, writes in 1..5u32, word in 0..PAGE_WORDS, bit in 0..64u32,
            churned: bool,
        ) {
            let expected = Identity { churned, ..identity(KINDS[kind], seed, page, writes) };
            let mut content = made(&expected);
            content[word] ^= 1 << bit;
            let fault = diagnose(&content, &expected);
            prop_assert_eq!(fault, Some(Fault {
                damage: Damage::Corrupt,
                offset_bytes: word as u32 * 8,
                expected: content[word] ^ 1 << bit,
                found: content[word],
            }));
        }
    }
}
