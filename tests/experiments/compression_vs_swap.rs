//! One guest that walks through more than it may hold; what does not fit is compressed in memory, or goes to a file.

use cistern_tests::chart::Chart;
use cistern_tests::cycles::HOMES;
use cistern_tests::paged::{MIB, PagedVm, counter};
use serde_json::Value;

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;
use crate::walks::{Rates, working};

/// How what does not fit is held.
const WAYS: [(&str, &str, &str); 3] =
    [("lz4", "lz4", "compressed"), ("zstd", "zstd", "compressed"), ("swap file", "none", "swapped")];

/// What VMware says of its compression cache ("Understanding Memory Resource Management in VMware ESX 4.1", 2010), and what
/// zram was measured to take.
const VMWARE_FASTER: &str = "an order of magnitude (ESX 4.1)";
const ZRAM: [&str; 2] = ["1.7 us and the fault (zram)", "5.7 us and the fault (zram)"];

/// What came of one way.
struct Outcome {
    rates: Rates,
    memory: Value,
    home: &'static str,
}

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "the guest's pages are text that lz4 halves; the limit counts compressed pages, so with them more pages are away; \
         the file is on a virtual disk with a cache behind it, where ESX had spindles",
    );
    let outcomes = WAYS.map(|way| walk(plan, way, &mut report));
    let mut chart = Chart::over("Touches a second, walk by walk", "walks");
    for ((name, ..), outcome) in WAYS.iter().zip(&outcomes) {
        chart.line(name, outcome.rates.all.iter().enumerate().map(|(walk, &rate)| (walk as f64, rate)).collect());
    }
    report.drawn(chart.write_to(&plan.out, "compression-vs-swap.svg"));
    let [lz4, zstd, file] = &outcomes;
    let p50_us = |outcome: &Outcome| latency_us(outcome, "p50_ns");
    report.row(
        "a fault's median, swap file/lz4",
        VMWARE_FASTER,
        format!("{:.1} times as long", p50_us(file) / p50_us(lz4)),
    );
    report.row(
        "touches a second, lz4/swap file",
        NOT_PUBLISHED,
        format!("{:.2} times as many", lz4.rates.median / file.rates.median),
    );
    report.claim(
        "zstd holds them in less memory than lz4",
        bytes_a_page(zstd) < bytes_a_page(lz4),
        format!("{:.0} and {:.0} bytes a page", bytes_a_page(zstd), bytes_a_page(lz4)),
    );
    report
}

fn walk(plan: &Plan, (name, codec, home): (&'static str, &str, &'static str), report: &mut Report) -> Outcome {
    // Half as much again as it may hold.
    let (size_mib, walks) = if plan.is_short { (64, 4) } else { (256, 40) };
    let (size, fill, limit) = (plan.size(size_mib * 5 / 4), plan.size(size_mib), plan.size(size_mib * 2 / 3));
    let program = format!("fill:{fill},text=100;{}", working(&format!("walk:{fill},secs=0.5,write=30")));
    let mut arguments =
        vec!["--memory", &size, "--cpus", "1", "--resident", &limit, "--codec", codec, "--sharing", "off"];
    if home == "swapped" {
        arguments.extend(["--swap", "SWAP"]);
    }
    let mut vm = PagedVm::start(&program, &arguments);
    vm.running.wait_for_phase("fill");
    let rates = Rates::of(&mut vm.running, walks);
    let memory = vm.memory();
    vm.tell();
    vm.wait_for_verifies(1);
    vm.stop();
    let outcome = Outcome { rates, memory, home };
    let published = match codec {
        "lz4" => ZRAM[0],
        "zstd" => ZRAM[1],
        _ => NOT_PUBLISHED,
    };
    report.row(
        format!("{name}: a fault's median, 99th percentile"),
        published,
        format!("{:.0}, {:.0} us", latency_us(&outcome, "p50_ns"), latency_us(&outcome, "p99_ns")),
    );
    report.row(
        format!("{name}: touches a second; away, in memory, MiB"),
        NOT_PUBLISHED,
        format!("{:.0}; {}, {}", outcome.rates.median, away_bytes(&outcome) / MIB, held_bytes(&outcome) / MIB),
    );
    let pages = |of: &str| counter(&outcome.memory, &format!("refaults.{of}.pages"));
    let others: u64 = HOMES.iter().filter(|&&other| other != home).map(|other| pages(other)).sum();
    report.claim(
        format!("{name}: what comes back was {home}"),
        pages(home) > 0 && others * 20 <= pages(home),
        format!("{} pages, {others} others", pages(home)),
    );
    outcome
}

/// How long faults on pages there took.
fn latency_us(outcome: &Outcome, quantile: &str) -> f64 {
    counter(&outcome.memory, &format!("refaults.{}.latency.{quantile}", outcome.home)) as f64 / 1000.0
}

/// Guest memory that is away, and host memory for it.
fn away_bytes(outcome: &Outcome) -> u64 {
    counter(&outcome.memory, &format!("pages.{}", outcome.home)) * cistern_memory::PAGE_SIZE
}

fn held_bytes(outcome: &Outcome) -> u64 {
    counter(&outcome.memory, "compressed.held_bytes")
}

fn bytes_a_page(outcome: &Outcome) -> f64 {
    held_bytes(outcome) as f64 * cistern_memory::PAGE_SIZE as f64 / away_bytes(outcome).max(1) as f64
}
