//! Compressing and decompressing one page, without allocating.
//!
//! Tables and contexts are large beside a page, so a thread makes its [`Compressor`] or [`Decompressor`] once and keeps
//! it.

use lz4_flex::block::{
    CompressTable, DecompressError, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use twox_hash::XxHash3_64;
use zstd_safe::{CCtx, CParameter, DCtx};

use super::{PAGE_BYTES, Page};

/// A page that needs more than this is by default not worth storing: refaults of it would cost time and save little.
pub const DEFAULT_LIMIT_BYTES: usize = PAGE_BYTES / 2;

/// The fastest zstd level that still beats LZ4's ratio on pages.
const ZSTD_LEVEL: i32 = -1;

/// LZ4 wants room for the worst case before it starts.
const BUFFER_BYTES: usize = get_maximum_output_size(PAGE_BYTES);

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not at all: a page is worth storing only where the limit is a whole page.
    None = 0,
    /// LZ4 block format.
    Lz4 = 1,
    /// Zstandard, level -1: smaller and two to three times slower.
    Zstd = 2,
}

impl Codec {
    /// The codec with this number.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Why a page could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A context could not be made.
    #[error("zstd: no memory for a context")]
    NoMemory,
    /// A context does not take a parameter.
    #[error("zstd: parameter refused: {cause}")]
    Parameter {
        /// What the library said.
        cause: &'static str,
    },
    /// The bytes are not LZ4, or decompress to more than a page.
    #[error("lz4: {0}")]
    Lz4(DecompressError),
    /// The bytes are not Zstandard, or decompress to more than a page.
    #[error("zstd: {cause}")]
    Zstd {
        /// What the library said.
        cause: &'static str,
    },
    /// The bytes decompress to less than a page.
    #[error("decompressed to {bytes} bytes, not to a page")]
    Length {
        /// Their decompressed length.
        bytes: usize,
    },
}

/// A compressed page and what is needed to get it back and to know that it is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// How it was compressed.
    pub codec: Codec,
    /// The compressed bytes: at least one, at most a page.
    pub bytes: &'a [u8],
    /// [`checksum`] of the page.
    pub checksum: u32,
}

/// XXH3 of the whole page, folded to 32 bits. It guards against damage, not against malice.
pub fn checksum(page: &Page) -> u32 {
    let hash = XxHash3_64::oneshot(page);
    (hash ^ hash >> 32) as u32
}

/// Compresses pages, one after the other.
pub struct Compressor {
    method: Method,
    limit_bytes: usize,
    buffer: Box<[u8; BUFFER_BYTES]>,
}

enum Method {
    None,
    Lz4(CompressTable),
    Zstd(CCtx<'static>),
}

impl Compressor {
    /// A compressor whose blocks are at most `limit_bytes` long (a page, if it says more).
    ///
    /// # Errors
    /// [`CodecError::NoMemory`] and [`CodecError::Parameter`] when zstd cannot be set up.
    pub fn new(codec: Codec, limit_bytes: usize) -> Result<Self, CodecError> {
        let method = match codec {
            Codec::None => Method::None,
            Codec::Lz4 => Method::Lz4(CompressTable::small()),
            Codec::Zstd => Method::Zstd(zstd_context()?),
        };
        Ok(Self { method, limit_bytes: limit_bytes.min(PAGE_BYTES), buffer: Box::new([0; BUFFER_BYTES]) })
    }

    /// The page, compressed; `None` when that is not worth storing.
    pub fn compress<'a>(&'a mut self, page: &'a Page) -> Option<Block<'a>> {
        let (codec, bytes) = match &mut self.method {
            Method::None => (Codec::None, page.as_slice()),
            Method::Lz4(table) => {
                let bytes = compress_into_with_table(page, self.buffer.as_mut_slice(), table).ok()?;
                (Codec::Lz4, &self.buffer[..bytes])
            }
            Method::Zstd(context) => {
                // It gives up where the limit is reached. Any other failure has the same meaning for the page.
                let bytes = context.compress2(&mut self.buffer[..self.limit_bytes], page).ok()?;
                (Codec::Zstd, &self.buffer[..bytes])
            }
        };
        (bytes.len() <= self.limit_bytes).then(|| Block { codec, bytes, checksum: checksum(page) })
    }
}

/// A context whose frames carry nothing that the store knows anyway.
fn zstd_context() -> Result<CCtx<'static>, CodecError> {
    let mut context = CCtx::try_create().ok_or(CodecError::NoMemory)?;
    for parameter in [
        CParameter::CompressionLevel(ZSTD_LEVEL),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ] {
        context
            .set_parameter(parameter)
            .map_err(|code| CodecError::Parameter { cause: zstd_safe::get_error_name(code) })?;
    }
    Ok(context)
}

/// Decompresses pages, one after the other.
#[derive(Default)]
pub struct Decompressor {
    /// Made when the first page needs it.
    zstd: Option<DCtx<'static>>,
}

