//! VMs that share a budget: who gives, how much, by which means, and who is let in.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use cistern_tests::paged::{MIB, counter, without_histograms};
use cistern_tests::pool::{INTERVAL, Look, TestPool, in_mib, is_within};
use cistern_tests::process::{Finished, LIMIT};
use cistern_tests::watch::Watch;

/// Guests of 256 MiB in a pool of 383 MiB, of which 360 are divided.
const TWO: [&str; 10] =
    ["--memory", "256M", "--cpus", "1", "--budget", "383M", "--sample-period", "1s", "--swap", "SWAP"];

/// Guests that work in turn, for ever: one walks all it has, then verifies it, while the other idles.
fn in_turn(pool: &mut TestPool) {
    let work = "repeat:10,(walk:240M,dist=sequential);verify";
    pool.start(&format!("fill:240M,random=100,seed=1;repeat:1000,({work};idle:10)"), &[]);
    pool.start(&format!("fill:240M,random=100,seed=2;repeat:1000,(idle:10;{work})"), &[]);
}

/// Whether each costs what it is granted, and is granted what the allocator says to what is published.
fn are_settled(looks: &[Look]) -> bool {
    looks.iter().all(|look| look.is_settled(5))
}

/// Touches a second of each walk.
fn walk_rates(finished: &Finished) -> Vec<u64> {
    let lines = finished.stdout.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["phase"] == "walk").filter_map(|line| line["touches_per_s"].as_u64()).collect()
}

#[test]
fn without_a_tax_equal_shares_are_equal_parts() {
    let mut pool = TestPool::new(&[&TWO[..], &["--idle-tax", "0"]].concat());
    in_turn(&mut pool);
    let half_bytes = 180 * MIB;
    let looks = pool.wait_until_steady("equal parts", |looks| {
        are_settled(looks) && looks.iter().all(|look| is_within(5, look.cost_bytes, half_bytes))
    });
    println!("tax 0: {}", in_mib(&looks));
    pool.vms[0].wait_for_verifies(1);
    println!("walks: {:?} touches a second", walk_rates(&pool.stop()[0]));
}

#[test]
fn idle_memory_goes_to_whoever_works() {
    let mut pool = TestPool::new(&[&TWO[..], &["--idle-tax", "75"]].concat());
    in_turn(&mut pool);
    // The one at work has next to all it has filled; by the vectors, twice what the other has.
    let works = |looks: &[Look], worker: usize| {
        are_settled(looks) && looks[worker].cost_bytes * 2 > looks[1 - worker].cost_bytes * 3
    };
    let looks = pool.wait_until_steady("memory for the first", |looks| works(looks, 0));
    println!("tax 75: {}", in_mib(&looks));
    let looks = pool.wait_until_steady("memory for the second", |looks| works(looks, 1));
    println!("roles swapped: {}", in_mib(&looks));
    // The first has verified once before, in its own turn.
    pool.vms[1].wait_for_verifies(1);
    pool.vms[0].wait_for_verifies(2);
    println!("walks: {:?} touches a second", walk_rates(&pool.stop()[0]));
}

/// Whether a quantity of the members is as their `parts`, to within so many percent of each.
fn are_as(parts: &[u64], percent: u64, looks: &[Look], bytes: impl Fn(&Look) -> u64) -> bool {
    let sum: u64 = looks.iter().map(&bytes).sum();
    let whole: u64 = parts.iter().sum();
    looks.iter().zip(parts).all(|(look, part)| is_within(percent, bytes(look), sum * part / whole))
}

/// A pool of guests of 128 MiB.
fn small_guests(budget: &str) -> TestPool {
    TestPool::new(&["--memory", "128M", "--cpus", "1", "--budget", budget, "--sample-period", "1s", "--swap", "SWAP"])
}

/// Three guests that work with 112 MiB each, with shares 1:2:4, in half of the memory they need.
fn squeezed(first_arguments: &[&str]) -> TestPool {
    let mut pool = small_guests("168M");
    let program = "fill:112M,random=100;repeat:100000,(walk:112M,touches=28672,dist=sequential;verify)";
    pool.start(program, &[&["--shares", "1000"], first_arguments].concat());
    pool.start(program, &["--shares", "2000"]);
    pool.start(program, &["--shares", "4000"]);
    pool
}

#[test]
fn shares_divide_what_is_too_little() {
    let mut pool = squeezed(&[]);
    let looks = pool.wait_until_steady("parts by shares", |looks| {
        are_as(&[1, 2, 4], 2, looks, Look::grant_bytes) && are_as(&[1, 2, 4], 5, looks, |look| look.cost_bytes)
    });
    println!("1:2:4: {}", in_mib(&looks));
    for vm in &mut pool.vms {
        vm.wait_for_verifies(1);
    }
    pool.stop();
}

