//! Ways to hold more guests than fit: none, ours, and what Linux has.

use std::fmt;

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
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => formatter.write_str("no overcommit"),
            Self::Ours => formatter.write_str("ours"),
            Self::Linux(baseline) => baseline.fmt(formatter),
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
