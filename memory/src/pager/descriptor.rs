//! The userfaultfd: what the kernel is asked for, narrow enough to stand a fault injector in its place.
//!
//! The calls for COPY and MOVE are made here and not through the `userfaultfd` crate, which has no MOVE and loses how far a
//! partial COPY got. Kernel: Documentation/admin-guide/mm/userfaultfd.rst.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use userfaultfd::{Event, EventBuffer, FaultKind, FeatureFlags, RegisterMode, Uffd};

use crate::mapping::Mapping;
use crate::userfault::{self, MOVE, UserfaultError};

use super::moved::moved_bytes;

/// Faults read in one go; fewer mean that there are no more.
pub(super) const EVENTS: usize = 32;

/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`.
const UFFDIO_COPY: libc::c_ulong = ioctl_number(0x03, size_of::<CopyArguments>());
/// `_IOWR(0xaa, 0x05, struct uffdio_move)`.
const UFFDIO_MOVE: libc::c_ulong = ioctl_number(0x05, size_of::<CopyArguments>());

const fn ioctl_number(number: libc::c_ulong, bytes: usize) -> libc::c_ulong {
    3 << 30 | (bytes as libc::c_ulong) << 16 | 0xaa << 8 | number
}

/// `struct uffdio_copy` and `struct uffdio_move`, which are alike.
#[repr(C)]
struct CopyArguments {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    /// Bytes done, or a negative error number.
    done: i64,
}

/// A page fault that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// Where, in this process.
    pub address: u64,
    /// A write to a page that is write-protected; else the page is missing.
    pub is_protected: bool,
    /// The thread whose access it was. Not the vCPU's where KVM serves its faults asynchronously.
    pub thread: i32,
}

/// How far a call got.
#[derive(Debug)]
pub(super) struct Progress {
    /// Bytes done, whole pages from the start of the range.
    pub bytes: u64,
    /// Why not all of them.
    pub cause: Option<io::Error>,
}

/// What the pager asks of the kernel. Addresses are of this process, ranges whole pages.
pub(super) trait FaultPort: Send + Sync {
    /// Faults that wait, appended to `faults`; none when nobody waits.
    fn read(&self, faults: &mut Vec<Fault>) -> io::Result<()>;

    /// Maps copies of the pages at `from` where nothing is mapped, and wakes who waits for them.
    fn copy(&self, to: u64, from: *const u8, bytes: u64) -> Progress;

    /// Moves pages to where nothing is mapped, and wakes who waits for them there.
    fn move_pages(&self, to: u64, from: u64, bytes: u64) -> Progress;

    /// Makes writes to a range fault.
    fn protect(&self, address: u64, bytes: u64) -> io::Result<()>;

    /// Ends the protection of a range and wakes who waits to write to it.
    fn unprotect(&self, address: u64, bytes: u64) -> io::Result<()>;

    /// Wakes who waits for a page of the range: they look again.
    fn wake(&self, address: u64, bytes: u64) -> io::Result<()>;

    /// Lets faults on a mapping come here.
    fn register(&self, mapping: &Mapping) -> io::Result<()>;

    /// Ends that, and wakes everybody.
    fn unregister(&self, mapping: &Mapping) -> io::Result<()>;

    /// Readable when faults wait.
    fn fd(&self) -> RawFd;
}

/// A real userfaultfd.
pub(super) struct Descriptor {
    uffd: Uffd,
    /// Where faults are read to: one thread reads.
    events: Mutex<EventBuffer>,
}

impl Descriptor {
    /// Opens one, which answers for nothing yet.
    pub fn open(with_move: bool) -> Result<Self, UserfaultError> {
        let mut features = FeatureFlags::PAGEFAULT_FLAG_WP | FeatureFlags::THREAD_ID;
        if with_move {
            features |= MOVE;
        }
        Ok(Self { uffd: userfault::open(features)?, events: Mutex::new(EventBuffer::new(EVENTS)) })
    }

    fn transfer(&self, request: libc::c_ulong, to: u64, from: u64, bytes: u64) -> Progress {
        let mut arguments = CopyArguments { to, from, bytes, mode: 0, done: 0 };
        // SAFETY: the descriptor is a userfaultfd and the structure the one the request expects, which outlives the call.
        // The kernel maps pages only where none is and only in ranges registered with this descriptor: guest RAM and the
        // side mapping, of which no Rust reference exists but to pages whose claim its holder owns.
        let result = unsafe { libc::ioctl(self.uffd.as_raw_fd(), request, &raw mut arguments) };
        if result == 0 {
            return Progress { bytes, cause: None };
        }
        Progress { bytes: u64::try_from(arguments.done).unwrap_or(0), cause: Some(io::Error::last_os_error()) }
    }
}

impl FaultPort for Descriptor {
    fn read(&self, faults: &mut Vec<Fault>) -> io::Result<()> {
        let mut buffer = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let events = match self.uffd.read_events(&mut buffer) {
            Ok(events) => events,
            Err(error) => return not_yet(from_crate(error)),
        };
        for event in events {
            match event {
                Ok(Event::Pagefault { kind, addr, thread_id, .. }) => faults.push(Fault {
                    address: addr as u64,
                    is_protected: kind == FaultKind::WriteProtected,
                    thread: thread_id.as_raw(),
                }),
                // No other events were asked for.
                Ok(_) => {}
                Err(error) => return not_yet(from_crate(error)),
            }
        }
        Ok(())
    }

    fn copy(&self, to: u64, from: *const u8, bytes: u64) -> Progress {
        self.transfer(UFFDIO_COPY, to, from as u64, bytes)
    }

    fn move_pages(&self, to: u64, from: u64, bytes: u64) -> Progress {
        let progress = self.transfer(UFFDIO_MOVE, to, from, bytes);
        let exists = progress.cause.as_ref().is_some_and(|cause| cause.raw_os_error() == Some(libc::EEXIST));
        // Without an answer from the page map it is what the kernel said.
        match exists.then(|| moved_bytes(to, from, bytes).unwrap_or(0)) {
            None | Some(0) => progress,
            Some(moved) => {
                // Nobody has been woken for them.
                let _ = self.wake(to, moved);
                let rest = (moved < bytes).then(|| io::Error::from_raw_os_error(libc::EAGAIN));
                Progress { bytes: moved, cause: rest }
            }
        }
    }

    fn protect(&self, address: u64, bytes: u64) -> io::Result<()> {
        self.uffd.write_protect(address as *mut libc::c_void, bytes as usize).map_err(from_crate)
    }

    fn unprotect(&self, address: u64, bytes: u64) -> io::Result<()> {
        self.uffd.remove_write_protection(address as *mut libc::c_void, bytes as usize, true).map_err(from_crate)
    }

    fn wake(&self, address: u64, bytes: u64) -> io::Result<()> {
        self.uffd.wake(address as *mut libc::c_void, bytes as usize).map_err(from_crate)
    }

    fn register(&self, mapping: &Mapping) -> io::Result<()> {
        let mode = RegisterMode::MISSING | RegisterMode::WRITE_PROTECT;
        self.uffd
            .register_with_mode(mapping.pointer().cast(), mapping.bytes() as usize, mode)
            .map(|_| ())
            .map_err(from_crate)
    }

    fn unregister(&self, mapping: &Mapping) -> io::Result<()> {
        self.uffd.unregister(mapping.pointer().cast(), mapping.bytes() as usize).map_err(from_crate)
    }

    fn fd(&self) -> RawFd {
        self.uffd.as_raw_fd()
    }
}

/// Another thread was faster, or a signal came: there may be more later.
fn not_yet(cause: io::Error) -> io::Result<()> {
    match cause.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(cause),
    }
}

/// The error number in an error of the crate's.
fn from_crate(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other),
    }
}
