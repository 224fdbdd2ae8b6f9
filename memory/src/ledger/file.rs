//! The file: opened, read and written, never mapped. A mapped file that somebody truncates would kill every member.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::codec::{self, Reading, Record};
use super::error::LedgerError;
use super::head::{FORMAT, Head, head_bytes};
use super::layout::LEDGER_BYTES;
use super::settings::PoolSettings;

/// What the file is called in the pool's directory.
const FILE_NAME: &str = "ledger";

/// How often a record is read before it counts as damaged.
pub(super) const READ_ATTEMPTS: u32 = 8;

/// How long to wait before reading again what was not whole: at first its writer is a copy away from done, later it has
/// lost its CPU.
pub(super) fn pause(attempt: u32) {
    match attempt {
        0 | 1 => thread::yield_now(),
        // The last: nobody reads again.
        _ if attempt + 1 == READ_ATTEMPTS => {}
        _ => thread::sleep(Duration::from_micros(50 << attempt)),
    }
}

/// An opened ledger.
#[derive(Debug)]
pub(super) struct LedgerFile {
    pub file: File,
    pub path: PathBuf,
}

impl LedgerFile {
    /// Opens the ledger of a pool, and makes both if they are missing.
    pub fn open_or_make(pool: &Path) -> Result<Self, LedgerError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(pool);
        made.map_err(|cause| LedgerError::Directory { pool: pool.to_owned(), cause })?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Self::open_as(pool, &mut options)
    }

    /// Opens the ledger of a pool to look at it.
    pub fn open(pool: &Path) -> Result<Self, LedgerError> {
        Self::open_as(pool, OpenOptions::new().read(true)).map_err(|error| match error {
            LedgerError::Io { cause, .. } if is_missing(&cause) => LedgerError::NoPool { pool: pool.to_owned() },
            error => error,
        })
    }

    fn open_as(pool: &Path, options: &mut OpenOptions) -> Result<Self, LedgerError> {
        let path = pool.join(FILE_NAME);
        let failed = |cause| LedgerError::Io { path: path.clone(), action: "opening", cause };
        // Nobody is led elsewhere by a link, or kept waiting by a pipe.
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(LedgerError::NotALedger { path });
        }
        Ok(Self { file, path })
    }

    /// An error of an operation on the file.
    pub fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> LedgerError {
        let path = self.path.clone();
        move |cause| LedgerError::Io { path, action, cause }
    }

    /// Whether this is the file that others find under its name.
    pub fn is_in_place(&self) -> Result<bool, LedgerError> {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let own = self.file.metadata().map(identity).map_err(self.failed("looking at it"))?;
        match self.path.symlink_metadata().map(identity) {
            Ok(found) => Ok(found == own),
            Err(cause) if is_missing(&cause) => Ok(false),
            Err(cause) => Err(self.failed("looking for it")(cause)),
        }
    }

    /// What is at `offset`: short where the file ends.
    fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        loop {
            match self.file.read_at(&mut buffer, offset) {
                Ok(count) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes at `offset`.
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<(), LedgerError> {
        self.file.write_all_at(bytes, offset).map_err(self.failed("writing"))
    }

    /// Writes a record in its place.
    pub fn write_record<T: Record>(&self, record: &T, sequence: u64, offset: u64) -> Result<(), LedgerError> {
        let mut place = vec![0; T::BYTES];
        codec::seal(record, sequence, offset, &mut place);
        self.write(&place, offset)
    }

    /// Reads one record, again while it is not whole.
    pub fn read_record<T: Record>(&self, offset: u64) -> io::Result<Reading<T>> {
        for attempt in 0..READ_ATTEMPTS {
            let mut place = self.read(offset, T::BYTES)?;
            place.resize(T::BYTES, 0);
            match codec::open(&place, offset) {
                Reading::Damaged => pause(attempt),
                reading => return Ok(reading),
            }
        }
        Ok(Reading::Damaged)
    }

    /// The whole file in one read; one byte more if there is more.
    pub fn image(&self) -> Result<Image, LedgerError> {
        self.read(0, LEDGER_BYTES as usize + 1).map(|bytes| Image { bytes }).map_err(self.failed("reading"))
    }

    /// The head, read again while it is damaged.
    pub fn head(&self) -> Result<Head, LedgerError> {
        for attempt in 0..READ_ATTEMPTS {
            match self.image()?.head() {
                Head::Damaged => pause(attempt),
                head => return Ok(head),
            }
        }
        Ok(Head::Damaged)
    }

    /// Writes the head of this program's format in one piece, so that there is never half of one.
    pub fn write_head(&self, program: &str, settings: &PoolSettings, sequence: u64) -> Result<(), LedgerError> {
        self.write(&head_bytes(FORMAT, program, settings, sequence), 0)
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A copy of the file.
pub(super) struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Its head.
    pub fn head(&self) -> Head {
        Head::read(&self.bytes)
    }

    /// The record at `offset`. Behind the end of the file nothing was ever written.
    pub fn record<T: Record>(&self, offset: u64) -> Reading<T> {
        match self.bytes.get(offset as usize..) {
            None | Some([]) => Reading::Blank,
            Some(bytes) => codec::open(&bytes[..bytes.len().min(T::BYTES)], offset),
        }
    }
}
