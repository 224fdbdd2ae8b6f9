//! One call that moves bytes between a file and guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    /// From the file.
    Read,
    /// To the file.
    Write {
        /// Onto the medium before the call returns.
        write_through: bool,
    },
}

/// Moves bytes at `offset` of the file; how many, which may be fewer than there is room for.
///
/// # Safety
/// The iovecs must point to memory that nobody holds references to and that, for a read, may be written.
pub(super) unsafe fn vectored(
    file: &File,
    direction: Direction,
    iovecs: &[libc::iovec],
    offset: u64,
) -> io::Result<usize> {
    let (descriptor, count) = (file.as_raw_fd(), iovecs.len() as libc::c_int);
    let moved = match direction {
        // SAFETY: the caller vouches for the iovecs.
        Direction::Read => unsafe { libc::preadv(descriptor, iovecs.as_ptr(), count, offset as libc::off_t) },
        Direction::Write { write_through } => {
            let flags = if write_through { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as above; the kernel only reads what they point to.
            unsafe { libc::pwritev2(descriptor, iovecs.as_ptr(), count, offset as libc::off_t, flags) }
        }
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}
