//! Direct I/O: transfers that go past the host's page cache, and what the file system asks of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::transfer::{Direction, vectored};
use crate::virtio::scatter::Scatter;

/// What to assume where the file system does not say: no device asks for more.
const ASSUMED: Alignment = Alignment { memory: 4096, offset: 4096 };

/// Bytes copied at a time where the guest's buffers are not aligned.
const COPY_BYTES: u64 = 256 << 10;

/// What addresses and offsets must be multiples of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Alignment {
    /// Addresses in memory. A power of two.
    memory: usize,
    /// Offsets in the file, and the length of each piece.
    offset: u64,
}

/// The image once more, opened for direct I/O.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    alignment: Alignment,
}

impl Direct {
    /// Opens again, for direct I/O, what is open already as a file.
    ///
    /// # Errors
    /// Of the kinds `InvalidInput` or `Unsupported` when the file system has no direct I/O.
    pub fn open(open: &File, read_only: bool) -> io::Result<Self> {
        // By way of the descriptor, for the path may name another file by now.
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_DIRECT)
            .open(format!("/proc/self/fd/{}", open.as_raw_fd()))?;
        let alignment = Alignment::of(&file)?;
        Ok(Self { file, alignment })
    }

    /// The unit that the guest should write in: what the file system asks for, if that is a block size.
    pub fn block_bytes(&self) -> Option<u32> {
        u32::try_from(self.alignment.offset).ok().filter(|bytes| bytes.is_power_of_two())
    }

    /// True when direct I/O can move this range of the image. What it cannot move goes through the page cache, where the
    /// kernel puts parts of blocks together and keeps both ways in step; so does the last block of an image when it is not
    /// whole, which would make the file longer.
    pub fn takes(&self, offset: u64, bytes: u64) -> bool {
        offset.is_multiple_of(self.alignment.offset) && bytes.is_multiple_of(self.alignment.offset)
    }

    /// Moves bytes of a range that direct I/O takes; how many. Straight from guest memory where it is aligned: `iovecs` are
    /// those of `data`.
    ///
    /// # Safety
    /// As for [`vectored`].
    pub unsafe fn transfer(
        &self,
        direction: Direction,
        data: &Scatter,
        iovecs: &[libc::iovec],
        offset: u64,
    ) -> io::Result<usize> {
        if iovecs.iter().all(|iovec| self.alignment.fits(iovec)) {
            // SAFETY: the caller vouches for the iovecs.
            unsafe { vectored(&self.file, direction, iovecs, offset) }
        } else {
            self.copy(direction, data, offset)
        }
    }

    /// As [`Direct::transfer`], by way of a buffer that is aligned. It lasts for one call: most guests never need it.
    fn copy(&self, direction: Direction, data: &Scatter, offset: u64) -> io::Result<usize> {
        let bytes = COPY_BYTES.next_multiple_of(self.alignment.offset).min(data.len() as u64) as usize;
        let mut space = vec![0_u8; bytes + self.alignment.memory];
        let start = space.as_ptr().align_offset(self.alignment.memory);
        let buffer = &mut space[start..start + bytes];
        // What was moved is the caller's to consume.
        let mut data = data.clone();
        if let Direction::Write { .. } = direction {
            data.read(buffer);
        }
        let iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: bytes };
        // SAFETY: the iovec is that of a live buffer, which nobody else uses meanwhile.
        let moved = unsafe { vectored(&self.file, direction, &[iovec], offset) }?;
        if let Direction::Read = direction {
            data.write(&buffer[..moved]);
        }
        Ok(moved)
    }
}

impl Alignment {
    /// What the file system asks for.
    fn of(file: &File) -> io::Result<Self> {
        let mut status = MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: the kernel reads an empty string and writes one statx.
        let result = unsafe {
            libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, status.as_mut_ptr())
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: plain integers, zeroed before the kernel wrote them.
        let status = unsafe { status.assume_init() };
        if status.stx_mask & libc::STATX_DIOALIGN == 0 {
            return Ok(ASSUMED);
        }
        Self::from_kernel(status.stx_dio_mem_align, status.stx_dio_offset_align)
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// From what the kernel says, which is 0 where this file has no direct I/O.
    fn from_kernel(memory: u32, offset: u32) -> Option<Self> {
        (memory.is_power_of_two() && offset != 0).then_some(Self { memory: memory as usize, offset: offset.into() })
    }

    fn fits(&self, iovec: &libc::iovec) -> bool {
        (iovec.iov_base as usize).is_multiple_of(self.memory) && (iovec.iov_len as u64).is_multiple_of(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(alignment: Alignment) -> Direct {
        Direct { file: File::open("/dev/null").expect("there"), alignment }
    }

    #[test]
    fn only_whole_blocks_are_moved_directly() {
        let direct = direct(Alignment { memory: 512, offset: 4096 });
        for (offset, bytes, expected) in
            [(0, 4096, true), (4096, 8192, true), (512, 4096, false), (0, 4096 + 512, false), (4096, 512, false)]
        {
            assert_eq!(direct.takes(offset, bytes), expected, "{bytes} bytes at {offset}");
        }
    }

    #[test]
    fn an_iovec_fits_by_address_and_length() {
        let alignment = Alignment { memory: 512, offset: 4096 };
        for (base, bytes, expected) in [(512, 8192, true), (512, 0, true), (256, 4096, false), (512, 512, false)] {
            let iovec = libc::iovec { iov_base: base as *mut libc::c_void, iov_len: bytes };
            assert_eq!(alignment.fits(&iovec), expected, "{bytes} bytes at {base}");
        }
    }

    #[test]
    fn the_kernels_word_is_checked() {
        assert_eq!(Alignment::from_kernel(4, 512), Some(Alignment { memory: 4, offset: 512 }));
        assert_eq!(Alignment::from_kernel(0, 0), None, "no direct I/O on this file");
        assert_eq!(Alignment::from_kernel(3, 512), None);
    }

    #[test]
    fn a_block_size_is_a_power_of_two() {
        let block_bytes = |offset| direct(Alignment { memory: 512, offset }).block_bytes();
        assert_eq!([512, 4096, 3 * 4096].map(block_bytes), [Some(512), Some(4096), None]);
    }
}
