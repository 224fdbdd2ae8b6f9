//! Ways to hold more guests than fit: none, ours, and what Linux has.

use std::fmt;
use std::str::FromStr;

use anyhow::Error;
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