#[test]
fn a_reservation_is_kept_whatever_the_shares() {
    const RESERVED: u64 = 40 * MIB;
    let mut pool = squeezed(&["--reservation", "40M"]);
    // What it does not use is what it needs to change pages.
    let has_reserved = |look: &Look| look.grant_bytes() >= RESERVED && look.cost_bytes * 10 >= RESERVED * 9;
    let looks = pool.wait_until_steady("a reservation and parts by shares", |looks| {
        has_reserved(&looks[0])
            && are_as(&[2, 4], 2, &looks[1..], Look::grant_bytes)
            && are_as(&[2, 4], 5, &looks[1..], |look| look.cost_bytes)
    });
    println!("40 MiB reserved: {}", in_mib(&looks));
    // The others go on wanting more.
    for _ in 0..20 {
        thread::sleep(INTERVAL);
        let looks = pool.looks().expect("all members are there");
        assert!(has_reserved(&looks[0]), "{}", in_mib(&looks));
    }
    pool.stop();
}

#[test]
fn shares_take_no_memory_that_is_used_where_it_is_enough() {
    // Both work with 56 of 112 MiB. At 1:8 the second could hold all it has, and 184 MiB are not enough for that of both.
    const USED_BYTES: u64 = 56 * MIB;
    const FEW_PAGES: u64 = 30;
    let program = "fill:112M,random=100;repeat:1000000,(walk:56M,dist=sequential)";
    for shares in ["1000", "8000"] {
        let mut pool = small_guests("196M");
        pool.start(program, &["--shares", "1000"]);
        pool.start(program, &["--shares", shares]);
        let mut before = [0; 2];
        let looks = pool.wait_until_steady("room for what is used", |looks| {
            let refaults = [0, 1].map(|index: usize| looks[index].ledger.report.refaults);
            let fetched = [0, 1].map(|index: usize| refaults[index] - before[index]);
            before = refaults;
            let uses = |look: &Look| is_within(20, look.ledger.report.active_bytes, USED_BYTES);
            // All it uses is there, and next to nothing comes back: then nobody is brought to a grant that wavers with samples.
            let has_room = |look: &Look| {
                is_within(5, look.grant_bytes(), look.due_bytes)
                    && look.cost_bytes > USED_BYTES
                    && !look.ledger.report.wants_growth
            };
            looks.iter().all(|look| uses(look) && has_room(look)) && fetched.iter().all(|&pages| pages < FEW_PAGES)
        });
        println!("1000:{shares}: {}", in_mib(&looks));
        pool.stop();
    }
}

#[test]
fn a_limit_holds_in_an_empty_pool() {
    const LIMIT_BYTES: u64 = 48 * MIB;
    let mut pool = TestPool::new(&["--memory", "128M", "--budget", "1G", "--swap", "SWAP"]);
    let program = "fill:96M,churn,seed=3;repeat:1000000,(walk:96M,touches=20000,write=100;verify)";
    pool.start(program, &["--limit", "48M"]);
    let vm = &mut pool.vms[0];
    let watch = Watch::start(vm.running.pid(), &vm.swap_folder());
    vm.wait_for_verifies(3);
    let peak = watch.finish();
    let statistics = pool.statistics(0);
    let most_bytes = (LIMIT_BYTES + counter(&statistics, "own_bytes")) * 101 / 100;
    println!("limit 48 MiB: {peak:?} of {most_bytes}");
    assert!(peak.looks >= 3 && peak.pss_bytes <= most_bytes, "{peak:?} of {most_bytes}: {statistics}");
    // It is the limit that holds, not the pool.
    assert!(peak.pss_bytes * 10 > LIMIT_BYTES * 9 && statistics["level"] == "high", "{peak:?}: {statistics}");
    pool.stop();
}

/// Time on a processor of a VM's manager.
fn manager_time_ns(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let is_manager = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "manager\n");
    let manager = tasks.filter_map(|task| Some(task.ok()?.path())).find(is_manager).expect("it has a manager");
    // Its own time, the time it waited, and how often it ran (kernel Documentation/scheduler/sched-stats.rst).
    let times = fs::read_to_string(manager.join("schedstat")).expect("a kernel that counts time");
    times.split_whitespace().next().and_then(|time| time.parse().ok()).expect("a number")
}

