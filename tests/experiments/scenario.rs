//! The scenarios there are.

use std::path::PathBuf;
use std::sync::OnceLock;

use cistern_tests::baseline::reach::Reach;
use cistern_tests::paged::folder_on_disk;

use crate::report::Report;
use crate::{
    active_tracking, balloon_fidelity, compression_vs_swap, file_io, idle_linux, idle_tax, memcached, network, packing,
    proactive, scan_efficiency, shares, tps_scaling, two_tanks, watermarks,
};

/// How a scenario is run.
pub struct Plan {
    /// In seconds: less memory, fewer steps, less time for each.
    pub is_short: bool,
    /// How many times as much memory as it has by itself.
    pub scale: u64,
    /// The ways that are compared.
    pub ways: Selection,
    /// The mixes of guests they are compared with.
    pub mixes: Selection,
    /// So many guests are packed under each way, instead of as many as keep their goodput.
    pub guests: Option<u64>,
    /// Where drawings go.
    pub out: PathBuf,
    reach: OnceLock<Reach>,
}

impl Plan {
    /// Everything, as it is by itself.
    pub fn new(is_short: bool, out: PathBuf) -> Self {
        let everything = || Selection::of(Vec::new());
        let (ways, mixes) = (everything(), everything());
        Self { is_short, scale: 1, ways, mixes, guests: None, out, reach: OnceLock::new() }
    }

    /// Whether a cgroup's limit reaches guests on this host: tried once, and not at all by those who do not ask.
    pub fn reach(&self) -> &Reach {
        let find = || Reach::find(folder_on_disk().path());
        self.reach.get_or_init(|| find().unwrap_or_else(|error| Reach::Nothing(format!("{error:#}"))))
    }

    /// Whether as many guests as keep their goodput are looked for, where guests are packed.
    pub const fn looks_for_most(&self) -> bool {
        !self.is_short && self.guests.is_none()
    }

    /// A size as flags and programs spell it.
    pub fn size(&self, mib: u64) -> String {
        format!("{}M", mib * self.scale)
    }
}

/// What is wanted of things that have names, where all of it takes too long; empty: everything.
pub struct Selection(Vec<String>);

impl Selection {
    /// These.
    pub const fn of(names: Vec<String>) -> Self {
        Self(names)
    }

    /// Whether nothing was left out.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is wanted.
    pub fn has(&self, name: &str) -> bool {
        self.is_everything() || self.0.iter().any(|wanted| wanted == name)
    }

    /// Those that are wanted and not there.
    pub fn unknown<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a String> {
        self.0.iter().filter(|name| !names.contains(name))
    }
}

/// An experiment.
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// The part, and the paper it is from.
    pub paper: (&'static str, &'static str),
    /// Runs it.
    pub run: fn(&Plan) -> Report,
}

/// Where most of them are from.
const ESX: &str = "Waldspurger, Memory Resource Management in VMware ESX Server, OSDI 2002";

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "two-tanks",
        paper: ("the classic story, with the levels, balloon and tax of", ESX),
        run: two_tanks::run,
    },
    Scenario { name: "idle-tax", paper: ("figure 7:", ESX), run: idle_tax::run },
    Scenario { name: "shares", paper: ("the rule of shares-per-page:", ESX), run: shares::run },
    Scenario { name: "watermarks", paper: ("the levels of free memory:", ESX), run: watermarks::run },
    Scenario {
        name: "compression-vs-swap",
        paper: ("the compression cache of", "VMware, Understanding Memory Resource Management in VMware ESX 4.1, 2010"),
        run: compression_vs_swap::run,
    },
    Scenario { name: "tps-scaling", paper: ("figure 4:", ESX), run: tps_scaling::run },
    Scenario { name: "active-tracking", paper: ("figure 6:", ESX), run: active_tracking::run },
    Scenario { name: "balloon-fidelity", paper: ("figure 5:", ESX), run: balloon_fidelity::run },
    Scenario {
        name: "proactive",
        paper: ("cold memory:", "Lagar-Cavilla, Software-Defined Far Memory, ASPLOS 2019; Weiner, TMO, ASPLOS 2022"),
        run: proactive::run,
    },
    Scenario {
        name: "scan-efficiency",
        paper: ("memory saved for CPU time:", "Xia, UKSM: Swift Memory Deduplication, FAST 2018"),
        run: scan_efficiency::run,
    },
    Scenario {
        name: "idle-linux",
        paper: ("what an idle guest costs:", "the specification of Firecracker, and what it leaves out"),
        run: idle_linux::run,
    },
    Scenario {
        name: "packing",
        paper: ("guests that a budget holds, beside", "zram, zswap, swap files and KSM at ksmtuned's settings"),
        run: packing::run,
    },
    Scenario {
        name: "packing-mixes",
        paper: ("the same for other guests, beside", "what Linux hosts use most"),
        run: packing::run_mixes,
    },
    Scenario {
        name: "memcached",
        paper: (
            "a cache in a Linux guest where memory is short:",
            "gets and sets a second, beside zram, zswap and swap files",
        ),
        run: memcached::run,
    },
    Scenario {
        name: "network",
        paper: ("TCP of a Linux guest where memory is short:", "throughput and answers, beside the same"),
        run: network::run,
    },
    Scenario {
        name: "file-io",
        paper: ("the disk of a Linux guest that is nearly full", "where memory is short, beside the same"),
        run: file_io::run,
    },
];
