//! The record of what KSM was set to, in the pool's folder: a leader that is killed puts nothing back, so the next one does.
//!
//! | offset | bytes | value |
//! |---|---|---|
//! | 0 | 8 | the magic |
//! | 8 | 4 | the format, the same place in all of them |
//! | 12 | 4 | zeroes |
//! | 16 | 240 | a record as the ledger has them ([`codec`]) |
//!
//! It is written before the setting is, by one write that crosses no page: a process that is killed leaves all of it or
//! the one before. It is not synced to the disk: a host that crashes loses KSM's settings too, and the id of its boot tells
//! that the record is of no use.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::KsmError;
use super::folder::Setting;
use crate::ledger::codec::{self, Decoder, Encoder, Reading, Record};

/// What the file is called in the pool's directory.
const FILE_NAME: &str = "ksm";

const MAGIC: [u8; 8] = *b"CISTKSM\0";

/// Rises whenever the record changes.
const FORMAT: u32 = 2;

const RECORD_OFFSET: usize = 16;
const FILE_BYTES: usize = RECORD_OFFSET + Changes::BYTES;

/// The kernel gives each boot of a host another one.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_ID_BYTES: usize = 36;

/// A setting that was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    /// What it was before.
    pub found: u64,
    /// What was written last, or was to be.
    pub written: u64,
    /// What it was until then. Who is killed between record and setting leaves this one.
    pub before: u64,
}

impl Change {
    /// Whether a value is of whoever made this record.
    pub fn explains(&self, value: u64) -> bool {
        value == self.written || value == self.before
    }
}

/// All that was changed, in the order of [`Setting::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changes(pub [Option<Change>; Setting::ALL.len()]);

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// Changes, and the boot they were made in.
struct Recorded {
    boot_id: String,
    changes: Changes,
}

impl Changes {
    const BYTES: usize = Recorded::BYTES;
}

impl Record for Recorded {
    const BYTES: usize = 240;

    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.text(&self.boot_id, BOOT_ID_BYTES);
        for change in self.changes.0 {
            encoder.option(change.map(|change| change.found));
            encoder.option(change.map(|change| change.written));
            encoder.option(change.map(|change| change.before));
        }
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Self> {
        let boot_id = decoder.text(BOOT_ID_BYTES)?;
        let mut changes = Changes::default();
        for (setting, change) in Setting::ALL.into_iter().zip(&mut changes.0) {
            *change = match (decoder.option()?, decoder.option()?, decoder.option()?) {
                (None, None, None) => None,
                (Some(found), Some(written), Some(before)) => {
                    [found, written, before].iter().all(|value| setting.allows(*value)).then_some(())?;
                    Some(Change { found, written, before })
                }
                _ => return None,
            };
        }
        Some(Self { boot_id, changes })
    }
}

/// The file of a pool.
#[derive(Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
    /// KSM's settings, for messages.
    settings: PathBuf,
}

impl RecordFile {
    /// The file in this folder, if it is there or once it is.
    pub fn of(pool: &Path, settings: &Path) -> Self {
        Self { path: pool.join(FILE_NAME), settings: settings.to_owned() }
    }

    /// What was changed since this host started and not put back.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or another version's.
    pub fn read(&self) -> Result<Changes, KsmError> {
        let mut bytes = Vec::new();
        let mut options = OpenOptions::new();
        match open(options.read(true), &self.path) {
            Ok(file) => file.take(FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(self.failed("reading"))?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Changes::default()),
            Err(cause) => return Err(self.failed("opening")(cause)),
        };
        // Of one who was killed before it wrote, and so had changed nothing.
        if bytes.is_empty() {
            return Ok(Changes::default());
        }
        let damaged = || KsmError::Damaged { path: self.path.clone(), folder: self.settings.clone() };
        let (head, record) = bytes.split_at_checked(RECORD_OFFSET).ok_or_else(damaged)?;
        if !head.starts_with(&MAGIC) {
            return Err(damaged());
        }
        let theirs = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
        if theirs != FORMAT {
            let (path, folder) = (self.path.clone(), self.settings.clone());
            return Err(KsmError::Format { path, folder, theirs, ours: FORMAT });
        }
        match codec::open::<Recorded>(record, RECORD_OFFSET as u64) {
            Reading::Whole(recorded) if recorded.boot_id == self.boot_id()? => Ok(recorded.changes),
            Reading::Whole(_) => Ok(Changes::default()),
            Reading::Blank | Reading::Damaged => Err(damaged()),
        }
    }

