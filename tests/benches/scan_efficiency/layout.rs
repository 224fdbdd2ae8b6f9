//! What the guests hold: the same duplicates, each in other places, between pages of its own.

use cistern_memory::PAGE_SIZE;
use cistern_tests::paged::MIB;

/// How many guests there are, and what each fills.
pub const GUESTS: u64 = 4;
pub const FILL_MIB: u64 = 512;

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

    /// Part of memory that has to be advised.
    pub fn advised_part(self) -> f64 {
        match self {
            Self::Tenth => self.duplicate_mib() as f64 / FILL_MIB as f64,
            Self::Half => 0.5,
            Self::Even => 1.0,
        }
    }

    /// A guest's share of duplicates.
    pub fn duplicate_pages(self) -> u64 {
        self.duplicate_mib() * MIB / PAGE_SIZE
    }

    fn duplicate_mib(self) -> u64 {
        match self {
            Self::Tenth => 25 * 2,
            Self::Half => 31 * 8,
            Self::Even => 500 / 10,
        }
    }

    /// The program of one of the guests, whose memory for fills begins at `fill_base`, and its fills.
    pub fn program(self, guest: u64, fill_base: u64) -> (String, usize) {
        let border = REGION_MIB * MIB - fill_base % (REGION_MIB * MIB);
        let (times, body, body_mib): (u64, &[String], u64) = match self {
            Self::Tenth => (25, &["2M,dup=100".to_owned(), "18M,random=100".to_owned()], 20),
            Self::Half => (31, &["8M,dup=100".to_owned(), "8M,random=100".to_owned()], 16),
            Self::Even => (1, &["500M,dup=10,random=90".to_owned()], 500),
        };
        let body_fills = times as usize * body.len();
        let before = border + guest * SHIFT_MIB * MIB;
        let after = (FILL_MIB - times * body_mib) * MIB - guest * SHIFT_MIB * MIB;
        let fills: Vec<String> = body.iter().map(|fill| format!("fill:{fill},seed={guest}")).collect();
        let pad = |bytes: u64| if bytes > 0 { format!("fill:{bytes},seed={guest};") } else { String::new() };
        let program = format!("{}repeat:{times},({});{}idle:1000000", pad(before), fills.join(";"), pad(after));
        (program, body_fills + usize::from(before > 0) + usize::from(after > 0))
    }
}
