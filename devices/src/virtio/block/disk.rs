//! The file behind a disk: opened, locked, measured, and read and written straight from guest memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::SECTOR_BYTES;
use super::direct::Direct;
use super::transfer::{Direction, vectored};
use crate::virtio::scatter::{MAX_SEGMENTS, Scatter};

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// It cannot be opened.
    #[error("disk {}: {cause}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It may not be written.
    #[error("disk {}: not writable: give it as read-only (',ro') or change its permissions", path.display())]
    NotWritable {
        /// The file.
        path: PathBuf,
    },
    /// It is a directory.
    #[error("disk {}: is a directory: give a raw image file", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
    },
    /// It is a pipe, a socket, a terminal or the like.
    #[error("disk {}: neither a regular file nor a block device", path.display())]
    NotDisk {
        /// The file.
        path: PathBuf,
    },
    /// It holds less than one sector.
    #[error("disk {}: empty: make it as large as the disk should be ('truncate -s 1G FILE')", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Another process uses it in a way that does not go together with ours.
    #[error("disk {}: in use by another VM: give each VM an image of its own, or all of them ',ro'", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Its file system always goes through the page cache.
    #[error("disk {}: its file system has no direct I/O: leave out ',direct' or put it on another one", path.display())]
    NoDirect {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be locked.
    #[error("disk {}: locking it: {cause}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// An open image.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    direct: Option<Direct>,
    bytes: u64,
    read_only: bool,
    can_discard: bool,
}

impl Disk {
    pub fn open(path: &Path, read_only: bool, direct: bool) -> Result<Self, BlockError> {
        let path = path.to_path_buf();
        // Non-blocking, so that opening a pipe comes back; regular files and block devices do not care.
        let opened = OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(cause) if cause.raw_os_error() == Some(libc::EISDIR) => return Err(BlockError::Directory { path }),
            Err(cause) if !read_only && is_write_refusal(&cause) && File::open(&path).is_ok() => {
                return Err(BlockError::NotWritable { path });
            }
            Err(cause) => return Err(BlockError::Open { path, cause }),
        };
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(cause) => return Err(BlockError::Open { path, cause }),
        };
        if metadata.is_dir() {
            return Err(BlockError::Directory { path });
        }
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(BlockError::NotDisk { path });
        }
        if let Err(cause) = lock(&file, read_only) {
            let taken = matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EACCES));
            return Err(if taken { BlockError::InUse { path } } else { BlockError::Lock { path, cause } });
        }
        // Block devices have no length in their metadata, but an end.
        let bytes = match file.seek(SeekFrom::End(0)) {
            Ok(bytes) => bytes,
            Err(cause) => return Err(BlockError::Open { path, cause }),
        };
        if bytes < SECTOR_BYTES {
            return Err(BlockError::Empty { path });
        }
        let direct = match direct.then(|| Direct::open(&file, read_only)).transpose() {
            Ok(direct) => direct,
            Err(cause) if matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                return Err(BlockError::NoDirect { path });
            }
            Err(cause) => return Err(BlockError::Open { path, cause }),
        };
        // Whether holes can be punched shows behind the end, where there is nothing to lose.
        let punched = fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE, bytes, SECTOR_BYTES);
        let can_discard = !read_only && !punched.is_err_and(|error| is_unsupported(&error));
        Ok(Self { file, direct, bytes, read_only, can_discard })
    }

    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR_BYTES
    }

    pub fn unusable_bytes(&self) -> u64 {
        self.bytes % SECTOR_BYTES
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub fn can_discard(&self) -> bool {
        self.can_discard
    }

    /// The unit in which the disk is written best, when that is more than a sector.
    pub fn block_bytes(&self) -> Option<u32> {
        self.direct.as_ref().and_then(Direct::block_bytes).filter(|bytes| u64::from(*bytes) > SECTOR_BYTES)
    }

    /// Reads from byte `offset` until `data` is full. What was filled is consumed from `data`, also on error.
    pub fn read(&self, offset: u64, data: &mut Scatter) -> io::Result<()> {
        self.transfer(Direction::Read, offset, data)
    }

    /// Writes all of `data` at byte `offset`; with `write_through`, onto the medium.
    pub fn write(&self, offset: u64, data: &mut Scatter, write_through: bool) -> io::Result<()> {
        self.transfer(Direction::Write { write_through }, offset, data)
    }

    /// Makes calls until everything has moved. A call may leave a rest that needs another way than the whole did.
    fn transfer(&self, direction: Direction, mut offset: u64, data: &mut Scatter) -> io::Result<()> {
        let mut iovecs = Vec::with_capacity(data.segments());
        while !data.is_empty() {
            iovecs.clear();
            data.append_iovecs(&mut iovecs);
            let part = &iovecs[..iovecs.len().min(MAX_SEGMENTS)];
            let moved = match &self.direct {
                Some(direct) if direct.takes(offset, data.len() as u64) => {
                    // SAFETY: the iovecs point into guest memory, which outlives this call and holds no Rust references.
                    unsafe { direct.transfer(direction, data, part, offset) }
                }
                // SAFETY: as above.
                _ => unsafe { vectored(&self.file, direction, part, offset) },
            };
            match moved {
                // The file became shorter than it was when it was opened.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    data.advance(bytes);
                    offset += bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Brings everything written onto the medium.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives a range back to the host; it reads as zero.
    pub fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        fallocate(&self.file, libc::FALLOC_FL_PUNCH_HOLE, offset, bytes)
    }

    /// Makes a range read as zero and keeps its space.
    pub fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match fallocate(&self.file, libc::FALLOC_FL_ZERO_RANGE, offset, bytes) {
            Err(error) if is_unsupported(&error) => self.write_zeroes(offset, bytes),
            result => result,
        }
    }

    /// What `zero` does where the file system cannot.
    fn write_zeroes(&self, offset: u64, bytes: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let end = offset + bytes;
        let mut position = offset;
        while position < end {
            let part = (end - position).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..part as usize], position)?;
            position += part;
        }
        Ok(())
    }
}

/// True for errors that say "this file or file system cannot do that".
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

fn is_write_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, bytes: u64) -> io::Result<()> {
    loop {
        // SAFETY: the call takes no pointers.
        let result = unsafe {
            libc::fallocate(
                file.as_raw_fd(),
                mode | libc::FALLOC_FL_KEEP_SIZE,
                offset as libc::off_t,
                bytes as libc::off_t,
            )
        };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes an open-file-description lock on the whole file: shared to read, exclusive to write.
fn lock(file: &File, shared: bool) -> io::Result<()> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole_file =
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the kernel reads one live flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole_file) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
