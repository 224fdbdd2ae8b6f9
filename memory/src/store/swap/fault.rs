//! A real file whose operations fail when told to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Mutex;

use crate::store::file::FileIo;
use crate::store::lock;

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
}

impl Faulty {
    pub fn over(file: File) -> Self {
        Self {
            file,
            writes: Mutex::default(),
            reads: Mutex::default(),
            syncs: Mutex::default(),
            holes: Mutex::default(),
        }
    }
}

fn next(queue: &Mutex<VecDeque<Fault>>) -> io::Result<Fault> {
    match lock(queue).pop_front().unwrap_or(Fault::None) {
        Fault::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
        other => Ok(other),
    }
}

impl FileIo for Faulty {
    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        match next(&self.writes)? {
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
        match next(&self.reads)? {
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
        next(&self.syncs)?;
        self.file.sync(offset, bytes)
    }

    fn drop_cache(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.file.drop_cache(offset, bytes)
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        next(&self.holes)?;
        self.file.punch_hole(offset, bytes)
    }
}
