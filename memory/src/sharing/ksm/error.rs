//! What goes wrong with KSM.

use std::io;
use std::path::PathBuf;

/// Why KSM cannot be read or driven.
#[derive(Debug, thiserror::Error)]
pub enum KsmError {
    /// The kernel has none.
    #[error("{}: is not there: this kernel has no KSM (CONFIG_KSM)", folder.display())]
    Absent {
        /// Where it would be.
        folder: PathBuf,
    },
    /// An operation on a file failed.
    #[error("{}: {action}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was done.
        action: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A file says what no kernel says there.
    #[error("{}: '{text}' is no value of this file", path.display())]
    Odd {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// The kernel lacks a setting that was asked for.
    #[error("{}: is not there: this kernel does not have the setting", path.display())]
    NoSetting {
        /// Where it would be.
        path: PathBuf,
    },
    /// One driver at a time.
    #[error("{}: is locked: another pool drives KSM, so this one leaves it alone", path.display())]
    Taken {
        /// The file that is locked.
        path: PathBuf,
    },
    /// Somebody has switched KSM off for good, and that could not be put back without unmerging what others share.
    #[error("{}: is 2, KSM was told to unmerge everything: write 0 or 1 there if it may be used", path.display())]
    Unmerging {
        /// The file.
        path: PathBuf,
    },
    /// What is merged keeps its nodes.
    #[error("{}: cannot become {asked} while pages are merged ({pages_shared} now): stop who shares them first",
        path.display())]
    Merged {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        asked: u64,
        /// Merged pages of the host.
        pages_shared: u64,
    },
    /// What KSM was set to is not known.
    #[error("{}: is damaged, so what KSM was set to before is not known: set {} as it should be and delete the file",
        path.display(), folder.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// KSM's settings.
        folder: PathBuf,
    },
    /// What KSM was set to was recorded by another version.
    #[error("{}: has format {theirs}, this program's is {ours}: run the version that left it, or set {} as it should be \
        and delete the file", path.display(), folder.display())]
    Format {
        /// The record.
        path: PathBuf,
        /// KSM's settings.
        folder: PathBuf,
        /// The record's format.
        theirs: u32,
        /// This program's.
        ours: u32,
    },
}
