//! How much memory a guest works with, as it is estimated while it does.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::paged::{MIB, PagedVm, counter};
use cistern_tests::process::LIMIT;
use serde_json::Value;

/// The guest, and how far the estimate may be off: a tenth of it.
const GUEST_MIB: u64 = 512;
const ERROR_MIB: u64 = GUEST_MIB / 10;

/// Rises, falls, and in the end reads only.
const PROGRAM: &str = "fill:300M,text=100,seed=1;idle:3;walk:50M,secs=8,write=30;walk:250M,secs=8,write=30;\
                       walk:50M,secs=12;idle:1000000";

/// Periods after which the estimate has followed: at once upward, and by its half-life of 1.4 periods downward.
const SETTLING: [usize; 3] = [2, 2, 5];

/// One look: which walk was running, and what was estimated.
struct Look {
    walks_done: usize,
    periods: u64,
    active_mib: u64,
    written_mib: u64,
}

#[test]
fn the_estimate_follows_a_guest_up_and_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = |name: &str| folder.path().join(name).to_str().expect("test paths are plain").to_owned();
    let (pool, console) = (text("pool"), format!("file:{}", text("console")));
    let mut vm = PagedVm::start(
        PROGRAM,
        &[
            "--memory",
            "512M",
            "--pool",
            &pool,
            "--budget",
            "2G",
            "--track",
            "--sample-period",
            "1s",
            "--console",
            &console,
        ],
    );
    let walks_done = || fs::read_to_string(text("console")).unwrap_or_default().matches("\"phase\":\"walk\"").count();
    let is_walking = || fs::read_to_string(text("console")).unwrap_or_default().contains("\"phase\":\"idle\"");
    let deadline = Instant::now() + LIMIT;
    let mut looks: Vec<Look> = Vec::new();
    while walks_done() < 3 {
        assert!(Instant::now() < deadline, "{} walks", walks_done());
        let (walks_done, pool) = (walks_done(), vm.memory()["pool"].take());
        let periods = counter(&pool, "sample_periods");
        if is_walking() && pool["active"] != Value::Null && looks.last().is_none_or(|look| look.periods < periods) {
            let [active_mib, written_mib] =
                ["active", "written"].map(|what| counter(&pool, &format!("active.{what}_bytes")) / MIB);
            looks.push(Look { walks_done, periods, active_mib, written_mib });
        }
        thread::sleep(Duration::from_millis(100));
    }
    vm.stop();

    for (walk, (expected_mib, settling)) in [50, 250, 50].into_iter().zip(SETTLING).enumerate() {
        let of_walk: Vec<_> = looks.iter().filter(|look| look.walks_done == walk).skip(settling).collect();
        let estimates: Vec<_> = of_walk.iter().map(|look| (look.active_mib, look.written_mib)).collect();
        println!("{expected_mib} MiB: {estimates:?}");
        // Half of them: what a busy host keeps from running touches nothing, and that is seen too.
        let right = of_walk.iter().filter(|look| look.active_mib.abs_diff(expected_mib) <= ERROR_MIB).count();
        assert!(of_walk.len() >= 2 && right * 2 > of_walk.len(), "{expected_mib} MiB: {estimates:?}");
    }
    let written = |walk: usize| {
        let of_walk: Vec<_> =
            looks.iter().filter(|look| look.walks_done == walk).map(|look| look.written_mib).collect();
        *of_walk.last().expect("there were looks")
    };
    // A read-only walk is work, and no writing.
    assert!(written(1) > 100 && written(2) < written(1) / 2, "{} then {} MiB", written(1), written(2));
}
