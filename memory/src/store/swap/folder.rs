//! Making the swap file: a file without a name, on a file system that is not itself memory.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{AlignedPage, Caching};
use crate::store::file::{FileIo, write_pages};

/// `HUGETLBFS_MAGIC` of linux/magic.h.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// How many random names are tried where the file must have one for a moment.
const NAME_ATTEMPTS: usize = 8;

/// Why there is no swap file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is missing, is no folder, or may not be searched.
    #[error("swap folder {}: {cause}: name a folder that exists", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The folder's file system keeps its files in memory, where swapping frees none.
    #[error("swap folder {}: is on {kind}, which is memory itself: name a folder on a disk", path.display())]
    InMemory {
        /// The folder.
        path: PathBuf,
        /// The file system by name.
        kind: &'static str,
    },
    /// No file could be made in the folder.
    #[error("swap folder {}: making a file: {cause}: name a folder this user may write to", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Makes an unnamed file of mode 0600 in `folder`, and finds out whether its file system does direct I/O.
pub fn create(folder: &Path) -> Result<(File, Caching), OpenError> {
    let path = || folder.to_path_buf();
    let name = CString::new(folder.as_os_str().as_bytes())
        .map_err(|cause| OpenError::Folder { path: path(), cause: cause.into() })?;
    // Everything below goes through this descriptor, so it is the folder that was looked at which gets the file.
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let folder = open(libc::AT_FDCWD, &name, flags).map_err(|cause| OpenError::Folder { path: path(), cause })?;
    if let Some(kind) = memory_kind(&folder).map_err(|cause| OpenError::Folder { path: path(), cause })? {
        return Err(OpenError::InMemory { path: path(), kind });
    }
    let file = match unnamed(&folder) {
        // What a file system and a kernel that know no unnamed files say.
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            unlinked(&folder).map_err(|cause| OpenError::Create { path: path(), cause })?
        }
        other => other.map_err(|cause| OpenError::Create { path: path(), cause })?,
    };
    let caching = choose_caching(&file).map_err(|cause| OpenError::Create { path: path(), cause })?;
    Ok((file, caching))
}

/// The most bytes a file of this process may have: a write beyond would end the process (`SIGXFSZ`).
pub fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure, which outlives the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// Whether the folder lies in memory, and in which kind of file system.
fn memory_kind(folder: &OwnedFd) -> io::Result<Option<&'static str>> {
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills the structure, which outlives the call.
    if unsafe { libc::fstatfs(folder.as_raw_fd(), status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel filled it.
    let status = unsafe { status.assume_init() };
    Ok(match status.f_type {
        libc::TMPFS_MAGIC => Some("tmpfs"),
        RAMFS_MAGIC => Some("ramfs"),
        HUGETLBFS_MAGIC => Some("hugetlbfs"),
        _ => None,
    })
}

/// A file that never has a name and, by `O_EXCL`, never gets one.
fn unnamed(folder: &OwnedFd) -> io::Result<File> {
    let flags = libc::O_TMPFILE | libc::O_EXCL | libc::O_RDWR;
    Ok(open(folder.as_raw_fd(), c".", flags)?.into())
}

/// A file that loses its name at once. Killed between the two calls, the process leaves an empty file.
pub(super) fn unlinked(folder: &OwnedFd) -> io::Result<File> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_RDWR;
    let mut outcome = Err(io::ErrorKind::AlreadyExists.into());
    for _ in 0..NAME_ATTEMPTS {
        let name = CString::new(format!(".cistern-swap-{:016x}", RandomState::new().build_hasher().finish()))
            .expect("hexadecimal digits hold no zero byte");
        match open(folder.as_raw_fd(), &name, flags) {
            Ok(file) => {
                // SAFETY: the name is a terminated string that outlives the call.
                return match unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), 0) } {
                    0 => Ok(file.into()),
                    _ => Err(io::Error::last_os_error()),
                };
            }
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => outcome = Err(cause),
            Err(cause) => return Err(cause),
        }
    }
    outcome
}

fn open(folder: libc::c_int, name: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    let mode: libc::mode_t = 0o600;
    // SAFETY: the name is a terminated string that outlives the call.
    let descriptor = unsafe { libc::openat(folder, name.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Turns direct I/O on where it is real, and tells whether it is.
fn choose_caching(file: &File) -> io::Result<Caching> {
    if !refuses_direct(file) && set_direct(file, true).is_ok() {
        let page = AlignedPage::default();
        match write_pages(file, &[IoSlice::new(&page.0)], 0) {
            // The flag was taken, the I/O is not.
            Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => set_direct(file, false)?,
            // A full disk is found out, and said, when the first page is written.
            Err(_) => return Ok(Caching::Direct),
            Ok(()) => {
                // Its block comes back with the first page if it cannot be given back now.
                let _ = file.punch_hole(0, page.0.len() as u64);
                return Ok(Caching::Direct);
            }
        }
    }
    refuse_read_ahead(file);
    Ok(Caching::Buffered)
}

/// Whether the file system says that direct I/O would be buffered, as ext4 with `data=journal` does it, or that its
/// blocks are larger than a page. Kernels before 6.1 do not say.
fn refuses_direct(file: &File) -> bool {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_DIOALIGN;
    // SAFETY: the name is empty and terminated, and the kernel fills the structure, which outlives the call.
    let code = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, status.as_mut_ptr()) };
    // SAFETY: all zeroes is a valid value of every field, so it is whether the kernel filled it or not.
    let status = unsafe { status.assume_init() };
    let page = crate::PAGE_SIZE as u32;
    code == 0
        && status.stx_mask & mask != 0
        && (status.stx_dio_offset_align == 0 || status.stx_dio_offset_align > page || status.stx_dio_mem_align > page)
}

/// Keeps the kernel from reading ahead: those pages would stay in the cache. Advice only: nothing fails without it.
pub(super) fn refuse_read_ahead(file: &File) {
    // SAFETY: no memory is passed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
}

/// Turns `O_DIRECT` on or off.
pub(super) fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let flags = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
    // SAFETY: no memory is passed.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
