//! A network of a test's own.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

/// A network namespace with a tap in it. It has no name: the kernel takes it away with the last that uses it, however
/// that ends.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// The tap's name inside the namespace.
    pub const TAP: &str = "tap0";

    /// Makes one whose tap has this address, like `10.0.0.1/24`.
    pub fn new(address: &str) -> Self {
        let make = || {
            // SAFETY: a plain system call; it changes this thread alone, which ends with this.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "a network namespace (needs root): {}", io::Error::last_os_error());
            File::open("/proc/thread-self/ns/net").expect("a thread has a namespace")
        };
        let this = Self { handle: thread::spawn(make).join().expect("a namespace") };
        this.ip(&["tuntap", "add", Self::TAP, "mode", "tap"]);
        this.ip(&["address", "add", address, "dev", Self::TAP]);
        this.ip(&["link", "set", Self::TAP, "up"]);
        this
    }

    /// A command that runs `program` in the namespace.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let handle = self.handle.try_clone().expect("a descriptor");
        // SAFETY: setns is async-signal-safe; nothing is allocated.
        unsafe { command.pre_exec(move || enter(handle.as_raw_fd())) };
        command
    }

    /// Calls `action` on a thread inside the namespace. A socket it returns stays inside.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter(self.handle.as_raw_fd()).expect("a namespace can be entered");
            action()
        };
        thread::scope(|scope| scope.spawn(inside).join().expect("the action is well"))
    }

    fn ip(&self, arguments: &[&str]) {
        let output = self.command(Path::new("ip")).args(arguments).output().expect("ip starts: package iproute2");
        assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Moves the calling thread into a network namespace.
fn enter(handle: RawFd) -> io::Result<()> {
    // SAFETY: a plain system call on an open descriptor; it changes the calling thread alone.
    match unsafe { libc::setns(handle, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
