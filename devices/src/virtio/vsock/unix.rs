//! Unix stream sockets that never block, on paths of the file system.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::VsockError;

/// Longest path of a unix socket: `sun_path` holds it and a zero.
pub const PATH_BYTES_MAX: usize = 107;

/// Only the user who runs the VMM may connect.
const MODE: u32 = 0o600;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 128;

/// A listening socket and its file, which goes away with it.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: what another process put in its place is not ours to remove.
    file: (u64, u64),
}

impl ListeningSocket {
    /// Listens on `path`. The file a dead process left behind is replaced; anything else that is there stays.
    ///
    /// # Errors
    /// When something else is there, or the kernel refuses.
    pub fn bind(path: &Path) -> Result<Self, VsockError> {
        let failed = |cause| VsockError::Socket { path: path.into(), cause };
        let listener = match listen(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
                    return Err(VsockError::NotASocket { path: path.into() });
                }
                match connect(path) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    // A full queue is a listener too.
                    Ok(_) => return Err(VsockError::InUse { path: path.into() }),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Err(VsockError::InUse { path: path.into() });
                    }
                    Err(error) => return Err(failed(error)),
                }
                fs::remove_file(path).map_err(failed)?;
                listen(path).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let socket = Self { listener, path: path.into(), file: (metadata.dev(), metadata.ino()) };
        // The umask may have taken permissions away; it cannot have added any.
        fs::set_permissions(path, PermissionsExt::from_mode(MODE)).map_err(failed)?;
        Ok(socket)
    }

    /// The next connection.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// The socket, to be watched.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours {
            // Nothing can be done about a file that cannot be removed; the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to the socket at `path`, at once or not at all.
///
/// # Errors
/// `ConnectionRefused` when nobody listens, `WouldBlock` when the listener's queue is full, and others.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket()?;
    let (address, length) = address(path)?;
    // SAFETY: the address is valid for `length` bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket.into())
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket()?;
    let (address, length) = address(path)?;
    // The file takes its mode from the socket, less the umask: it is closed to others from its first moment.
    // SAFETY: the descriptor is open.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), MODE) })?;
    // SAFETY: the address is valid for `length` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: the descriptor is open.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket.into())
}

fn socket() -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, flags, 0) })?;
    // SAFETY: the descriptor was just opened and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    // An empty path, or one that begins with a zero, would name a socket outside the file system.
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() > PATH_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeroes is a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
