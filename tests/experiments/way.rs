//! Ways to hold more guests than fit: none, ours, and what Linux has.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, anyhow};
use cistern_tests::baseline::host::ZswapMost;
use cistern_tests::baseline::{Baseline, Compressor, Swap};

use crate::scenario::Plan;

/// See the top of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All guests have the memory that they ask for.
    Unlimited,
    /// A pool with a budget and a swap file.
    Ours(Setting),
    /// The kernel's swap.
    Linux(Baseline),
}

/// How a pool of ours is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// As it comes.
    Usual,
    /// For many guests most of which idle: idle memory costs a hundred times as much instead of four, a quarter as much is
    /// kept free, who idles is known in less than half the time, and no CPU time goes into looking for equal pages.
    Packed,
}

impl Setting {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Usual, Self::Packed];

    /// As `cistern density` is told of it.
    pub const fn flags(self) -> &'static str {
        match self {
            Self::Usual => "--sharing=zero,store,ksm --ksm-tune",
            Self::Packed => "--sharing=zero,store --idle-tax=99 --watermarks=1.5,1,0.5,0.25 --sample-period=2s",
        }
    }
}

impl Way {
    /// Ours as it comes.
    pub const OURS: Self = Self::Ours(Setting::Usual);

    /// Whether it is ours.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// Those that a guest's work is compared under: what the others are measured by first, which is all that the short version has
    /// but ours. Any swap of Linux's where it is asked for.
    ///
    /// # Errors
    /// One is asked for that is none of them.
    pub fn compared(plan: &Plan) -> Result<Vec<Self>, String> {
        let linux = [Swap::Zram, Swap::Zswap { max_pool_percent: 20, compressor: Compressor::Lzo }, Swap::File];
        let linux: Vec<Swap> = match (plan.ways.is_empty(), plan.is_short) {
            (true, true) => Vec::new(),
            (true, false) => linux.into(),
            (false, _) => Baseline::grid().into_iter().filter(|way| !way.merges).map(|way| way.swap).collect(),
        };
        let linux = linux.into_iter().filter(|swap| *swap != Swap::Nothing);
        let linux = linux.map(|swap| Self::Linux(Baseline { swap, merges: false }));
        plan.wanted([Self::Unlimited, Self::OURS].into_iter().chain(linux).collect())
    }

    /// Which of Linux's, if it is one.
    pub const fn of_linux(self) -> Option<Baseline> {
        match self {
            Self::Linux(baseline) => Some(baseline),
            Self::Unlimited | Self::Ours(_) => None,
        }
    }

    /// The most that its zswap may take; `None` where it has none.
    pub fn zswap_most(self, budget_bytes: u64) -> Option<ZswapMost> {
        let Swap::Zswap { max_pool_percent, .. } = self.of_linux()?.swap else { return None };
        ZswapMost::of(max_pool_percent, budget_bytes).ok()
    }

    /// Whether they differ in a part of zswap's alone that comes to the same.
    pub fn is_set_up_as(self, other: Self, budget_bytes: u64) -> bool {
        let (Some(this), Some(that)) = (self.of_linux(), other.of_linux()) else { return self == other };
        let (Swap::Zswap { compressor, .. }, Swap::Zswap { compressor: others, .. }) = (this.swap, that.swap) else {
            return self == other;
        };
        (this.merges, compressor) == (that.merges, others)
            && self.zswap_most(budget_bytes) == other.zswap_most(budget_bytes)
    }

    /// Whether the kernel swaps.
    pub fn swaps(self) -> bool {
        self.of_linux().is_some_and(|baseline| baseline.swap != Swap::Nothing)
    }
}

const UNLIMITED: &str = "no overcommit";
const OURS: &str = "ours";
const OURS_PACKED: &str = "ours-packed";

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => formatter.write_str(UNLIMITED),
            Self::Ours(Setting::Usual) => formatter.write_str(OURS),
            Self::Ours(Setting::Packed) => formatter.write_str(OURS_PACKED),
            Self::Linux(baseline) => baseline.fmt(formatter),
        }
    }
}

impl FromStr for Way {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            UNLIMITED => Ok(Self::Unlimited),
            OURS => Ok(Self::OURS),
            OURS_PACKED => Ok(Self::Ours(Setting::Packed)),
            _ => text
                .parse()
                .map(Self::Linux)
                .map_err(|error| anyhow!("{error}, beside {UNLIMITED}, {OURS} and {OURS_PACKED}")),
        }
    }
}

/// In front of what the host lacks for a way.
#[derive(Debug)]
pub struct NotHere;

impl fmt::Display for NotHere {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("not here")
    }
}
