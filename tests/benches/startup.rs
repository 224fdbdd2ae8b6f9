//! From process start to the guest's first instruction, and where the time goes.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use cistern_tests::process::{binary, probe};
use serde_json::Value;

const RUNS: usize = 21;

fn main() {
    let mut totals = Vec::new();
    let mut steps: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..RUNS {
        let spawned = monotonic_now();
        let output = Command::new(binary())
            .args([
                "run",
                "--memory",
                "128M",
                "--console",
                "none",
                "--boot-times",
                "--cmdline",
                "probe=\"exit\"",
                "--kernel",
            ])
            .arg(probe())
            .output()
            .expect("cistern starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let report: Value = serde_json::from_str(stderr.trim()).unwrap_or_else(|_| panic!("no boot times: {stderr}"));
        let main_ns = report["start_monotonic_ns"].as_u64().expect("start");
        let exec_us = Duration::from_nanos(main_ns).saturating_sub(spawned).as_micros() as u64;
        steps.entry("fork, exec, load".to_owned()).or_default().push(exec_us);
        for (step, time) in report["steps_us"].as_object().expect("steps") {
            steps.entry(step.clone()).or_default().push(time.as_u64().expect("microseconds"));
        }
        totals.push(exec_us + report["total_us"].as_u64().expect("total"));
    }
    println!("process start to first guest instruction, probe, 128 MiB, 1 vCPU, {RUNS} runs:");
    println!(
        "  {:<20} median {:>7.2} ms, best {:>7.2} ms (goal: at most 10)",
        "total",
        median(&mut totals),
        best(&totals)
    );
    let mut steps: Vec<_> = steps.into_iter().map(|(step, mut times)| (step, median(&mut times))).collect();
    steps.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (step, time) in steps {
        println!("  {step:<20} median {time:>7.2} ms");
    }
}

fn median(times_us: &mut [u64]) -> f64 {
    times_us.sort_unstable();
    times_us[times_us.len() / 2] as f64 / 1000.0
}

fn best(times_us: &[u64]) -> f64 {
    times_us.iter().copied().min().unwrap_or(0) as f64 / 1000.0
}

fn monotonic_now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
