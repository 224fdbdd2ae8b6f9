//! From files to a guest ready to start: the kernel image ([`kernel`]), the command line ([`cmdline`]), the initrd
//! ([`initrd`]), and what the two boot protocols pass on ([`linux`], [`pvh`]).

pub mod cmdline;
pub mod initrd;
pub mod kernel;
pub mod linux;
pub mod pvh;

use std::io;
use std::path::PathBuf;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("{what} {}: {cause}: --{what} takes a file this user may read", path.display())]
    File {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel image is not one, or is damaged.
    #[error("kernel {}: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Kernel, initrd and RAM do not fit each other.
    #[error("{what} {}: needs {needed}, guest RAM has {available} for it: use a larger --memory", path.display())]
    TooLarge {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What it takes up.
        needed: crate::size::Size,
        /// What there is.
        available: crate::size::Size,
    },
    /// The command line is not one.
    #[error("--cmdline: {0}")]
    CommandLine(String),
    /// Boot structures do not fit into guest RAM.
    #[error("guest RAM: cannot write boot structures: {0}: use a larger --memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The loader cannot place boot parameters.
    #[error("guest RAM: {0}")]
    Configurator(#[from] linux_loader::configurator::Error),
}