#[test]
fn nothing_is_done_where_all_fit() {
    let mut pool =
        TestPool::new(&["--memory", "128M", "--budget", "256M", "--sample-period", "100ms", "--swap", "SWAP"]);
    for _ in 0..2 {
        pool.start("fill:96M;repeat:3,(walk:96M,secs=2;verify);idle:1000000", &[]);
    }
    // What is filled before anybody has ever looked is no less free.
    for vm in &mut pool.vms {
        vm.running.wait_for_phase("fill");
    }
    let pids = [0, 1].map(|index: usize| pool.vms[index].running.pid());
    let (started, before_ns) = (Instant::now(), pids.map(manager_time_ns));
    for vm in &mut pool.vms {
        vm.wait_for_verifies(3);
    }
    let (passed, after_ns) = (started.elapsed(), pids.map(manager_time_ns));
    for (before_ns, after_ns) in before_ns.into_iter().zip(after_ns) {
        let parts_per_million = u128::from(after_ns - before_ns) * 1_000_000 / passed.as_nanos();
        println!("the manager takes {parts_per_million} millionths of a core");
        assert!(parts_per_million < 1000, "{parts_per_million}");
    }
    for index in 0..2 {
        let memory = without_histograms(pool.vms[index].memory());
        assert!(memory["armed"] == false && memory["pool"]["level"] == "high", "{memory}");
        assert!(counter(&memory, "pool.grant_bytes") >= 128 * MIB && memory["pool"]["active"].is_null(), "{memory}");
        for path in ["pool.sample_periods", "evictions.aside", "balloon_inflated_bytes", "pool.failures"] {
            assert_eq!(counter(&memory, path), 0, "{path}: {memory}");
        }
    }
    assert!(pool.looks().expect("both are there").iter().all(|look| look.cost_bytes > 96 * MIB));
    pool.stop();
}

/// Two that fit once a third has gone, but for their processes, and have nowhere to put a page.
#[test]
fn guests_that_fit_get_what_they_were_promised() {
    for flags in [&[][..], &["--reclaim", "off"]] {
        let mut pool = TestPool::new(&[&["--memory", "32M", "--budget", "64M"], flags].concat());
        for seed in [1, 2] {
            // Slowly, so that somebody looks meanwhile.
            let fill = format!(
                "fill:12M,random=100,seed={seed};repeat:told,(idle:0.1);repeat:36,(fill:512K,random=100;idle:0.2)"
            );
            pool.start(&format!("{fill};repeat:1000000,(walk:30M,touches=20000;verify)"), &[]);
        }
        pool.start("fill:4M,random=100,seed=3;repeat:told,(idle:0.1)", &[]);
        for vm in &mut pool.vms {
            vm.running.wait_for_phase("fill");
        }
        let mut third = pool.vms.pop().expect("there are three");
        third.tell();
        third.running.finish(LIMIT).expect_status(0);
        for vm in &mut pool.vms {
            vm.tell();
        }
        for vm in &mut pool.vms {
            vm.wait_for_verifies(2);
        }
        pool.stop();
    }
}

#[test]
fn the_balloon_gives_what_a_guest_has_free() {
    // Freed but not reported, 160 of the 200 MiB of the first still cost the host. The other grows into them, more slowly
    // than a balloon does: the line after soft is 6 MiB further, 3 s away.
    let mut pool = TestPool::new(&["--memory", "256M", "--cpus", "1", "--budget", "320M", "--swap", "SWAP"]);
    pool.start("fill:200M,random=100;free:160M,silent;repeat:100000,(walk:40M;idle:0.2)", &[]);
    pool.vms[0].running.wait_for_phase("free");
    pool.start("fill:80M,random=100,seed=2;repeat:30,(fill:1M,random=100;idle:0.5);verify;repeat:100000,(idle:1)", &[]);
    pool.vms[1].wait_for_verifies(1);
    let mut given_bytes = 0;
    for index in 0..2 {
        let memory = without_histograms(pool.vms[index].memory());
        let levels = memory["pool"]["levels"].as_array().expect("levels");
        given_bytes += counter(&levels[1], "balloon_given_bytes");
        for level in levels {
            assert!(counter(level, "evicted_pages") == 0 && counter(level, "written_pages") == 0, "{memory}");
        }
        assert!(levels[2..].iter().all(|level| counter(level, "entered") == 0), "{memory}");
    }
    println!("{} MiB came from the balloon", given_bytes / MIB);
    assert!(given_bytes > 10 * MIB, "{given_bytes}");
    pool.stop();
}

#[test]
fn a_guest_without_a_balloon_gives_all_the_same() {
    let mut pool = TestPool::new(&[
        "--memory",
        "128M",
        "--cpus",
        "1",
        "--budget",
        "160M",
        "--swap",
        "SWAP",
        "--sample-period",
        "1s",
    ]);
    pool.start("fill:112M,random=50,text=50;repeat:100000,(idle:20;verify)", &["--balloon", "off"]);
    pool.start("idle:1;fill:96M,random=100;repeat:100000,(walk:96M,dist=sequential;verify)", &["--balloon", "off"]);
    let looks = pool.wait_until_steady("memory for the second", |looks| {
        are_settled(looks) && looks[1].cost_bytes * 2 > looks[0].cost_bytes * 3
    });
    println!("without balloons: {}", in_mib(&looks));
    let memory = without_histograms(pool.vms[0].memory());
    assert!(memory["pool"]["balloon"] == "absent" && counter(&memory, "pool.balloon_given_bytes") == 0, "{memory}");
    for path in ["evictions.compressed", "evictions.swapped"] {
        assert!(counter(&memory, path) > 0, "{path}: {memory}");
    }
    for vm in &mut pool.vms {
        vm.wait_for_verifies(1);
    }
    pool.stop();
}
