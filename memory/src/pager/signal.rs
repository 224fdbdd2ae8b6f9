//! Wake-ups between threads of the pager.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Wakes threads that wait for nothing else. A wake-up is not lost: whoever waits next takes it.
#[derive(Debug, Default)]
pub(super) struct Wake {
    asked: Mutex<bool>,
    woken: Condvar,
}

impl Wake {
    pub fn wake(&self) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !*asked {
            *asked = true;
            self.woken.notify_all();
        }
    }

    /// Waits for a wake-up, or this long; for ever with `None`.
    pub fn wait(&self, limit: Option<Duration>) {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut asked = match limit {
            Some(limit) => {
                self.woken.wait_timeout_while(asked, limit, |asked| !*asked).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.woken.wait_while(asked, |asked| !*asked).unwrap_or_else(PoisonError::into_inner),
        };
        *asked = false;
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
