//! A real file whose operations fail: when told to, or at random.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Mutex;

use cistern_probe::random::Generator;

use crate::store::file::FileIo;
use crate::store::{PAGE_BYTES, lock};

/// What becomes of one operation.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It goes well: the faults after it are for later operations.
    None,
    /// It fails with this errno.
    Errno(i32),
    /// It ends after this many bytes.
    Short(usize),
    /// This bit of what it read is wrong.
    Flip(usize),
}

/// A file with faults queued for its next operations, by kind.
pub struct Faulty {
    pub file: File,
    pub writes: Mutex<VecDeque<Fault>>,
    pub reads: Mutex<VecDeque<Fault>>,
    pub syncs: Mutex<VecDeque<Fault>>,
    pub holes: Mutex<VecDeque<Fault>>,
    weather: Mutex<Option<Generator>>,
}

/// Of so many operations one fails while faults come at random.
const ODDS: u64 = 8;

thread_local! {
    /// The thread's last operation failed at random. Its next one goes well: what is tried twice succeeds.
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

impl From<File> for Faulty {
    fn from(file: File) -> Self {
        Self::over(file)
    }
}

impl Faulty {
    pub fn over(file: File) -> Self {
        Self {
            file,
            writes: Mutex::default(),
            reads: Mutex::default(),
            syncs: Mutex::default(),
            holes: Mutex::default(),
            weather: Mutex::default(),
        }
    }

    /// From here on operations fail at random; never with `None`.
    #[cfg(not(loom))]
    pub fn set_weather(&self, seed: Option<u64>) {
        *lock(&self.weather) = seed.map(Generator::new);
    }

    fn next(&self, queue: &Mutex<VecDeque<Fault>>, kinds: &[Fault]) -> io::Result<Fault> {
        let ordered = lock(queue).pop_front();
        match ordered.or_else(|| self.random(kinds)).unwrap_or(Fault::None) {
            Fault::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            other => Ok(other),
        }
    }

    /// One of these faults, with a number of bytes or bits of its own.
    fn random(&self, kinds: &[Fault]) -> Option<Fault> {
        let mut weather = lock(&self.weather);
        let random = weather.as_mut()?;
        if FAILED.replace(false) || random.below(ODDS) > 0 {
            return None;
        }
        FAILED.set(true);
        Some(match kinds[random.below(kinds.len() as u64) as usize] {
            Fault::Short(bytes) => Fault::Short(random.below(bytes as u64 + 1) as usize),
            Fault::Flip(bits) => Fault::Flip(random.below(bits as u64) as usize),
            other => other,
        })
    }
}

impl FileIo for Faulty {
    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let kinds = [libc::EIO, libc::ENOSPC, libc::EINTR].map(Fault::Errno);
        match self.next(&self.writes, &[kinds[0], kinds[1], kinds[2], Fault::Short(16 * PAGE_BYTES)])? {
            Fault::Short(bytes) => {
                let whole = bytes / buffers[0].len();
                if whole > 0 {
                    self.file.write_at(&buffers[..whole.min(buffers.len())], offset)?;
                }
                Ok(bytes.min(buffers.len() * buffers[0].len()))
            }
            _ => self.file.write_at(buffers, offset),
        }
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let kinds = [libc::EIO, libc::EINTR].map(Fault::Errno);
        let kinds = [kinds[0], kinds[1], Fault::Short(16 * PAGE_BYTES), Fault::Flip(32 * 8 * PAGE_BYTES)];
        match self.next(&self.reads, &kinds)? {
            Fault::Short(bytes) => {
                let whole = (bytes / buffers[0].len()).min(buffers.len());
                if whole > 0 {
                    self.file.read_at(&mut buffers[..whole], offset)?;
                }
                Ok(bytes.min(buffers.len() * buffers[0].len()))
            }
            Fault::Flip(bit) => {
                let bytes = self.file.read_at(buffers, offset)?;
                let length = buffers[0].len();
                let at = bit / 8 % bytes;
                buffers[at / length][at % length] ^= 1 << (bit % 8);
                Ok(bytes)
            }
            _ => self.file.read_at(buffers, offset),
        }
    }

    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.next(&self.syncs, &[Fault::Errno(libc::EIO)])?;
        self.file.sync(offset, bytes)
    }

    fn drop_cache(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.file.drop_cache(offset, bytes)
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.next(&self.holes, &[Fault::Errno(libc::EOPNOTSUPP)])?;
        self.file.punch_hole(offset, bytes)
    }
}
