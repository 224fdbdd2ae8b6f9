//! ksmd alone: everything advised from outside, at a pace that is set by hand.

use std::fs::{self, File};
use std::path::PathBuf;

const SETTINGS: [&str; 3] = ["pages_to_scan", "sleep_millisecs", "run"];

/// How ksmd runs, until it is dropped: then it runs as it was found to.
pub struct Ksmd {
    found: [String; 3],
    /// Whoever drives KSM holds this.
    _lock: File,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/sys/kernel/mm/ksm").join(name)
}

impl Ksmd {
    /// Takes the wheel and stops it.
    pub fn take() -> Self {
        let lock = File::open(path("run")).expect("a kernel with KSM");
        lock.lock().expect("a lock");
        let found = SETTINGS.map(|name| fs::read_to_string(path(name)).expect("a kernel with KSM"));
        fs::write(path("run"), "0").expect("root may");
        Self { found, _lock: lock }
    }

    /// Has it look at so many pages, and sleep for so many ms, in turns.
    pub fn run(&self, pages_to_scan: u32, sleep_millisecs: u32) {
        for (name, value) in SETTINGS.into_iter().zip([pages_to_scan, sleep_millisecs, 1]) {
            fs::write(path(name), value.to_string()).expect("root may");
        }
    }
}

impl Drop for Ksmd {
    fn drop(&mut self) {
        for (name, value) in SETTINGS.into_iter().zip(&self.found) {
            let _ = fs::write(path(name), value.trim());
        }
    }
}

/// `PR_SET_MEMORY_MERGE` (Linux 6.4).
const SET_MEMORY_MERGE: libc::c_int = 67;

/// Has all memory of what `start` starts advised, whoever it is: processes inherit that.
pub fn with_all_advised<R>(start: impl FnOnce() -> R) -> R {
    set_memory_merge(true);
    let started = start();
    set_memory_merge(false);
    started
}

fn set_memory_merge(merges: bool) {
    // SAFETY: plain numbers.
    let result = unsafe { libc::prctl(SET_MEMORY_MERGE, libc::c_ulong::from(merges), 0, 0, 0) };
    assert_eq!(result, 0, "prctl(PR_SET_MEMORY_MERGE): {}", std::io::Error::last_os_error());
}
