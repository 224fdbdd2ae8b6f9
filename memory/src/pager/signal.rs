//! Wake-ups between threads of the pager.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Wakes threads that wait for nothing else.
#[derive(Debug, Default)]
pub(super) struct Wake {
    count: Mutex<u64>,
    woken: Condvar,
}

/// How many wake-ups a thread has seen.
#[derive(Debug, Default)]
pub(super) struct Seen(u64);

impl Wake {
    pub fn wake(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.woken.notify_all();
    }

    /// Waits for a wake-up that this thread has not seen, or this long; for ever with `None`.
    pub fn wait(&self, seen: &mut Seen, limit: Option<Duration>) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let none = |count: &mut u64| *count == seen.0;
        let count = match limit {
            Some(limit) => self.woken.wait_timeout_while(count, limit, none).unwrap_or_else(PoisonError::into_inner).0,
            None => self.woken.wait_while(count, none).unwrap_or_else(PoisonError::into_inner),
        };
        seen.0 = *count;
    }
}

/// Wakes a thread that waits for descriptors.
#[derive(Debug)]
pub(super) struct Kick(EventFd);

impl Kick {
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    pub fn kick(&self) {
        // Fails only when the counter is full: then it is readable already.
        let _ = self.0.write(1);
    }

    /// Forgets the kicks so far.
    pub fn clear(&self) {
        let _ = self.0.read();
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
