//! The tap interface: whole Ethernet frames, each behind a virtio-net header that the kernel understands.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::HEADER_BYTES;

/// Where taps come from.
const TUN: &str = "/dev/net/tun";

/// Why there is no network interface.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No interface can have this name.
    #[error("tap {name:?}: not an interface name: up to 15 characters, no '/', no '%', no space")]
    Name {
        /// The name given.
        name: String,
    },
    /// There is no interface of this name.
    #[error("tap {name}: no such interface: create it with 'ip tuntap add {name} mode tap user $USER'")]
    Missing {
        /// The interface.
        name: String,
    },
    /// The host has no taps, or keeps them from this user.
    #[error("{TUN}: {cause}: load the module 'tun', or make the file readable and writable for this user")]
    Tun {
        /// What the kernel said.
        cause: io::Error,
    },
    /// This user may not use the interface.
    #[error(
        "tap {name}: operation not permitted: create it with 'ip tuntap add {name} mode tap user $USER', or run as root"
    )]
    NotPermitted {
        /// The interface.
        name: String,
    },
    /// Another process has it.
    #[error("tap {name}: in use by another process: give each VM a tap of its own")]
    InUse {
        /// The interface.
        name: String,
    },
    /// It is no tap, or one of another kind.
    #[error("tap {name}: not a tap with one queue: create one with 'ip tuntap add NAME mode tap user $USER'")]
    NotTap {
        /// The interface.
        name: String,
    },
    /// The kernel refused something else.
    #[error("tap {name}: {action}: {cause}")]
    Setup {
        /// The interface.
        name: String,
        /// What was asked of it.
        action: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The address is not one an interface can have.
    #[error("tap {name}: MAC address {}: not the address of one station", display_mac(mac))]
    Mac {
        /// The interface.
        name: String,
        /// The address given.
        mac: [u8; 6],
    },
}

/// An open tap, non-blocking.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
}

impl Tap {
    /// Attaches to an existing tap.
    pub fn open(name: &str) -> Result<Self, NetError> {
        let owned = || name.to_owned();
        let valid = (1..libc::IFNAMSIZ).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b'%');
        let c_name = CString::new(name).ok().filter(|_| valid).ok_or_else(|| NetError::Name { name: owned() })?;
        // With enough privilege the kernel would make the interface up on the spot, with nothing connected to it.
        // SAFETY: the call reads one string that ends in a zero byte.
        if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
            return Err(NetError::Missing { name: owned() });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)
            .map_err(|cause| NetError::Tun { cause })?;

        // SAFETY: an ifreq is plain data; all zeroes is a valid one.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(c_name.as_bytes()) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the kernel reads and writes one live ifreq.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
            let cause = io::Error::last_os_error();
            return Err(match cause.raw_os_error() {
                Some(libc::EPERM) => NetError::NotPermitted { name: owned() },
                Some(libc::EBUSY) => NetError::InUse { name: owned() },
                Some(libc::EINVAL) => NetError::NotTap { name: owned() },
                _ => NetError::Setup { name: owned(), action: "attaching", cause },
            });
        }
        let header_bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: the kernel reads one live integer.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes) } != 0 {
            let cause = io::Error::last_os_error();
            return Err(NetError::Setup { name: owned(), action: "setting the header size", cause });
        }
        let tap = Self { file };
        tap.set_offload(0).map_err(|cause| NetError::Setup { name: owned(), action: "setting offloads", cause })?;
        Ok(tap)
    }

    /// Says which work the reader of frames does itself (`TUN_F_*`): the kernel does the rest before it hands them over.
    pub fn set_offload(&self, flags: libc::c_uint) -> io::Result<()> {
        // SAFETY: the call takes no pointers.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads one frame with its header; a frame longer than the buffers is cut in silence. `None` when there is none.
    ///
    /// # Safety
    /// The iovecs must point to memory that may be written, which nobody holds references to.
    pub unsafe fn read(&self, iovecs: &[libc::iovec]) -> io::Result<Option<usize>> {
        retry(|| {
            // SAFETY: the caller vouches for the iovecs.
            unsafe { libc::readv(self.file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) }
        })
    }

    /// Writes one frame with its header. `None` when the interface takes none now.
    ///
    /// # Safety
    /// The iovecs must point to memory that may be read.
    pub unsafe fn write(&self, iovecs: &[libc::iovec]) -> io::Result<Option<usize>> {
        retry(|| {
            // SAFETY: the caller vouches for the iovecs.
            unsafe { libc::writev(self.file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) }
        })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Repeats a call that a signal interrupted; `None` when it would block.
fn retry(call: impl Fn() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(bytes) = usize::try_from(call()) {
            return Ok(Some(bytes));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    }
}

fn display_mac(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
