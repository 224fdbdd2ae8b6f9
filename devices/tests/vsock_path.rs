//! Where a vsock device listens: what it replaces, what it leaves alone, who may connect.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use cistern_devices::virtio::vsock::{Vsock, VsockError};
use tempfile::TempDir;

fn directory() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let uds = directory.path().join("v.sock");
    (directory, uds)
}

fn error(cid: u64, uds: &Path) -> String {
    Vsock::new(cid, uds).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn reserved_cids_are_refused() {
    let (_directory, uds) = directory();
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        assert!(matches!(Vsock::new(cid, &uds), Err(VsockError::ReservedCid { .. })), "{cid}");
        assert!(!uds.exists());
    }
    assert_eq!(error(2, &uds), "vsock: cid 2 is reserved: choose one from 3 to 4294967294");
    for cid in [3, u64::from(u32::MAX) - 1] {
        Vsock::new(cid, &uds).unwrap();
    }
}

#[test]
fn the_file_of_a_dead_process_is_replaced() {
    let (_directory, uds) = directory();
    drop(UnixListener::bind(&uds).unwrap());
    assert!(fs::symlink_metadata(&uds).unwrap().file_type().is_socket());
    let device = Vsock::new(3, &uds).unwrap();
    UnixStream::connect(&uds).unwrap();
    drop(device);
    assert!(!uds.exists());
}

#[test]
fn a_living_process_is_left_alone() {
    let (_directory, uds) = directory();
    let _first = Vsock::new(3, &uds).unwrap();
    assert!(error(4, &uds).ends_with("v.sock: another process listens there"));
    UnixStream::connect(&uds).unwrap();
}

#[test]
fn a_process_too_busy_to_accept_lives() {
    let (_directory, uds) = directory();
    let _first = Vsock::new(3, &uds).unwrap();
    // Nobody accepts: every try leaves one more in the queue, until it is full.
    for _ in 0..300 {
        assert!(matches!(Vsock::new(4, &uds), Err(VsockError::InUse { .. })));
    }
    assert!(uds.exists());
}

#[test]
fn other_files_are_left_alone() {
    let (directory, uds) = directory();
    fs::write(&uds, "precious").unwrap();
    assert!(error(3, &uds).ends_with("v.sock: exists and is not a socket: remove it or choose another path"));
    assert_eq!(fs::read(&uds).unwrap(), b"precious");
    assert!(error(3, directory.path()).ends_with("is not a socket: remove it or choose another path"));
    // A link is not followed, not even to a socket nobody listens on.
    let target = directory.path().join("target");
    drop(UnixListener::bind(&target).unwrap());
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(matches!(Vsock::new(3, &link), Err(VsockError::NotASocket { .. })));
    assert!(target.exists());
}

#[test]
fn unusable_paths_are_refused() {
    let (directory, _) = directory();
    let missing = directory.path().join("no/such/directory");
    assert!(error(3, &missing).contains("no/such/directory: No such file or directory"));
    // The longest path leaves room for the longest port.
    let room = 96 - directory.path().as_os_str().len() - 1;
    Vsock::new(3, &directory.path().join("x".repeat(room))).unwrap();
    let long = directory.path().join("x".repeat(room + 1));
    assert!(error(3, &long).contains("not a usable socket path: it must have 1 to 96 bytes"));
    for path in ["", "\0abstract"] {
        assert!(matches!(Vsock::new(3, Path::new(path)), Err(VsockError::Path { .. })), "{path:?}");
    }
}

#[test]
fn what_took_the_files_place_stays() {
    let (_directory, uds) = directory();
    let device = Vsock::new(3, &uds).unwrap();
    fs::remove_file(&uds).unwrap();
    let _other = UnixListener::bind(&uds).unwrap();
    drop(device);
    assert!(uds.exists());
}

/// The one test here that looks at modes; the umask belongs to the whole process, and no other test depends on it.
#[test]
fn only_the_owner_may_connect() {
    let (_directory, uds) = directory();
    for umask in [0, 0o022, 0o177, 0o277] {
        // SAFETY: the call cannot fail and takes no pointers.
        let before = unsafe { libc::umask(umask) };
        let device = Vsock::new(3, &uds);
        // SAFETY: as above.
        unsafe { libc::umask(before) };
        let _device = device.unwrap();
        assert_eq!(fs::symlink_metadata(&uds).unwrap().permissions().mode() & 0o7777, 0o600, "umask {umask:o}");
    }
}
