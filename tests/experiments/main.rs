//! Experiments of the literature as named scenarios, each of which prints the published figures beside ours.
//!
//! usage: `cargo run --profile checked -p cistern-tests --bin experiments -- [NAME] [--short] [--scale N] [--ways NAMES] [--mixes NAMES]
//! [--guests N] [--out DIR]`;
//! without a name, what there is; `all` are all of them. Exit status: 0 what must hold holds, 1 it does not, 2 usage, or it takes root.

mod active_tracking;
mod balloon_fidelity;
mod compression_vs_swap;
mod confines;
mod density;
mod file_io;
mod idle_linux;
mod idle_tax;
mod many_small;
mod memcached;
mod mix;
mod network;
mod observer;
mod packing;
mod proactive;
mod report;
mod scan_efficiency;
mod scenario;
mod shares;
mod stage;
mod tps_scaling;
mod two_tanks;
mod verdict;
mod walks;
mod watermarks;
mod way;
mod workload;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;

use cistern_memory::ledger::MAXIMUM_MEMBERS;
use cistern_tests::cpu_time::load;
use cistern_tests::process::{is_root, target_folder};
use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::scenario::{Flag, Plan, SCENARIOS, Scenario};
use crate::way::Way;

/// As many as a pool has room for.
const MOST_GUESTS: u64 = MAXIMUM_MEMBERS as u64;

/// In place of a name: one after the other.
const ALL: &str = "all";

/// The published experiments, side by side with ours.
#[derive(Parser)]
struct Arguments {
    /// Which one, or `all`; without it, a list.
    name: Option<String>,
    /// Seconds instead of minutes: what is asserted is the same.
    #[arg(long)]
    short: bool,
    /// How many times as much memory guests and budgets have.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    scale: u64,
    /// Of packing, packing-mixes and what Linux guests do only these ways, as reports name them, separated by commas: all take hours.
    #[arg(long, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Of packing-mixes only these mixes.
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(mix::OTHERS.iter().map(|mix| mix.name)))]
    mixes: Vec<String>,
    /// Of packing and packing-mixes so many guests under each way, instead of as many as keep their goodput: minutes a way.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MOST_GUESTS))]
    guests: Option<u64>,
    /// Where drawings go; cargo's target folder unless you say otherwise.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(name) = &arguments.name else {
        SCENARIOS.iter().for_each(|scenario| println!("{:<20} {}", scenario.name, source(scenario)));
        return ExitCode::SUCCESS;
    };
    let wanted: Vec<_> = SCENARIOS.iter().filter(|scenario| name == ALL || scenario.name == name).collect();
    if let Some(reason) = refusal(&arguments, name, &wanted) {
        eprintln!("experiments: {reason}");
        return ExitCode::from(2);
    }
    let out = arguments.out.unwrap_or_else(target_folder);
    if let Err(error) = fs::create_dir_all(&out) {
        eprintln!("experiments: {}: {error}", out.display());
        return ExitCode::from(2);
    }
    let mut plan = Plan::new(arguments.short, out);
    (plan.scale, plan.guests) = (arguments.scale, arguments.guests);
    (plan.ways, plan.mixes) = (arguments.ways, arguments.mixes);
    let mut holds = true;
    for scenario in wanted {
        println!("{}: {}\nload: {}", scenario.name, source(scenario), load());
        // Whoever waits in vain for something panics, which has said what: the others are told all the same.
        holds &= match panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(&plan))) {
            Ok(report) => {
                print!("{report}");
                report.holds()
            }
            Err(_) => {
                println!("  FAILS: {} came to no end", scenario.name);
                false
            }
        };
        println!("load: {}", load());
    }
    ExitCode::from(u8::from(!holds))
}

/// Why these are not to be run so, if they are not.
fn refusal(arguments: &Arguments, name: &str, wanted: &[&Scenario]) -> Option<String> {
    if wanted.is_empty() {
        return Some(format!("{name} is none of them; without a name, what there is"));
    }
    let given = [
        (Flag::Scale, arguments.scale != 1),
        (Flag::Ways, !arguments.ways.is_empty()),
        (Flag::Mixes, !arguments.mixes.is_empty()),
        (Flag::Guests, arguments.guests.is_some()),
    ];
    let is_useless = |flag: &Flag| wanted.iter().all(|scenario| !scenario.has_use_for(*flag));
    if let Some((flag, _)) = given.into_iter().find(|(flag, is_given)| *is_given && is_useless(flag)) {
        return Some(format!("{name} has no use for {flag}"));
    }
    let is_measured = |way: &Way| wanted.iter().any(|scenario| scenario.can_measure(*way));
    if let Some(way) = arguments.ways.iter().find(|way| !is_measured(way)) {
        return Some(format!("{name} does not measure {way}"));
    }
    let of_root: Vec<_> = wanted.iter().filter(|scenario| scenario.needs_root).map(|scenario| scenario.name).collect();
    (!of_root.is_empty() && !is_root()).then(|| {
        let names = of_root.join(", ");
        format!("{names}: swap, KSM and networks are the whole host's, and only root may set them up: run it as root, please")
    })
}

/// Where it is from, in a line.
fn source(scenario: &Scenario) -> String {
    let (part, paper) = scenario.paper;
    format!("{part} {paper}")
}