impl Decompressor {
    /// A decompressor for every codec.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills `page` with what `bytes` hold. Whatever these are, the answer is a full page or an error, and `page` holds
    /// nothing of use after an error.
    ///
    /// # Errors
    /// [`CodecError::Lz4`], [`CodecError::Zstd`] and [`CodecError::Length`] for damaged bytes, [`CodecError::NoMemory`].
    pub fn decompress(&mut self, codec: Codec, bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
        let length = match codec {
            Codec::None => {
                let length = bytes.len().min(PAGE_BYTES);
                page[..length].copy_from_slice(&bytes[..length]);
                bytes.len()
            }
            Codec::Lz4 => decompress_into(bytes, page).map_err(CodecError::Lz4)?,
            Codec::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = Some(DCtx::try_create().ok_or(CodecError::NoMemory)?);
                }
                let context = self.zstd.as_mut().expect("made above");
                context
                    .decompress(page.as_mut_slice(), bytes)
                    .map_err(|code| CodecError::Zstd { cause: zstd_safe::get_error_name(code) })?
            }
        };
        if length == PAGE_BYTES { Ok(()) } else { Err(CodecError::Length { bytes: length }) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use cistern_probe::content::Kind;
    use proptest::prelude::*;

    use super::*;
    use crate::store::samples::{page, page_of_entropy};

    const CODECS: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

    fn compressed(codec: Codec, limit_bytes: usize, page: &Page) -> Option<(Vec<u8>, u32)> {
        let mut compressor = Compressor::new(codec, limit_bytes).unwrap();
        compressor.compress(page).map(|block| (block.bytes.to_vec(), block.checksum))
    }

    #[test]
    fn text_is_worth_storing_and_noise_is_not() {
        let (text, noise) = (page(Kind::Text, 1), page(Kind::Random, 1));
        for codec in [Codec::Lz4, Codec::Zstd] {
            let mut compressor = Compressor::new(codec, 2400).unwrap();
            for _ in 0..3 {
                // A page that was given up must not spoil the next.
                assert_eq!(compressor.compress(&noise), None, "{codec:?}");
                let block = compressor.compress(&text).expect("text compresses");
                let mut back = [0; PAGE_BYTES];
                Decompressor::new().decompress(codec, block.bytes, &mut back).unwrap();
                assert_eq!(back, text, "{codec:?}");
                assert_eq!(block.checksum, checksum(&text));
            }
        }
    }

    #[test]
    fn the_limit_is_exact() {
        let text = page(Kind::Text, 2);
        for codec in CODECS {
            let (bytes, _) = compressed(codec, PAGE_BYTES, &text).expect("a page always fits a page of text");
            // zstd needs a little more room to work than its result takes.
            let slack = if codec == Codec::Zstd { 64 } else { 0 };
            assert!(compressed(codec, bytes.len() + slack, &text).is_some(), "{codec:?}");
            assert!(compressed(codec, bytes.len() - 1, &text).is_none(), "{codec:?}");
            assert!(compressed(codec, 0, &text).is_none(), "{codec:?}");
        }
        assert!(compressed(Codec::None, DEFAULT_LIMIT_BYTES, &text).is_none());
        assert!(compressed(Codec::None, usize::MAX, &text).is_some());
    }

    #[test]
    fn less_or_more_than_a_page_is_refused() {
        for bytes in [1, PAGE_BYTES - 1, PAGE_BYTES + 1, 3 * PAGE_BYTES] {
            let content = vec![7; bytes];
            let mut zstd = vec![0; bytes + 100];
            let length = zstd_safe::compress(zstd.as_mut_slice(), &content, 1).unwrap();
            let lz4 = lz4_flex::block::compress(&content);
            let (mut decompressor, mut page) = (Decompressor::new(), [0; PAGE_BYTES]);
            for (codec, block) in [(Codec::None, &content), (Codec::Lz4, &lz4), (Codec::Zstd, &zstd[..length].to_vec())]
            {
                let result = decompressor.decompress(codec, block, &mut page);
                assert!(result.is_err(), "{codec:?}: {bytes} bytes are taken for a page");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pages_come_back(entropy_bytes in 0..=PAGE_BYTES, seed: u64) {
            let page = page_of_entropy(entropy_bytes, seed);
            let mut decompressor = Decompressor::new();
            for codec in CODECS {
                let Some((bytes, sum)) = compressed(codec, PAGE_BYTES, &page) else { continue };
                prop_assert!((1..=PAGE_BYTES).contains(&bytes.len()));
                let mut back = [0xaa; PAGE_BYTES];
                decompressor.decompress(codec, &bytes, &mut back).unwrap();
                prop_assert_eq!(&back, &page);
                prop_assert_eq!(checksum(&back), sum);
            }
        }

        /// Whole garbage: an error or some page, never a panic, never a byte behind the page.
        #[test]
        fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..PAGE_BYTES)) {
            let mut decompressor = Decompressor::new();
            let mut page = [0; PAGE_BYTES];
            for codec in CODECS {
                let _ = decompressor.decompress(codec, &bytes, &mut page);
            }
        }

        /// Nearly right bytes reach deeper into the decoders than garbage does.
        #[test]
        fn damage_is_found(
            entropy_bytes in 0..1500usize, seed: u64, at: prop::sample::Index, flip in 1..=255u8,
            cut: prop::sample::Index, mode in 0..3,
        ) {
            let page = page_of_entropy(entropy_bytes, seed);
            let mut decompressor = Decompressor::new();
            for codec in CODECS {
                let Some((mut bytes, sum)) = compressed(codec, PAGE_BYTES, &page) else { continue };
                match mode {
                    0 => {
                        let at = at.index(bytes.len());
                        bytes[at] ^= flip;
                    }
                    1 => bytes.truncate(cut.index(bytes.len())),
                    _ => bytes.extend_from_slice(&seed.to_le_bytes()),
                }
                let mut back = [0; PAGE_BYTES];
                if decompressor.decompress(codec, &bytes, &mut back).is_ok() {
                    prop_assert!(back == page || checksum(&back) != sum, "damage unseen");
                }
                // The context must be as good as new.
                let (bytes, _) = compressed(codec, PAGE_BYTES, &page).expect("compressed before");
                decompressor.decompress(codec, &bytes, &mut back).unwrap();
                prop_assert_eq!(&back, &page);
            }
        }
    }
}
