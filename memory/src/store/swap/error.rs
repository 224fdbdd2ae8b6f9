//! What the swap file answers when it cannot do what it is asked.

use std::io;

use super::Slot;

/// Why pages were not written or read.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// Every slot the limit allows is held.
    #[error("swap file: full at its limit of {} MiB", limit_bytes >> 20)]
    Full {
        /// The most bytes the file may have.
        limit_bytes: u64,
    },
    /// An earlier write failed, and no retry was asked for.
    #[error("swap file: not written to since a write failed")]
    Unavailable,
    /// The device or the file system refused a write.
    #[error("swap file: writing {pages} pages at slot {}: {cause}", first.index())]
    Write {
        /// The first slot of the run.
        first: Slot,
        /// Pages in the run.
        pages: usize,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The device or the file system refused a read.
    #[error("swap file: reading {pages} pages at slot {}: {cause}", first.index())]
    Read {
        /// The first slot of the run.
        first: Slot,
        /// Pages in the run.
        pages: usize,
        /// What the kernel said.
        cause: io::Error,
    },
    /// What was read is not what was written.
    #[error("swap file: the page in slot {} is damaged: its checksum is wrong", slot.index())]
    Checksum {
        /// The first such slot of the run.
        slot: Slot,
    },
    /// The slot holds no page.
    #[error("swap file: slot {} holds no page", slot.index())]
    NotHeld {
        /// The first such slot.
        slot: Slot,
    },
}

/// Why not all pages were written, and which were.
#[derive(Debug, thiserror::Error)]
#[error("{cause}: {refused} pages are not stored")]
pub struct WriteError {
    /// Slots of the pages that were written: the first ones, in order.
    pub written: Vec<Slot>,
    /// How many were not.
    pub refused: usize,
    /// Why the first of those was not.
    pub cause: SwapError,
}
