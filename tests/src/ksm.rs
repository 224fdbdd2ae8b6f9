//! The kernel's page merging, of which a host has one: tests take turns.

use std::fs::File;
use std::path::{Path, PathBuf};

use cistern_memory::sharing::ksm::Tuner;

/// Held by a test that has pages merged.
#[derive(Debug)]
pub struct Ksm {
    turn: File,
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
        Self { turn }
    }

    /// The lock that is held, for whoever goes on holding it where this one's process ends.
    pub(crate) fn lock(&self) -> &File {
        &self.turn
    }
}

/// A pool whose leader drives KSM. Dropped after its guests, which are killed where nobody stops them, and before its folder,
/// it puts back what they have left changed.
pub struct DrivenPool {
    folder: PathBuf,
}

impl DrivenPool {
    /// In this folder, which need not be there yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for DrivenPool {
    fn drop(&mut self) {
        if let Err(error) = Tuner::restore_left_behind(&self.folder) {
            eprintln!("KSM is left as a test has set it: {error}");
        }
    }
}
