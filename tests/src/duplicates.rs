//! What the guests hold: the same duplicates, each in other places, between pages of its own.

use crate::paged::MIB;
use cistern_memory::PAGE_SIZE;

/// How many guests there are.
pub const GUESTS: u64 = 4;

/// What is filled begins at a region of 2 MiB after this, wherever the probe's own memory ends.
const REGION_MIB: u64 = 2;

/// How much further on each guest has what the one before has.
const SHIFT_MIB: u64 = 4;

/// Where the duplicates are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// A tenth of the regions is nothing else.
    Tenth,
    /// Half of them.
    Half,
    /// A tenth of every region.
    Even,
}

impl Spread {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tenth => "tenth",
            Self::Half => "half",
            Self::Even => "even",
        }
    }

    /// What is asked for, of what ksmd alone saves for its CPU time.
    pub fn goal(self) -> f64 {
        match self {
            Self::Tenth => 4.0,
            Self::Half => 1.4,
            Self::Even => 0.9,
        }
    }

    /// What is repeated: duplicates, then pages of a guest's own; in MiB. Of the last, a tenth of every region is duplicates.
    fn body_mib(self) -> [u64; 2] {
        match self {
            Self::Tenth => [2, 18],
            Self::Half => [8, 8],
            Self::Even => [1, 9],
        }
    }
}

/// What each guest holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where the duplicates are.
    pub spread: Spread,
    /// What it fills: room for some repetitions beside the shifts.
    pub fill_mib: u64,
}

impl Layout {
    /// What is repeated. It grows with the guest, whose program has room for so many fills.
    fn body_mib(self) -> [u64; 2] {
        const REPEATED_IN_MIB: u64 = 512;
        self.spread.body_mib().map(|mib| mib * (self.fill_mib / REPEATED_IN_MIB).max(1))
    }

    fn repetitions(self) -> u64 {
        (self.fill_mib - SHIFT_MIB * (GUESTS - 1)) / self.body_mib().iter().sum::<u64>()
    }

    /// A guest's share of duplicates.
    pub fn duplicate_pages(self) -> u64 {
        self.repetitions() * self.body_mib()[0] * MIB / PAGE_SIZE
    }

    /// Part of memory that has to be advised.
    pub fn advised_part(self) -> f64 {
        match self.spread {
            Spread::Tenth => (self.duplicate_pages() * PAGE_SIZE / MIB) as f64 / self.fill_mib as f64,
            Spread::Half => 0.5,
            Spread::Even => 1.0,
        }
    }

    /// The program of one of the guests, whose memory for fills begins at `fill_base`, and its fills.
    pub fn program(self, guest: u64, fill_base: u64) -> (String, usize) {
        let border = REGION_MIB * MIB - fill_base % (REGION_MIB * MIB);
        let [duplicates_mib, own_mib] = self.body_mib();
        let filled_mib = self.repetitions() * (duplicates_mib + own_mib);
        let (times, body) = match self.spread {
            Spread::Even => (1, vec![format!("{filled_mib}M,dup=10,random=90")]),
            _ => (self.repetitions(), vec![format!("{duplicates_mib}M,dup=100"), format!("{own_mib}M,random=100")]),
        };
        let body_fills = times as usize * body.len();
        let before = border + guest * SHIFT_MIB * MIB;
        let after = (self.fill_mib - filled_mib) * MIB - guest * SHIFT_MIB * MIB;
        let fills: Vec<String> = body.iter().map(|fill| format!("fill:{fill},seed={guest}")).collect();
        let pad = |bytes: u64| if bytes > 0 { format!("fill:{bytes},seed={guest};") } else { String::new() };
        let program = format!("{}repeat:{times},({});{}idle:1000000", pad(before), fills.join(";"), pad(after));
        (program, body_fills + usize::from(before > 0) + usize::from(after > 0))
    }
}
