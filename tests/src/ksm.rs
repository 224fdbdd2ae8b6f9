//! The kernel's page merging, of which a host has one: tests take turns.

use std::fs::File;
use std::path::PathBuf;

/// Held by a test that has pages merged.
pub struct Ksm {
    _turn: File,
}

impl Ksm {
    /// Waits until nobody else of this user's tests has pages merged.
    ///
    /// # Panics
    /// If there is no temporary folder.
    #[track_caller]
    pub fn hold() -> Self {
        let path: PathBuf = std::env::temp_dir().join("cistern-tests-ksm.lock");
        let turn = File::create(path).expect("a temporary folder");
        turn.lock().expect("a lock");
        Self { _turn: turn }
    }
}
