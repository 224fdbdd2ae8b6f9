//! Makes a guest wait while its memory is over a limit, as a fault of its own would wait for the kernel's reclaim.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Ends `KVM_RUN`; the handler waits.
const SIGNAL: libc::c_int = libc::SIGUSR1;

/// How often the one who waits looks again.
const LOOK: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };

// A signal handler has no other way to be told. Guards nothing.
static PAUSED: AtomicBool = AtomicBool::new(false);

extern "C" fn wait(_: libc::c_int) {
    while PAUSED.load(Ordering::Relaxed) {
        // SAFETY: a time to read and none to write. Waking early is no harm.
        unsafe { libc::nanosleep(&LOOK, std::ptr::null_mut()) };
    }
}

/// The one virtual CPU of the one VM in this process; runs again when this is dropped.
pub struct Throttle {
    thread: i32,
    since: Option<Instant>,
    /// How long the guest was made to wait.
    pub paused: Duration,
}

impl Throttle {
    /// Finds the thread by its name.
    pub fn new() -> io::Result<Self> {
        // SAFETY: zeroes are a valid action: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = wait as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the action is complete, and its handler does nothing that a signal handler may not.
        if unsafe { libc::sigaction(SIGNAL, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for entry in fs::read_dir("/proc/self/task")? {
            let entry = entry?;
            // Threads come and go while they are looked at.
            if fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim_end() == "vcpu0") {
                let thread = entry.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
                return Ok(Self { thread, since: None, paused: Duration::ZERO });
            }
        }
        Err(io::Error::other("no thread of a virtual CPU"))
    }

    /// Stops the guest.
    pub fn pause(&mut self) {
        if self.since.is_some() {
            return;
        }
        self.since = Some(Instant::now());
        PAUSED.store(true, Ordering::Relaxed);
        // SAFETY: plain numbers. A thread that is gone need not be stopped.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, SIGNAL) };
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        if let Some(since) = self.since.take() {
            PAUSED.store(false, Ordering::Relaxed);
            self.paused += since.elapsed();
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.resume();
    }
}
