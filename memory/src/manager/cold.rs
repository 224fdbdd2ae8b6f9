//! Cold pages of a guest, told by setting them aside for a while.

use std::ops::Range;

use crate::pager::{Pager, PagerError};
use crate::ram::PAGE_SIZE;

/// The most that is taken in a step: storing so many pages keeps the manager from looking round for a tenth of a second.
const STEP_BYTES_MAX: u64 = 32 << 20;

/// What was set aside in the last step.
#[derive(Debug, Default)]
pub(super) struct Cold {
    clusters: Vec<Range<u64>>,
}

impl Cold {
    /// Stores so much of what was set aside in the last step and nobody has missed since, and sets as much aside for the next.
    ///
    /// # Errors
    /// [`PagerError`]: nothing is set aside for the next step then.
    pub fn step(&mut self, pager: &Pager, bytes: u64) -> Result<(), PagerError> {
        let pages = bytes.min(STEP_BYTES_MAX) / PAGE_SIZE;
        pager.store_aside(&std::mem::take(&mut self.clusters), pages)?;
        self.clusters = pager.set_aside(pages)?;
        Ok(())
    }

    /// Forgets what was set aside: it stays there until somebody needs it, or the room.
    pub fn forget(&mut self) {
        self.clusters.clear();
    }
}
