//! Tests that change KSM's settings take turns, with each other and with whoever drives it.

use std::fs::{File, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::folder::Setting;

/// How long a test waits for its turn. A pool may drive for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// Holds the lock of those who drive; `None` if it is not to be had, and then nothing can be tested.
///
/// # Panics
/// There is no KSM.
pub(crate) fn await_turn() -> Option<File> {
    let run = File::open(Setting::Run.to_string()).expect("a kernel with KSM");
    await_until(|| match run.try_lock() {
        Ok(()) => Some(()),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => panic!("{}: {error}", Setting::Run),
    })
    .map(|()| run)
}

/// Tries until there is something, or says that KSM is not to be had.
pub(crate) fn await_until<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let result = attempt();
        if result.is_some() {
            return result;
        }
        thread::sleep(Duration::from_millis(20));
    }
    eprintln!("not tested: somebody else drives KSM");
    None
}
