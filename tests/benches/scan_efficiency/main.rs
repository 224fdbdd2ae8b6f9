//! What finding duplicates by fingerprints gains over ksmd alone, and that scanning keeps to its budget.
//!
//! usage: `cargo bench -p cistern-tests --bench scan_efficiency [-- --quick] [PART ...]`; parts are tenth, half, even (where
//! the duplicates are), churn and budget.

mod budget;
mod churn;

use cistern_tests::cpu_time;
use cistern_tests::duplicates::{Layout, Spread};
use cistern_tests::ksm::Ksm;
use cistern_tests::merge_race::{self, PACES, Plan};
use cistern_tests::process::binary;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let parts: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| *name == part);
    println!("load: {}", cpu_time::load());
    if is_wanted("budget") {
        budget::run();
    }
    let spreads = [Spread::Tenth, Spread::Half, Spread::Even].into_iter().filter(|spread| is_wanted(spread.name()));
    let (spreads, has_churn) = (spreads.collect::<Vec<_>>(), is_wanted("churn"));
    if spreads.is_empty() && !has_churn {
        return;
    }
    // Built before others have to wait.
    binary();
    let _ksm = Ksm::hold();
    let paces = if is_quick { &PACES[1..2] } else { &PACES[..] };
    for spread in spreads {
        merge_race::run(&Plan {
            layout: Layout { spread, fill_mib: 512 },
            paces,
            scan_cpu_percent: 1,
            watches_rest: true,
        });
    }
    if has_churn {
        churn::run();
    }
}
