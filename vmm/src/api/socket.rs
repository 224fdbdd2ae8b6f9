//! The control socket's file: made for its owner alone, replaced when nobody listens any more, removed at the end.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::folder::{self, FolderError};

/// What the owner may, and nobody else.
const OWN_SOCKET_MODE: u32 = 0o600;
/// Clients that may wait to be let in.
const BACKLOG: i32 = 64;
/// How long another's lock of the folder is respected.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is tried again.
const LOCK_STEP: Duration = Duration::from_millis(1);
/// The longest path a socket address holds (`man 7 unix`).
const PATH_BYTES_MAX: usize = 107;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// There is no folder for it.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Somebody listens there.
    #[error("control socket {}: in use by a running VM: choose another --name or --api-sock", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is another kind of file.
    #[error("control socket {}: there is a file that is no socket: choose another --name or --api-sock", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// No socket address can hold the path.
    #[error("control socket {}: longer than {PATH_BYTES_MAX} bytes: name a shorter --api-sock", path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("control socket {}: {cause}: name an --api-sock in a folder this user may write", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

impl SocketError {
    /// True when another VM has this name or path.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

/// A listening control socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: whoever has put another file there keeps it.
    file: Option<(u64, u64)>,
    /// The runtime folder, if it lies there.
    folder: Option<PathBuf>,
}

impl ControlSocket {
    /// Listens in this user's runtime folder under the VM's name.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind_name(name: &str) -> Result<Self, SocketError> {
        let folder = folder::runtime_folder();
        folder::make(&folder)?;
        let mut socket = Self::bind(&folder::socket_path(&folder, name))?;
        socket.folder = Some(folder);
        Ok(socket)
    }

    /// Listens at `path`; a socket there on which nobody listens is replaced.
    ///
    /// # Errors
    /// [`SocketError`], but not [`SocketError::Folder`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |cause| SocketError::Bind { path: path.to_owned(), cause };
        if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
            return Err(SocketError::TooLong { path: path.to_owned() });
        }
        // Two that start at once would each take the other's socket for one that was left behind.
        let _lock = lock_folder(path);
        let listener = match listen(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                listen(path)
            }
            result => result,
        };
        let listener = listener.map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), file: identity(path), folder: None })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The runtime folder, if the socket lies there.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The listening end, which does not block.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            // What cannot be removed is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Which file is at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Holds the folder against others who make sockets in it. It is held for microseconds; whoever holds it for longer, in a
/// folder that others can lock, does not keep us from starting.
fn lock_folder(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder).ok()?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    while let Err(TryLockError::WouldBlock) = folder.try_lock() {
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(LOCK_STEP);
    }
    Some(folder)
}

/// Makes a socket that listens.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file gets the descriptor's mode: there is no moment at which others may connect.
    // SAFETY: a plain system call on an open descriptor.
    if unsafe { libc::fchmod(socket.as_raw_fd(), OWN_SOCKET_MODE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// Removes a socket on which nobody listens.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |cause| SocketError::Bind { path: path.to_owned(), cause };
    let no_socket = || SocketError::NoSocket { path: path.to_owned() };
    if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(no_socket());
    }
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // One that listens and does not answer is not waited for.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match connect() {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Err(no_socket()),
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(failed(error)),
        _ => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

/// Removes from a runtime folder what killed VMs without a name have left: nobody would ever take their places.
pub(super) fn sweep(folder: &Path) {
    let is_gone = |name: &String| {
        name.parse().is_ok_and(|pid: i32| {
            // SAFETY: a plain system call; signal 0 is none.
            pid > 0
                && unsafe { libc::kill(pid, 0) } != 0
                && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
        })
    };
    let gone: Vec<_> = folder::names(folder).into_iter().filter(is_gone).collect();
    if gone.is_empty() {
        return;
    }
    let _lock = lock_folder(&folder::socket_path(folder, ""));
    for name in gone {
        // It may listen all the same, in another pid namespace: then it stays.
        let _ = remove_stale(&folder::socket_path(folder, &name));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn the_file_is_the_owners_and_goes_away() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.sock");
        let socket = ControlSocket::bind(&path).expect("a socket");
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o777, 0o600);
        UnixStream::connect(&path).expect("it listens");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_alive_stays_and_what_is_dead_goes() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.sock");
        let socket = ControlSocket::bind(&path).expect("a socket");
        let error = ControlSocket::bind(&path).expect_err("somebody listens");
        assert!(error.is_in_use(), "{error}");
        // As after kill -9: the file without a listener.
        let ControlSocket { listener, .. } = &socket;
        // SAFETY: a plain system call on an open descriptor.
        assert_eq!(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) }, 0);
        let next = ControlSocket::bind(&path).expect("nobody listens");
        drop(socket);
        assert!(path.exists(), "it belongs to the next");
        UnixStream::connect(&path).expect("the next listens");
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_does_not_answer_is_alive() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.sock");
        let _socket = ControlSocket::bind(&path).expect("a socket");
        // Nobody is let in, so the waiting room fills up.
        let connect = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.connect(&SockAddr::unix(&path)?)?;
            Ok(socket)
        };
        let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();
        assert!(waiting.len() >= BACKLOG as usize);
        assert!(ControlSocket::bind(&path).expect_err("full").is_in_use());
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        fs::write(&file, "precious").expect("write");
        assert!(matches!(ControlSocket::bind(&file), Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&file).expect("read"), "precious");
        let datagrams = folder.path().join("datagrams");
        let _datagrams = UnixDatagram::bind(&datagrams).expect("a socket");
        assert!(matches!(ControlSocket::bind(&datagrams), Err(SocketError::NoSocket { .. })));
        let long = folder.path().join("x".repeat(120));
        assert!(matches!(ControlSocket::bind(&long), Err(SocketError::TooLong { .. })));
        let nowhere = folder.path().join("nonexistent/a.sock");
        assert!(matches!(ControlSocket::bind(&nowhere), Err(SocketError::Bind { .. })));
    }

    #[test]
    fn what_killed_vms_left_is_swept_up() {
        let folder = tempfile::tempdir().expect("folder");
        let leave = |name: &str| drop(UnixListener::bind(folder::socket_path(folder.path(), name)).expect("a socket"));
        // Above the largest process id there can be.
        leave("4194305");
        leave("4194306x");
        leave("1");
        leave("named");
        let listening = folder::socket_path(folder.path(), "4194307");
        let _listening = UnixListener::bind(&listening).expect("a socket");
        sweep(folder.path());
        assert_eq!(folder::names(folder.path()), ["1", "4194306x", "4194307", "named"]);
    }

    #[test]
    fn of_many_at_once_one_gets_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.sock");
        for _ in 0..50 {
            // One that was left behind, for all to find.
            drop(UnixListener::bind(&path).expect("a socket"));
            let sockets: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| ControlSocket::bind(&path))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            assert_eq!(sockets.iter().filter(|socket| socket.is_ok()).count(), 1, "{sockets:?}");
        }
    }
}
