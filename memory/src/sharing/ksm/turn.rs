//! Tests that change KSM's settings take turns, with each other and with whoever drives it.

use std::fs::{File, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::folder::Setting;

/// How long a test waits for its turn. A pool may drive for ever.
const PATIENCE: Duration = Duration::from_secs(300);

/// Holds the lock of those who drive.
///
/// # Panics
/// There is no KSM, or somebody else drives it: nothing can be tested then.
pub(crate) fn await_turn() -> File {
    let run = File::open(Setting::Run.to_string()).expect("a kernel with KSM");
    await_until(|| match run.try_lock() {
        Ok(()) => Some(()),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => panic!("{}: {error}", Setting::Run),
    });
    run
}

/// Tries until there is something.
///
/// # Panics
/// There is nothing in time.
pub(crate) fn await_until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "somebody else drives KSM");
        thread::sleep(Duration::from_millis(20));
    }
}
