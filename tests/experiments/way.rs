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

    /// As a member or `cistern density` is told of it.
    pub const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Usual => &["--sharing=zero,store,ksm", "--ksm-tune"],
            Self::Packed => {
                &["--sharing=zero,store", "--idle-tax=99", "--watermarks=1.5,1,0.5,0.25", "--sample-period=2s"]
            }
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

    /// Whether guests can be packed under it: what fits without overcommit is known.
    pub fn is_packed(self) -> bool {
        self.is_ours() || self.of_linux().is_some_and(|baseline| baseline.merges || baseline.swap != Swap::Nothing)
    }

    /// Whether a guest's work can be compared under it: any swap, and no KSM.
    pub fn is_worked_under(self) -> bool {
        self == Self::Unlimited || self == Self::OURS || self.of_linux().is_some_and(|way| !way.merges && self.swaps())
    }

    /// Those that a guest's work is compared under: those that are asked for, or what the others are measured by first, which is all
    /// that the short version has but ours.
    pub fn compared(plan: &Plan) -> Vec<Self> {
        let linux = [Swap::Zram, Swap::Zswap { max_pool_percent: 20, compressor: Compressor::Lzo }, Swap::File];
        let linux = linux.into_iter().map(|swap| Self::Linux(Baseline { swap, merges: false }));
        if plan.ways.is_empty() {
            return [Self::Unlimited, Self::OURS].into_iter().chain(linux.filter(|_| !plan.is_short)).collect();
        }
        plan.ways.iter().copied().filter(|way| way.is_worked_under()).collect()
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
