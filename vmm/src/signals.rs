//! Signals as events.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::{mem, ptr};

use vmm_sys_util::signal::register_signal_handler;

use crate::terminal;

/// Signals that ask the process to end.
const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// SIGTERM, SIGINT, SIGHUP and SIGQUIT, blocked for this thread and those it starts, and readable from a descriptor.
pub struct Signals {
    descriptor: File,
}

impl Signals {
    /// Blocks the signals. Call it before any thread is started, and after everything that may wait for a file: until then
    /// they end the process as they do any other. What the process was started to ignore (`nohup`) stays ignored.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn block() -> io::Result<Self> {
        // SAFETY: the set is made valid by sigemptyset before it is used; sigprocmask and signalfd only read it. The
        // descriptor is new and owned by the File alone.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in ENDING.into_iter().filter(|signal| !is_ignored(*signal)) {
                libc::sigaddset(&mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { descriptor: File::from_raw_fd(fd) })
        }
    }

    /// Whether one has arrived and is not taken yet.
    pub fn is_waiting(&self) -> bool {
        let mut polled = libc::pollfd { fd: self.descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as said; it does not wait.
        unsafe { libc::poll(&mut polled, 1, 0) == 1 }
    }

    /// Takes one signal that has arrived; false when there is none.
    pub fn take(&self) -> bool {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.descriptor).read(&mut info).is_ok_and(|bytes| bytes == info.len())
    }
}

/// A signal that is ignored is taken all the same where it is blocked.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zeroes is a valid sigaction, which the kernel overwrites; nothing is changed.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) an error of that write, and not the end of the process: a
/// guest can bring one about on its disk.
pub fn ignore_file_size_limit_signal() {
    // SAFETY: no handler is installed. It cannot fail for this signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Signals that end the process at once: because of a mistake of its own, or because somebody sent one it has no use for.
const FATAL: [i32; 9] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGABRT,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGXCPU,
];

/// Lets the signals that end the process at once leave the terminal as it was found.
///
/// # Errors
/// What the kernel said.
pub fn restore_terminal_on_fatal_signals() -> io::Result<()> {
    extern "C" fn restore_and_die(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        terminal::restore();
        // SAFETY: both calls are async-signal-safe. The signal is blocked while its handler runs and is delivered, with
        // the default action, when it returns.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    for signal in FATAL {
        register_signal_handler(signal, restore_and_die)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