    /// Writes what is changed, before it is; removes the file where that is nothing.
    pub fn write(&self, changes: &Changes) -> Result<(), KsmError> {
        if changes.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(self.failed("removing")(cause)),
                _ => Ok(()),
            };
        }
        let mut bytes = [0; FILE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        let recorded = Recorded { boot_id: self.boot_id()?, changes: *changes };
        codec::seal(&recorded, 0, RECORD_OFFSET as u64, &mut bytes[RECORD_OFFSET..]);
        let mut options = OpenOptions::new();
        let file = open(options.write(true).create(true).truncate(false).mode(0o600), &self.path);
        file.and_then(|file| file.write_all_at(&bytes, 0)).map_err(self.failed("writing"))
    }

    fn boot_id(&self) -> Result<String, KsmError> {
        let failed = |cause| KsmError::Io { path: BOOT_ID.into(), action: "reading", cause };
        let text = fs::read_to_string(BOOT_ID).map_err(failed)?;
        let id = text.trim();
        match id.len() == BOOT_ID_BYTES && id.is_ascii() {
            true => Ok(id.to_owned()),
            false => Err(KsmError::Odd { path: BOOT_ID.into(), text: id.to_owned() }),
        }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> KsmError {
        let path = self.path.clone();
        move |cause| KsmError::Io { path, action, cause }
    }
}

/// Nobody is led elsewhere by a link, or kept waiting by a pipe.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("is not a regular file")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn changes() -> Changes {
        let mut changes = Changes::default();
        changes.0[0] = Some(Change { found: 1, written: 0, before: 1 });
        changes.0[1] = Some(Change { found: 100, written: 5000, before: u64::from(u32::MAX) });
        changes.0[4] = Some(Change { found: 0, written: 1, before: 0 });
        changes
    }

    fn written() -> (tempfile::TempDir, RecordFile) {
        let pool = tempfile::tempdir().unwrap();
        let record = RecordFile::of(pool.path(), Path::new("/settings"));
        assert_eq!(record.read().unwrap(), Changes::default());
        record.write(&changes()).unwrap();
        (pool, record)
    }

    #[test]
    fn what_was_changed_is_read_back_until_nothing_is() {
        let (_pool, record) = written();
        assert_eq!(record.read().unwrap(), changes());
        let mut fewer = changes();
        fewer.0[1] = None;
        record.write(&fewer).unwrap();
        assert_eq!(record.read().unwrap(), fewer);
        assert_eq!(fs::metadata(&record.path).unwrap().len() as usize, FILE_BYTES);
        record.write(&Changes::default()).unwrap();
        assert!(!record.path.exists());
        assert_eq!(record.read().unwrap(), Changes::default());
        record.write(&Changes::default()).unwrap();
    }

    #[test]
    fn nothing_is_put_back_from_a_record_that_is_not_whole() {
        let (_pool, record) = written();
        let good = fs::read(&record.path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&record.path, bytes).unwrap();
            record.read().map_err(|error| error.to_string())
        };
        for at in 0..FILE_BYTES {
            let mut bad = good.clone();
            bad[at] ^= 1;
            match refused(&bad) {
                // The head's unused bytes.
                Ok(read) => assert!((12..RECORD_OFFSET).contains(&at) && read == changes(), "byte {at}"),
                Err(error) if (8..12).contains(&at) => assert!(error.contains("has format"), "{error}"),
                Err(error) => assert!(error.contains("is damaged") && error.contains("/settings"), "{error}"),
            }
            // Half of it, and more than there should be.
            assert_eq!(refused(&good[..at]).is_ok(), at == 0, "{at} bytes");
        }
        assert!(refused(&[good.clone(), vec![0]].concat()).is_err());
        refused(&good).unwrap();
    }

    #[test]
    fn values_are_range_checked() {
        let (_pool, record) = written();
        for (index, value) in [(0, 2), (3, 2), (4, 2), (5, 2), (1, 0), (1, 1 << 32), (2, 1 << 32)] {
            for change in [
                Change { found: value, written: 1, before: 1 },
                Change { found: 1, written: value, before: 1 },
                Change { found: 1, written: 1, before: value },
            ] {
                let mut changes = changes();
                changes.0[index] = Some(change);
                record.write(&changes).unwrap();
                assert!(record.read().is_err(), "{:?} {change:?}", Setting::ALL[index]);
            }
        }
    }

    #[test]
    fn a_record_of_another_boot_is_void() {
        let (_pool, record) = written();
        let mut bytes = fs::read(&record.path).unwrap();
        let other = Recorded { boot_id: "0".repeat(BOOT_ID_BYTES), changes: changes() };
        codec::seal(&other, 0, RECORD_OFFSET as u64, &mut bytes[RECORD_OFFSET..]);
        fs::write(&record.path, bytes).unwrap();
        assert_eq!(record.read().unwrap(), Changes::default());
    }

    #[test]
    fn a_link_is_not_followed() {
        let (pool, record) = written();
        let target = pool.path().join("target");
        fs::rename(&record.path, &target).unwrap();
        std::os::unix::fs::symlink(&target, &record.path).unwrap();
        assert!(record.read().is_err() && record.write(&changes()).is_err());
    }
}
