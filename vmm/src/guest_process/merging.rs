//! Merging of guests' equal pages by the host's KSM.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use cistern_memory::UserfaultSupport;
use cistern_memory::sharing::ksm::{Setting, Tuner};

/// Guests of a pool may drive KSM. Dropped, once the guests are gone and before their pool is, it puts back what the leader
/// among them has changed: killed with the others, that cannot do so itself.
pub struct Merging {
    pool: PathBuf,
}

impl Merging {
    /// For guests of this pool.
    pub fn of(pool: &Path) -> Self {
        Self { pool: pool.to_owned() }
    }

    /// The same; `None` where the host has no KSM, this user may not drive it, or merged pages could not be paged.
    pub fn possible(pool: &Path, userfault: UserfaultSupport) -> Option<Self> {
        let may_drive = || OpenOptions::new().write(true).open(Setting::Run.to_string()).is_ok();
        (userfault.move_pages && may_drive()).then(|| Self::of(pool))
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        // Who drives for another pool by now keeps it from that, and there is nobody to tell.
        let _ = Tuner::restore_left_behind(&self.pool);
    }
}
