//! Ways to hold more guests than fit: none, ours, and what Linux has.

use std::fmt;
use std::str::FromStr;

use anyhow::Error;
use cistern_tests::baseline::host::ZswapMost;
use cistern_tests::baseline::{Baseline, Compressor, Swap};

use crate::scenario::Plan;

/// See the top of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All guests have the memory that they ask for.
    Unlimited,
    /// A pool with a budget and a swap file.
    Ours,
    /// The kernel's swap.
    Linux(Baseline),
}

impl Way {
    /// Those that are compared: what the others are measured by first, which is all that the short version has but ours.
    pub fn all(plan: &Plan) -> Vec<Self> {
        let linux = [Swap::Zram, Swap::Zswap { max_pool_percent: 20, compressor: Compressor::Lzo }, Swap::File];
        let linux = linux.map(|swap| Self::Linux(Baseline { swap, merges: false }));
        [Self::Unlimited, Self::Ours].into_iter().chain(linux.into_iter().filter(|_| !plan.is_short)).collect()
    }

    /// Which of Linux's, if it is one.
    pub const fn of_linux(self) -> Option<Baseline> {
        match self {
            Self::Linux(baseline) => Some(baseline),
            Self::Unlimited | Self::Ours => None,
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

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => formatter.write_str(UNLIMITED),
            Self::Ours => formatter.write_str(OURS),
            Self::Linux(baseline) => baseline.fmt(formatter),
        }
    }
}

impl FromStr for Way {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            UNLIMITED => Ok(Self::Unlimited),
            OURS => Ok(Self::Ours),
            _ => text.parse().map(Self::Linux),
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
