//! The head: whose ledger this is, and what holds for all.
//!
//! Its first 64 bytes, the preamble, are the same in every format, so that versions can name each other:
//!
//! | offset | bytes | value |
//! |---|---|---|
//! | 0 | 8 | the magic |
//! | 8 | 4 | the format |
//! | 12 | 1 | length of the program's version |
//! | 13 | 43 | the program's version, printable UTF-8, then zeroes |
//! | 56 | 8 | XXH3 of the above |

use super::codec::{self, Reading, Record, checksum_of, is_printable};
use super::layout::{LEDGER_BYTES, SETTINGS_OFFSET};
use super::settings::PoolSettings;

const MAGIC: [u8; 8] = *b"CISTPOOL";

/// Rises whenever records change.
pub(super) const FORMAT: u32 = 4;

/// The version of this program.
pub(super) const PROGRAM: &str = env!("CARGO_PKG_VERSION");

const FORMAT_OFFSET: usize = MAGIC.len();
const PROGRAM_OFFSET: usize = FORMAT_OFFSET + 4;
const CHECKSUM_OFFSET: usize = SETTINGS_OFFSET as usize - 8;
const MAXIMUM_PROGRAM_BYTES: usize = CHECKSUM_OFFSET - PROGRAM_OFFSET - 1;

/// What is found where a head should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Head {
    /// Nothing but zeroes in the whole file.
    Blank,
    /// Something that no version of this program made.
    Foreign,
    /// It has the magic, and what follows is not right.
    Damaged,
    /// Made by a program that writes another format.
    OtherFormat { format: u32, program: String },
    /// Made by a program that writes this format.
    Pool { program: String, settings: PoolSettings },
}

impl Head {
    /// Reads the head of a file of which this is all, or more than a ledger has.
    pub fn read(bytes: &[u8]) -> Self {
        // Empty, or of a host that crashed before what was written was on the disk.
        if bytes.iter().all(|byte| *byte == 0) {
            return if bytes.len() as u64 <= LEDGER_BYTES { Self::Blank } else { Self::Foreign };
        }
        if !bytes.starts_with(&MAGIC) {
            return Self::Foreign;
        }
        Self::read_behind_magic(bytes).unwrap_or(Self::Damaged)
    }

    fn read_behind_magic(bytes: &[u8]) -> Option<Self> {
        let (body, checksum) = bytes.get(..SETTINGS_OFFSET as usize)?.split_last_chunk()?;
        if u64::from_le_bytes(*checksum) != checksum_of(body, 0) {
            return None;
        }
        let format = u32::from_le_bytes(body.get(FORMAT_OFFSET..PROGRAM_OFFSET)?.try_into().ok()?);
        let (length, text) = body.get(PROGRAM_OFFSET..)?.split_first()?;
        let program = std::str::from_utf8(text.get(..usize::from(*length))?).ok()?.to_owned();
        if !is_printable(&program) {
            return None;
        }
        if format != FORMAT {
            return Some(Self::OtherFormat { format, program });
        }
        let settings = bytes.get(SETTINGS_OFFSET as usize..SETTINGS_OFFSET as usize + PoolSettings::BYTES)?;
        match codec::open(settings, SETTINGS_OFFSET) {
            Reading::Whole(settings) => Some(Self::Pool { program, settings }),
            Reading::Blank | Reading::Damaged => None,
        }
    }
}

/// A head as it is written, in one piece.
pub(super) fn head_bytes(format: u32, program: &str, settings: &PoolSettings, sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; SETTINGS_OFFSET as usize + PoolSettings::BYTES];
    let (preamble, place) = bytes.split_at_mut(SETTINGS_OFFSET as usize);
    let (body, checksum) = preamble.split_at_mut(CHECKSUM_OFFSET);
    let program = &program.as_bytes()[..program.len().min(MAXIMUM_PROGRAM_BYTES)];
    body[..FORMAT_OFFSET].copy_from_slice(&MAGIC);
    body[FORMAT_OFFSET..PROGRAM_OFFSET].copy_from_slice(&format.to_le_bytes());
    body[PROGRAM_OFFSET] = program.len() as u8;
    body[PROGRAM_OFFSET + 1..][..program.len()].copy_from_slice(program);
    checksum.copy_from_slice(&checksum_of(body, 0).to_le_bytes());
    codec::seal(settings, sequence, SETTINGS_OFFSET, place);
    bytes
}
