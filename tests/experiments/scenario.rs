//! The scenarios there are.

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use cistern_tests::baseline::reach::Reach;
use cistern_tests::paged::folder_on_disk;
use cistern_tests::process::is_root;

use crate::report::Report;
use crate::way::Way;
use crate::{
    active_tracking, balloon_fidelity, compression_vs_swap, file_io, idle_linux, idle_tax, many_small, memcached,
    network, packing, proactive, scan_efficiency, shares, tps_scaling, two_tanks, watermarks,
};

/// How a scenario is run.
pub struct Plan {
    /// In seconds: less memory, fewer steps, less time for each.
    pub is_short: bool,
    /// How many times as much memory as it has by itself.
    pub scale: u64,
    /// The ways that are compared; empty: as a scenario has them.
    pub ways: Vec<Way>,
    /// The names of the mixes of guests they are compared with; empty: all.
    pub mixes: Vec<String>,
    /// So many guests are packed under each way, instead of as many as keep their goodput.
    pub guests: Option<u64>,
    /// Where drawings go.
    pub out: PathBuf,
    reach: OnceLock<Reach>,
}

impl Plan {
    /// Everything, as it is by itself.
    pub fn new(is_short: bool, out: PathBuf) -> Self {
        let (ways, mixes) = (Vec::new(), Vec::new());
        Self { is_short, scale: 1, ways, mixes, guests: None, out, reach: OnceLock::new() }
    }

    /// Whether a cgroup's limit reaches guests on this host: tried once, and not at all by those who do not ask.
    ///
    /// # Panics
    /// A guest's pages were not what they had been, or the host could not be put back.
    pub fn reach(&self) -> &Reach {
        self.reach.get_or_init(|| match is_root() {
            true => Reach::find(folder_on_disk().path()).unwrap_or_else(|error| panic!("a cgroup's limit: {error:#}")),
            false => Reach::Nothing("only root may limit them".to_owned()),
        })
    }

    /// Of these ways, those that are wanted.
    pub fn wanted(&self, ways: Vec<Way>) -> Vec<Way> {
        ways.into_iter().filter(|way| self.ways.is_empty() || self.ways.contains(way)).collect()
    }

    /// A size as flags and programs spell it.
    pub fn size(&self, mib: u64) -> String {
        format!("{}M", mib * self.scale)
    }
}

/// A flag that not every scenario has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// How many times as much memory.
    Scale,
    /// Which ways.
    Ways,
    /// Which mixes.
    Mixes,
    /// How many guests.
    Guests,
}

impl fmt::Display for Flag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Scale => "--scale",
            Self::Ways => "--ways",
            Self::Mixes => "--mixes",
            Self::Guests => "--guests",
        })
    }
}

/// An experiment.
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// The part, and the paper it is from.
    pub paper: (&'static str, &'static str),
    /// What it has a use for, besides ways.
    takes: &'static [Flag],
    /// Which ways it measures, where it has a use for them.
    measures: Option<fn(Way) -> bool>,
    /// It sets up what is the whole host's: swap, KSM, a network.
    pub needs_root: bool,
    /// Runs it.
    pub run: fn(&Plan) -> Report,
}

impl Scenario {
    /// Whether a flag changes what it does.
    pub fn has_use_for(&self, flag: Flag) -> bool {
        match flag {
            Flag::Ways => self.measures.is_some(),
            Flag::Scale | Flag::Mixes | Flag::Guests => self.takes.contains(&flag),
        }
    }

    /// Whether it can be run under a way.
    pub fn can_measure(&self, way: Way) -> bool {
        self.measures.is_some_and(|measures| measures(way))
    }
}

/// Where most of them are from.
const ESX: &str = "Waldspurger, Memory Resource Management in VMware ESX Server, OSDI 2002";

/// What most take.
const SCALED: &[Flag] = &[Flag::Scale];

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "two-tanks",
        paper: ("the classic story, with the levels, balloon and tax of", ESX),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: two_tanks::run,
    },
    Scenario {
        name: "idle-tax",
        paper: ("figure 7:", ESX),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: idle_tax::run,
    },
    Scenario {
        name: "shares",
        paper: ("the rule of shares-per-page:", ESX),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: shares::run,
    },
    Scenario {
        name: "watermarks",
        paper: ("the levels of free memory:", ESX),
        takes: &[],
        measures: None,
        needs_root: false,
        run: watermarks::run,
    },
    Scenario {
        name: "compression-vs-swap",
        paper: ("the compression cache of", "VMware, Understanding Memory Resource Management in VMware ESX 4.1, 2010"),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: compression_vs_swap::run,
    },
    Scenario {
        name: "tps-scaling",
        paper: ("figure 4:", ESX),
        takes: SCALED,
        measures: None,
        needs_root: true,
        run: tps_scaling::run,
    },
    Scenario {
        name: "active-tracking",
        paper: ("figure 6:", ESX),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: active_tracking::run,
    },
    Scenario {
        name: "balloon-fidelity",
        paper: ("figure 5:", ESX),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: balloon_fidelity::run,
    },
    Scenario {
        name: "proactive",
        paper: ("cold memory:", "Lagar-Cavilla, Software-Defined Far Memory, ASPLOS 2019; Weiner, TMO, ASPLOS 2022"),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: proactive::run,
    },
    Scenario {
        name: "scan-efficiency",
        paper: ("memory saved for CPU time:", "Xia, UKSM: Swift Memory Deduplication, FAST 2018"),
        takes: SCALED,
        measures: None,
        needs_root: true,
        run: scan_efficiency::run,
    },
    Scenario {
        name: "idle-linux",
        paper: ("what an idle guest costs:", "the specification of Firecracker, and what it leaves out"),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: idle_linux::run,
    },
    Scenario {
        name: "many-small",
        paper: ("small guests that fill what they have, at once", "in the memory of a small host"),
        takes: SCALED,
        measures: None,
        needs_root: false,
        run: many_small::run,
    },
    Scenario {
        name: "packing",
        paper: ("guests that a budget holds, beside", "zram, zswap, swap files and KSM at ksmtuned's settings"),
        takes: &[Flag::Scale, Flag::Guests],
        measures: Some(Way::is_packed),
        needs_root: true,
        run: packing::run,
    },
    Scenario {
        name: "packing-mixes",
        paper: ("the same for other guests, beside", "what Linux hosts use most"),
        takes: &[Flag::Scale, Flag::Mixes, Flag::Guests],
        measures: Some(Way::is_packed),
        needs_root: true,
        run: packing::run_mixes,
    },
    Scenario {
        name: "memcached",
        paper: (
            "a cache in a Linux guest where memory is short:",
            "gets and sets a second, beside zram, zswap and swap files",
        ),
        takes: SCALED,
        measures: Some(Way::is_worked_under),
        needs_root: true,
        run: memcached::run,
    },
    Scenario {
        name: "network",
        paper: ("TCP of a Linux guest where memory is short:", "throughput and answers, beside the same"),
        takes: SCALED,
        measures: Some(Way::is_worked_under),
        needs_root: true,
        run: network::run,
    },
    Scenario {
        name: "file-io",
        paper: ("the disk of a Linux guest that is nearly full", "where memory is short, beside the same"),
        takes: SCALED,
        measures: Some(Way::is_worked_under),
        needs_root: false,
        run: file_io::run,
    },
];
