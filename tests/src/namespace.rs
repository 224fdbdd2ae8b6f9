//! A network of a test's own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// A network namespace with a tap in it, removed when dropped, so also when a test fails.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The tap's name inside the namespace.
    pub const TAP: &str = "tap0";

    /// Makes one whose tap has this address, like `10.0.0.1/24`.
    pub fn new(address: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cistern-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let this = Self { name };
        let inside = |arguments: &[&str]| ip(&[&["-n", &this.name], arguments].concat());
        inside(&["tuntap", "add", Self::TAP, "mode", "tap"]);
        inside(&["address", "add", address, "dev", Self::TAP]);
        inside(&["link", "set", Self::TAP, "up"]);
        this
    }

    /// A command that runs `program` in the namespace, as the process it starts and no other.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Calls `action` on a thread inside the namespace. A socket it returns stays inside.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace is there");
        let inside = move || {
            // SAFETY: a plain system call; it changes this thread alone, which ends with `action`.
            assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            action()
        };
        thread::scope(|scope| scope.spawn(inside).join().expect("the action is well"))
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failing test is not to fail once more.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip starts: package iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
