//! What finding duplicates by fingerprints gains over ksmd alone, and that scanning keeps to its budget.
//!
//! usage: `cargo bench -p cistern-tests --bench scan_efficiency [-- --quick] [PART ...]`; parts are tenth, half, even (where
//! the duplicates are), churn and budget.

mod budget;
mod churn;
mod cpu;
mod ksmd;
mod layout;
mod race;

use cistern_tests::ksm::Ksm;
use cistern_tests::process::binary;

use layout::Spread;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let parts: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| *name == part);
    println!("load: {}", cpu::load());
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
    spreads.into_iter().for_each(|spread| race::run(spread, is_quick));
    if has_churn {
        churn::run();
    }
}
