//! What people overcommit a host's memory with today: Linux's swap, in front of it zram or zswap, beside it KSM.
//!
//! Two more are known and absent, because neither is in Linux: UKSM is a patch that follows the kernel at a distance, and zcache
//! was taken out of Linux 3.11 in favour of zswap.

mod advice;
pub mod cgroup;
pub mod host;
pub(crate) mod keeper;
pub mod ksmtuned;
mod limit;
pub mod reach;
pub mod reclaimer;
mod shell;
mod threshold;
mod throttle;

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, bail};

/// How zram and zswap compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressor {
    /// LZO-RLE where there is one, which is what the kernel calls lzo today.
    Lzo,
    /// LZ4.
    Lz4,
}

impl Compressor {
    /// Its name in sysfs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
        }
    }
}

/// Where pages go that do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Nowhere: no overcommit.
    Nothing,
    /// A compressed disk in memory.
    Zram,
    /// A compressed cache in memory in front of a file.
    Zswap {
        /// The most of the memory that the cache may take.
        max_pool_percent: u8,
        /// How it compresses.
        compressor: Compressor,
    },
    /// A file on the disk as found.
    File,
    /// A file on a disk that does [`SLOW_OPERATIONS_PER_SECOND`].
    SlowFile,
}

/// Reads and writes a second of a slow disk, each.
pub const SLOW_OPERATIONS_PER_SECOND: u32 = 100;

/// A way to overcommit with what Linux has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Baseline {
    /// Where pages go that do not fit.
    pub swap: Swap,
    /// All RAM of all guests is offered to KSM, which runs at ksmtuned's settings.
    pub merges: bool,
}

impl Baseline {
    /// All of them, in the order in which they are reported.
    pub fn grid() -> Vec<Self> {
        let zswap = |max_pool_percent, compressor| Swap::Zswap { max_pool_percent, compressor };
        let swaps = [
            Swap::Nothing,
            Swap::Zram,
            zswap(20, Compressor::Lzo),
            zswap(20, Compressor::Lz4),
            zswap(50, Compressor::Lzo),
            zswap(50, Compressor::Lz4),
            Swap::File,
            Swap::SlowFile,
        ];
        swaps.into_iter().flat_map(|swap| [false, true].map(|merges| Self { swap, merges })).collect()
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.swap {
            Swap::Nothing => formatter.write_str("none")?,
            Swap::Zram => formatter.write_str("zram")?,
            Swap::Zswap { max_pool_percent, compressor } => {
                write!(formatter, "zswap-{max_pool_percent}-{}", compressor.name())?;
            }
            Swap::File => formatter.write_str("file")?,
            Swap::SlowFile => formatter.write_str("slow-file")?,
        }
        formatter.write_str(if self.merges { "+ksm" } else { "" })
    }
}

impl FromStr for Baseline {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Self::grid();
        let Some(baseline) = known.iter().find(|baseline| baseline.to_string() == name) else {
            let names: Vec<_> = known.iter().map(ToString::to_string).collect();
            bail!("{name}: no such baseline; there are {}", names.join(", "));
        };
        Ok(*baseline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_baseline_has_a_name_of_its_own() {
        let grid = Baseline::grid();
        assert_eq!(grid.len(), 16);
        for baseline in &grid {
            assert_eq!(baseline.to_string().parse::<Baseline>().expect("its own name"), *baseline);
        }
        assert_eq!(grid[5].to_string(), "zswap-20-lzo+ksm");
        let error = "zcache".parse::<Baseline>().expect_err("it is not in Linux");
        assert!(error.to_string().starts_with("zcache: no such baseline; there are none, none+ksm, zram"), "{error}");
    }
}
