//! Where threads of this process wait for pages that others are at.

use std::sync::{Condvar, Mutex, PoisonError};

/// A count of wake-ups. Note it before looking at a page, and wait for a later one: what happens in between is not lost.
#[derive(Debug, Default)]
pub(super) struct Waits {
    count: Mutex<u64>,
    woken: Condvar,
}

/// A count of wake-ups.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noted(u64);

impl Waits {
    pub fn note(&self) -> Noted {
        Noted(*self.count.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something has happened to a page that was marked as wanted or as to be discarded.
    pub fn wake(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.woken.notify_all();
    }

    /// Waits for a wake-up later than `noted`. Whoever is waited for owns a page and finishes with it in bounded time.
    pub fn wait(&self, noted: Noted) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.woken.wait_while(count, |count| *count == noted.0).unwrap_or_else(PoisonError::into_inner));
    }
}
