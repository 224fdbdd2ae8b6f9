//! Duplicates of which half is rewritten all the time: that half is given up, and the rest stays merged.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;
use cistern_tests::cpu_time;
use cistern_tests::paged::{MIB, counter};
use cistern_tests::pool::TestPool;
use cistern_tests::process::LIMIT;

const GUESTS: u64 = 4;
/// Each half of a guest's duplicates.
const HALF_MIB: u64 = 64;
const HALF_PAGES: u64 = HALF_MIB * MIB / PAGE_SIZE;

/// How long guests leave all as it is, in which it is merged.
const REST_SECONDS: u64 = 90;

/// Walks that are counted: the first ones make pages of their own of those that were merged.
const ROUNDS: usize = 24;
const SKIPPED: usize = 14;

const FLAGS: [&str; 9] = ["--memory", "192M", "--cpus", "1", "--budget", "1G", "--scan-cpu", "5", "--ksm-tune"];

/// See the top of this file.
pub fn run() {
    println!("\nchurn: {GUESTS} guests of {} MiB of duplicates, half of them rewritten every second", 2 * HALF_MIB);
    let off = rates(start("off"), false);
    let on = rates(start("zero,store,ksm"), true);
    println!(
        "  rewritten pages a second: {on:.0}, sharing off {off:.0}: ratio {:.3}, goal >= 0.99; load {}",
        on / off,
        cpu_time::load()
    );
}

fn start(sharing: &str) -> TestPool {
    let mut pool = TestPool::new(&[&FLAGS[..], &["--sharing", sharing]].concat());
    let walk = format!("walk:{HALF_MIB}M,secs=1,dist=sequential,write=100;idle:0.2");
    // The halves meet inside a region, and what the churning one has there is not many.
    let program = format!(
        "fill:{HALF_MIB}M,dup=100;fill:{HALF_MIB}M,dup=100;idle:{REST_SECONDS};repeat:{ROUNDS},({walk});idle:1000000"
    );
    (0..GUESTS).for_each(|_| pool.start(&program, &[]));
    pool
}

/// Pages that a guest has rewritten in a second: the median of all walks that count.
fn rates(mut pool: TestPool, is_shared: bool) -> f64 {
    for vm in &mut pool.vms {
        (0..2).for_each(|_| drop(vm.running.wait_for_phase("fill")));
    }
    if is_shared {
        let filled = Instant::now();
        wait_until("merged pages", &mut pool, |pool| merging_pages(pool) >= GUESTS * 2 * HALF_PAGES * 95 / 100);
        println!("  merged after {:.1} s", filled.elapsed().as_secs_f64());
    }
    pool.vms.iter_mut().for_each(|vm| drop(vm.running.wait_for_phase("idle")));
    let started = Instant::now();
    if is_shared {
        let advised = |pool: &mut TestPool| -> u64 {
            let of = |vm: &mut cistern_tests::paged::PagedVm| counter(&vm.memory(), "sharing.merging.advised_pages");
            pool.vms.iter_mut().map(of).sum()
        };
        // Of the churning half of each, a region may be left that it has in common with the other.
        let most_pages = GUESTS * (HALF_PAGES + 2 * 512);
        wait_until("given up half", &mut pool, |pool| advised(pool) <= most_pages);
        println!("  given up after {:.1} s, goal <= 10", started.elapsed().as_secs_f64());
    }
    let rates = pool.vms.iter_mut().flat_map(|vm| {
        let walks = (0..ROUNDS).map(|_| vm.running.wait_for_phase("walk")["touches_per_s"].as_f64().expect("a number"));
        walks.collect::<Vec<_>>().into_iter().skip(SKIPPED)
    });
    let mut rates: Vec<f64> = rates.collect();
    if is_shared {
        let merged = merging_pages(&pool);
        println!(
            "  of the half that is not rewritten {:.1} % are merged, goal >= 95",
            100.0 * merged as f64 / (GUESTS * HALF_PAGES) as f64
        );
    }
    pool.stop();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn merging_pages(pool: &TestPool) -> u64 {
    let of = |pid: u32| fs::read_to_string(format!("/proc/{pid}/ksm_merging_pages")).ok()?.trim().parse::<u64>().ok();
    pool.vms.iter().filter_map(|vm| of(vm.running.pid())).sum()
}

fn wait_until(what: &str, pool: &mut TestPool, holds: impl Fn(&mut TestPool) -> bool) {
    let started = Instant::now();
    while !holds(pool) {
        assert!(pool.vms.iter_mut().all(|vm| !vm.running.has_ended()), "a VM has ended before {what}");
        assert!(started.elapsed() < LIMIT, "no {what} in time");
        thread::sleep(Duration::from_millis(200));
    }
}
