//! The file operations of the swap file, narrow enough to stand a fault injector in their place.
//!
//! Callers are generic over [`FileIo`], so that the real file costs no indirect call.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;

use super::PAGE_BYTES;

/// Positioned I/O on one file. Offsets and lengths are in bytes.
pub trait FileIo: Send + Sync {
    /// Writes the buffers one after another at `offset`, and tells how many bytes were taken.
    ///
    /// # Errors
    /// What `pwritev(2)` says.
    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Fills the buffers one after another from `offset`, and tells how many bytes there were.
    ///
    /// # Errors
    /// What `preadv(2)` says.
    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize>;

    /// Waits until all data written so far has reached the device.
    ///
    /// # Errors
    /// What `fdatasync(2)` or `sync_file_range(2)` says; the kernel tells a failed write-back only once per open file.
    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Drops a clean range from the page cache.
    ///
    /// # Errors
    /// What `posix_fadvise(2)` says.
    fn drop_cache(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Gives the blocks of a range back to the file system; it reads as zero afterwards.
    ///
    /// # Errors
    /// What `fallocate(2)` says.
    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()>;
}

impl FileIo for File {
    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        // SAFETY: an IoSlice has the layout of an iovec, and the borrow keeps every buffer alive and unchanged.
        let taken = unsafe {
            libc::pwritev(self.as_raw_fd(), buffers.as_ptr().cast(), vector_length(buffers.len()), signed(offset)?)
        };
        usize::try_from(taken).map_err(|_| io::Error::last_os_error())
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        // SAFETY: an IoSliceMut has the layout of an iovec, and the borrow lets nobody else see the buffers meanwhile.
        let filled = unsafe {
            libc::preadv(self.as_raw_fd(), buffers.as_mut_ptr().cast(), vector_length(buffers.len()), signed(offset)?)
        };
        usize::try_from(filled).map_err(|_| io::Error::last_os_error())
    }

    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.sync_data()?;
        // A file system that journals data has it in the journal now, and the page is dirty until it is in its place.
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: no memory is passed.
        match unsafe { libc::sync_file_range(self.as_raw_fd(), signed(offset)?, signed(bytes)?, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn drop_cache(&self, offset: u64, bytes: u64) -> io::Result<()> {
        // SAFETY: no memory is passed.
        let code = unsafe {
            libc::posix_fadvise(self.as_raw_fd(), signed(offset)?, signed(bytes)?, libc::POSIX_FADV_DONTNEED)
        };
        // This call returns its error instead of setting errno.
        if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is passed.
        match unsafe { libc::fallocate(self.as_raw_fd(), mode, signed(offset)?, signed(bytes)?) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Writes all buffers, each a page long. Calls that a signal interrupted or that took only some pages are continued.
///
/// # Errors
/// What the file says; [`io::ErrorKind::WriteZero`] when a call takes less than one page.
pub fn write_pages(file: &impl FileIo, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffers.len() {
        // Continued at a page, since direct I/O allows no other offset.
        match file.write_at(&buffers[done..], offset + (done * PAGE_BYTES) as u64) {
            Ok(bytes) if bytes < PAGE_BYTES => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => done += bytes / PAGE_BYTES,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// Fills all buffers, each a page long. Calls that a signal interrupted or that gave only some pages are continued.
///
/// # Errors
/// What the file says; [`io::ErrorKind::UnexpectedEof`] when a call gives less than one page.
pub fn read_pages(file: &impl FileIo, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffers.len() {
        match file.read_at(&mut buffers[done..], offset + (done * PAGE_BYTES) as u64) {
            Ok(bytes) if bytes < PAGE_BYTES => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => done += bytes / PAGE_BYTES,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// The length of a vector as the kernel takes it: one too long is refused there (`IOV_MAX`).
fn vector_length(buffers: usize) -> libc::c_int {
    libc::c_int::try_from(buffers).unwrap_or(libc::c_int::MAX)
}

/// An offset or length as the kernel takes it.
fn signed(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
