//! Whether a scanner that has something to do takes the CPU time that it may.

use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::control::ask;
use cistern_tests::cpu_time;
use cistern_tests::paged::counter;
use cistern_tests::pool::TestPool;
use serde_json::json;

const PERCENTS: [u32; 4] = [2, 5, 10, 20];

/// Pages of the guest, all of which are new to the scanner: more than it gets through while it is watched.
const FILL: &str = "fill:1500M";
const FILL_PAGES: u64 = 1500 * 256;

/// After this the CPU time that it may use at once is used.
const BEGINNING: Duration = Duration::from_millis(200);
/// It is watched for so much CPU time.
const WATCHED_CPU: Duration = Duration::from_millis(200);

/// See the top of this file.
pub fn run() {
    println!(
        "\nCPU time of a scanner with new pages before it, in percent of a core (goal: within 10 % of its budget)"
    );
    for percent in PERCENTS {
        let mut pool = TestPool::new(&[
            "--memory",
            "1600M",
            "--cpus",
            "1",
            "--budget",
            "3G",
            "--sharing",
            "off",
            "--scan-cpu",
            &percent.to_string(),
        ]);
        pool.start(&format!("{FILL};idle:1000000"), &[]);
        pool.vms[0].running.wait_for_phase("fill");
        let vm = &mut pool.vms[0];
        let pid = vm.running.pid();
        let answer = ask(&vm.socket(), "PATCH", "/sharing", &json!({ "mechanisms": "zero,ksm" }).to_string());
        assert_eq!(answer.status, 204, "{answer:?}");
        thread::sleep(BEGINNING);
        let (before, started) = (cpu_time::of_scanner(pid), Instant::now());
        thread::sleep(WATCHED_CPU * 100 / percent);
        let (used, elapsed) = (cpu_time::of_scanner(pid) - before, started.elapsed());
        let scanned = counter(&vm.memory(), "sharing.scanned_pages");
        println!(
            "  {percent:>2}: {:.2}, ratio {:.2}; {scanned} of {FILL_PAGES} pages were scanned; load {}",
            100.0 * used.as_secs_f64() / elapsed.as_secs_f64(),
            used.as_secs_f64() / elapsed.as_secs_f64() * 100.0 / f64::from(percent),
            cpu_time::load()
        );
        pool.stop();
    }
}
