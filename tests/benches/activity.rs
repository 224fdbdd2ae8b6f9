//! How exact the estimate of active memory is (ESX figure 6): a guest of 512 MiB steps from 50 MiB to 250 and back. Printed
//! for the dirty log alone, for samples alone, and for both; then what that costs.
//!
//! usage: `cargo bench -p cistern-tests --bench activity [-- --quick] [PART ...]`; parts are free, squeezed, reading, slow (the
//! same at the default period) and cost.

use std::fs;
use std::time::{Duration, Instant};

use cistern_tests::cpu_time;
use cistern_tests::estimates::{Following, Period, WalkingVm, median};
use serde_json::Value;

const GUEST_MIB: u64 = 512;
/// What counts as right: a tenth of the guest.
const ERROR_MIB: u64 = GUEST_MIB / 10;
const STEPS_MIB: [u64; 3] = [50, 250, 50];
/// Periods of each step, a hundred together.
const STEP_PERIODS: [u64; 3] = [20, 50, 30];
/// Less than the guest works with at its most.
const SQUEEZED: [&str; 2] = ["--limit", "192M"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parts: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| *name == part);
    let divisor = if arguments.iter().any(|argument| argument == "--quick") { 4 } else { 1 };
    println!("load: {}", cpu_time::load());
    let second = Duration::from_secs(1);
    if is_wanted("free") {
        step("free, 30 % writes", second, 30, &[], divisor);
    }
    if is_wanted("reading") {
        step("free, only reads", second, 0, &[], divisor);
    }
    if is_wanted("squeezed") {
        step("held to 192 MiB, 30 % writes", second, 30, &SQUEEZED, divisor);
    }
    if is_wanted("slow") {
        step("free, 30 % writes", 5 * second, 30, &[], divisor);
        step("held to 192 MiB, 30 % writes", 5 * second, 30, &SQUEEZED, divisor);
    }
    if is_wanted("cost") {
        cost();
    }
}

/// Steps through a guest's working sets and prints how the estimates followed.
fn step(title: &str, period: Duration, write_percent: u8, arguments: &[&str], divisor: u64) {
    let walks = STEPS_MIB.iter().zip(STEP_PERIODS).map(|(mib, periods)| {
        // At least what it takes to settle, and to see something then.
        let seconds = (periods / divisor).max(10) * period.as_secs();
        format!("walk:{mib}M,secs={seconds},write={write_percent}")
    });
    let program = format!("fill:300M,text=100,seed=1;{};idle:1000000", walks.collect::<Vec<_>>().join(";"));
    let memory = format!("{GUEST_MIB}M");
    let seconds = format!("{}s", period.as_secs());
    let own = ["--memory", &memory, "--track", "--sample-period", &seconds];
    let mut vm = WalkingVm::start(&program, &[&own, arguments].concat());
    let periods = vm.observe(STEPS_MIB.len());
    let rates: Vec<u64> = vm.reports("walk").iter().filter_map(|walk| walk["touches_per_s"].as_u64()).collect();
    vm.vm.stop();
    println!("\n{title}, period {} s; touches a second: {rates:?}", period.as_secs());
    println!(
        "  {:<10} {:>15} {:>14} {:>9} {:>6} {:>10}",
        "", "within a tenth", "median error", "most off", "up", "half-life"
    );
    row("dirty log", &periods, |period| period.written_mib);
    row("samples", &periods, |period| Some(period.sampled_mib));
    row("both", &periods, |period| Some(period.active_mib));
    for (walk, mib) in STEPS_MIB.iter().enumerate() {
        let of_walk = periods.iter().filter(|period| period.walk == walk).map(|period| period.active_mib);
        println!("  {mib} MiB: {:?}", of_walk.collect::<Vec<_>>());
    }
}

/// How one of the estimates followed.
fn row(name: &str, periods: &[Period], estimate: impl Fn(&Period) -> Option<u64>) {
    let following = Following::of(periods, STEPS_MIB, ERROR_MIB, estimate);
    let errors = &following.errors_mib;
    let text = |periods: Option<usize>| periods.map_or_else(|| "-".to_owned(), |periods| periods.to_string());
    println!(
        "  {name:<10} {:>15} {:>10} MiB {:>5} MiB {:>6} {:>10}",
        format!("{} of {}", following.within(ERROR_MIB), errors.len()),
        median(errors.clone()).unwrap_or(0),
        errors.iter().max().unwrap_or(&0),
        text(following.up),
        text(following.down)
    );
}

/// What sampling takes: time on processors of the VMM's threads, and touches of the guest's.
fn cost() {
    println!("\ncost at the default period, a guest walking 250 MiB, 30 % writes");
    println!("  {:<14} {:>22} {:>18}", "", "VMM, part of a core", "touches a second");
    for (name, arguments) in [("without", &[][..]), ("with --track", &["--track"])] {
        let program = "fill:300M,text=100,seed=1;walk:250M,secs=5,write=30;walk:250M,secs=60,write=30;idle:1000000";
        let memory = format!("{GUEST_MIB}M");
        let vm = WalkingVm::start(program, &[&["--memory", &memory][..], arguments].concat());
        let pid = vm.vm.running.pid();
        wait_for_walks(&vm, 1);
        let (started, before) = (Instant::now(), vmm_time(pid));
        wait_for_walks(&vm, 2);
        let part = (vmm_time(pid) - before).as_secs_f64() / started.elapsed().as_secs_f64();
        let walks: Vec<Value> = vm.reports("walk");
        println!("  {name:<14} {:>20.3} % {:>18}", part * 100.0, walks[1]["touches_per_s"]);
        vm.vm.running.signal(libc::SIGTERM);
        drop(vm);
    }
}

fn wait_for_walks(vm: &WalkingVm, walks: usize) {
    while vm.reports("walk").len() < walks {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Time on processors of a VM's threads that are not its guest's CPUs (kernel Documentation/scheduler/sched-stats.rst).
fn vmm_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let time_ns = |task: std::io::Result<fs::DirEntry>| {
        let folder = task.ok()?.path();
        let name = fs::read_to_string(folder.join("comm")).ok()?;
        let times = fs::read_to_string(folder.join("schedstat")).ok()?;
        (!name.starts_with("vcpu")).then(|| times.split(' ').next()?.parse::<u64>().ok())?
    };
    Duration::from_nanos(tasks.filter_map(time_ns).sum())
}
