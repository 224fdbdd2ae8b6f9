//! Experiments of the literature as named scenarios, each of which prints the published figures beside ours.
//!
//! usage: `cargo run --profile checked -p cistern-tests --bin experiments -- [NAME] [--short] [--scale N] [--ways NAMES] [--mixes NAMES]
//! [--guests N] [--out DIR]`;
//! without a name, what there is; `all` are all of them. Exit status: 0 what must hold holds, 1 it does not, 2 usage.

mod active_tracking;
mod balloon_fidelity;
mod compression_vs_swap;
mod confines;
mod file_io;
mod idle_linux;
mod idle_tax;
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
use cistern_tests::process::target_folder;
use clap::Parser;

use crate::scenario::{Plan, SCENARIOS, Scenario, Selection};

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
    /// Of packing and packing-mixes only these ways, as reports name them, separated by commas: all of them take hours.
    #[arg(long, value_delimiter = ',')]
    ways: Vec<String>,
    /// Of packing-mixes only these mixes.
    #[arg(long, value_delimiter = ',')]
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
    let Some(name) = arguments.name else {
        SCENARIOS.iter().for_each(|scenario| println!("{:<20} {}", scenario.name, source(scenario)));
        return ExitCode::SUCCESS;
    };
    let wanted: Vec<_> = SCENARIOS.iter().filter(|scenario| name == ALL || scenario.name == name).collect();
    if wanted.is_empty() {
        eprintln!("experiments: {name} is none of them; without a name, what there is");
        return ExitCode::from(2);
    }
    let out = arguments.out.unwrap_or_else(target_folder);
    if let Err(error) = fs::create_dir_all(&out) {
        eprintln!("experiments: {}: {error}", out.display());
        return ExitCode::from(2);
    }
    let mut plan = Plan::new(arguments.short, out);
    (plan.scale, plan.guests) = (arguments.scale, arguments.guests);
    (plan.ways, plan.mixes) = (Selection::of(arguments.ways), Selection::of(arguments.mixes));
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

/// Where it is from, in a line.
fn source(scenario: &Scenario) -> String {
    let (part, paper) = scenario.paper;
    format!("{part} {paper}")
}
