//! How a pager is set up.

use std::path::PathBuf;
use std::time::Duration;

use crate::store::codec::{Codec, DEFAULT_LIMIT_BYTES};

/// How pages leave guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionMethod {
    /// By `UFFDIO_MOVE` (Linux 6.8): atomic, without a copy.
    Move,
    /// Write-protected, copied, dropped: for kernels without MOVE.
    Copy,
}

impl EvictionMethod {
    /// Its name in statistics and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::Copy => "copy",
        }
    }
}

/// Everything a pager may be told.
#[derive(Debug, Clone)]
pub struct PagerConfig {
    /// The folder of the swap file; `None`: pages that do not compress stay where they are.
    pub swap_folder: Option<PathBuf>,
    /// The most bytes the swap file may have.
    pub swap_limit_bytes: u64,
    /// The most memory the compressed store may hold.
    pub store_limit_bytes: u64,
    /// How pages are compressed.
    pub codec: Codec,
    /// Pages that need more than this compressed are not kept in the compressed store.
    pub compressed_limit_bytes: usize,
    /// Compressed pages that nobody touched for this long go to the swap file, if there is one.
    pub cold_after: Duration,
    /// CPU time that eviction may use, in percent of one CPU.
    pub reclaim_cpu_percent: u32,
    /// `None`: MOVE where the kernel has it.
    pub eviction: Option<EvictionMethod>,
}

impl Default for PagerConfig {
    fn default() -> Self {
        Self {
            swap_folder: None,
            swap_limit_bytes: u64::MAX,
            store_limit_bytes: u64::MAX,
            codec: Codec::Lz4,
            compressed_limit_bytes: DEFAULT_LIMIT_BYTES,
            // Google's threshold for cold memory: a third of all of it (ASPLOS 2019).
            cold_after: Duration::from_secs(120),
            reclaim_cpu_percent: 100,
            eviction: None,
        }
    }
}
