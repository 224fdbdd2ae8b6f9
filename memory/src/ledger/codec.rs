//! Records as bytes: little endian, each with a sequence number before it and a checksum behind it.

use twox_hash::XxHash3_64;

/// The sequence number, the checksum: 8 bytes each.
const WORD: usize = 8;

/// What stands for a number that there is not; no number that is checked reaches it.
const NONE: u64 = u64::MAX;

/// Something with a place in the ledger.
pub(crate) trait Record: Sized {
    /// The size of its place.
    const BYTES: usize;

    /// Writes its values, one after the other.
    fn encode(&self, encoder: &mut Encoder<'_>);

    /// Reads them in the same order; `None` if one is out of its range.
    fn decode(decoder: &mut Decoder<'_>) -> Option<Self>;
}

/// What was found in a record's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reading<T> {
    /// Nothing was ever written there.
    Blank,
    /// A record, every value of which is in its range.
    Whole(T),
    /// Anything else, such as half of one record and half of another.
    Damaged,
}

impl<T> Reading<T> {
    /// The record, if there is one.
    pub fn whole(self) -> Option<T> {
        match self {
            Self::Whole(record) => Some(record),
            Self::Blank | Self::Damaged => None,
        }
    }

    /// Whether the place holds something that is no record.
    pub fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged)
    }
}

/// Fills `place`, which is at `offset` of the file.
pub(crate) fn seal<T: Record>(record: &T, sequence: u64, offset: u64, place: &mut [u8]) {
    let (body, checksum) = place.split_at_mut(T::BYTES - WORD);
    body.fill(0);
    let mut encoder = Encoder { rest: body };
    encoder.u64(sequence);
    record.encode(&mut encoder);
    checksum.copy_from_slice(&checksum_of(body, offset).to_le_bytes());
}

/// Reads the record in `place`, which is at `offset` of the file.
pub(crate) fn open<T: Record>(place: &[u8], offset: u64) -> Reading<T> {
    if place.iter().all(|byte| *byte == 0) {
        return Reading::Blank;
    }
    let Some((body, checksum)) = place.split_last_chunk::<WORD>() else { return Reading::Damaged };
    if place.len() != T::BYTES || u64::from_le_bytes(*checksum) != checksum_of(body, offset) {
        return Reading::Damaged;
    }
    let mut decoder = Decoder { rest: body };
    let record = decoder.u64().and_then(|_sequence| T::decode(&mut decoder));
    record.map_or(Reading::Damaged, Reading::Whole)
}

/// Seeded with the place, so that a record is one only where it belongs.
pub(crate) fn checksum_of(body: &[u8], offset: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(offset, body)
}

/// Writes values one after the other.
pub(crate) struct Encoder<'a> {
    rest: &'a mut [u8],
}

impl Encoder<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        let rest = std::mem::take(&mut self.rest);
        let (place, rest) = rest.split_at_mut_checked(bytes.len()).expect("a record fits its place");
        place.copy_from_slice(bytes);
        self.rest = rest;
    }

    pub fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn option(&mut self, value: Option<u64>) {
        self.u64(value.unwrap_or(NONE));
    }

    /// A text in a place of `most` bytes and one for its length.
    pub fn text(&mut self, text: &str, most: usize) {
        let length = u8::try_from(text.len()).ok().filter(|length| usize::from(*length) <= most);
        self.u8(length.expect("texts are checked before"));
        self.bytes(text.as_bytes());
        (text.len()..most).for_each(|_| self.u8(0));
    }
}

/// Reads values one after the other; `None`: it is not there, or no such value.
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub fn option(&mut self) -> Option<Option<u64>> {
        self.u64().map(|value| (value != NONE).then_some(value))
    }

    pub fn text(&mut self, most: usize) -> Option<String> {
        let length = usize::from(self.u8()?);
        let text = std::str::from_utf8(self.bytes(most)?.get(..length)?).ok()?;
        is_printable(text).then(|| text.to_owned())
    }
}

/// Whether a text can be shown on a terminal as one word: no spaces, control or format characters, and not empty.
pub(crate) fn is_printable(text: &str) -> bool {
    // Format characters reorder or hide what is around them.
    let formats = |c: char| {
        matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
            || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    !text.is_empty() && !text.chars().any(|c| c.is_control() || c.is_whitespace() || formats(c))
}
