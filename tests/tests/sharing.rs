//! One copy of what guests hold: zero pages go back to the host, equal ones are merged, and writes make them two again.

use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;
use cistern_tests::control::ask;
use cistern_tests::ksm::Ksm;
use cistern_tests::paged::{MIB, PagedVm, counter};
use cistern_tests::pool::TestPool;
use cistern_tests::process::LIMIT;
use cistern_tests::watch::Still;
use serde_json::{Value, json};

/// What a VM shares, and what that has come to.
fn sharing(vm: &mut PagedVm) -> Value {
    vm.memory()["sharing"].take()
}

fn switch(vm: &PagedVm, mechanisms: &str) {
    let body = json!({ "mechanisms": mechanisms }).to_string();
    let answer = ask(&vm.socket(), "PATCH", "/sharing", &body);
    assert_eq!(answer.status, 204, "{answer:?}");
}

/// Waits until something holds of what all members share.
#[track_caller]
fn wait_for(pool: &mut TestPool, what: &str, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let shared: Vec<_> = pool.vms.iter_mut().map(sharing).collect();
        if holds(&shared) {
            return shared;
        }
        assert!(Instant::now() < deadline, "no {what} in time: {shared:#?}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn sum(shared: &[Value], path: &str) -> u64 {
    shared.iter().map(|shared| counter(shared, path)).sum()
}

#[test]
fn what_a_guest_cleared_goes_back_to_the_host() {
    let program = "fill:192M,zero=50,text=50;idle:2;repeat:1000,(verify;idle:1)";
    let mut vm = PagedVm::start(program, &["--memory", "256M", "--sharing", "zero", "--scan-cpu", "5"]);
    vm.running.wait_for_phase("fill");
    let wanted_pages = 96 * MIB / PAGE_SIZE;
    let memory =
        vm.wait_for_memory("zero pages", |memory| counter(memory, "evictions.zero_freed") >= wanted_pages * 99 / 100);
    println!("{}", memory["sharing"]);
    assert_eq!(counter(&memory, "evictions.compressed"), 0, "{memory}");
    // A verify reads them, and they come back as zero.
    vm.wait_for_verifies(2);
    vm.stop();
}

#[test]
fn a_pool_where_all_fit_is_not_scanned_unless_that_is_asked_for() {
    let mut pool = TestPool::new(&["--memory", "64M", "--cpus", "1", "--budget", "256M"]);
    pool.start("fill:32M,zero=50,text=50;idle:1000", &[]);
    pool.vms[0].running.wait_for_phase("fill");
    thread::sleep(Duration::from_secs(2));
    let memory = pool.vms[0].memory();
    assert_eq!((&memory["armed"], &memory["sharing"]["is_scanning"]), (&json!(false), &json!(false)), "{memory}");
    assert_eq!(counter(&memory, "sharing.scanned_pages"), 0);
    switch(&pool.vms[0], "zero");
    pool.vms[0].wait_for_memory("zero pages", |memory| counter(memory, "evictions.zero_freed") >= 4000);
    switch(&pool.vms[0], "off");
    pool.vms[0].wait_for_memory("an open VM", |memory| memory["armed"] == false);
    // A third member makes the sizes sum to more than the budget: there is a reason to look.
    switch(&pool.vms[0], "store");
    for _ in 0..4 {
        pool.start("fill:32M,zero=50,text=50;repeat:1000,(idle:1;verify)", &[]);
    }
    pool.vms[1].wait_for_memory("zero pages", |memory| counter(memory, "evictions.zero_freed") >= 4000);
    pool.stop();
}

/// Guests of one pool that hold the same duplicates.
fn like_guests(count: usize, budget: &str, program: &str) -> TestPool {
    let mut pool = TestPool::new(&[
        "--memory",
        "64M",
        "--cpus",
        "1",
        "--budget",
        budget,
        "--swap",
        "SWAP",
        "--sharing",
        "zero,store,ksm",
        "--scan-cpu",
        "20",
        "--ksm-tune",
    ]);
    for number in 0..count {
        pool.start(&program.replace("SEED", &number.to_string()), &[]);
    }
    pool
}

#[test]
fn equal_pages_of_several_guests_are_merged() {
    let _ksm = Ksm::hold();
    let program = "fill:48M,zero=20,dup=47,text=33,seed=SEED;repeat:100000,(idle:1)";
    let mut pool = like_guests(4, "1G", program);
    let dup_pages = 4 * 48 * MIB / PAGE_SIZE * 47 / 100;
    let shared = wait_for(&mut pool, "merged pages", |shared| {
        shared.iter().all(|shared| !shared["merging"].is_null())
            && sum(shared, "merging.merged_pages") * 100 >= dup_pages * 95
    });
    println!("{} of {dup_pages} merged: {}", sum(&shared, "merging.merged_pages"), shared[0]);
    let charge_bytes: u64 = pool.view().members.iter().map(|member| member.report.charge_bytes).sum();
    let cost_bytes: u64 = pool.looks().expect("all are there").iter().map(|look| look.cost_bytes).sum();
    println!("charged {} MiB, cost {} MiB", charge_bytes / MIB, cost_bytes / MIB);
    let filled_bytes = 4 * 48 * MIB;
    assert!(cost_bytes < filled_bytes * 60 / 100, "{} MiB", cost_bytes / MIB);
    // Sharing ends: everybody has his own again.
    pool.vms.iter().for_each(|vm| switch(vm, "off"));
    wait_for(&mut pool, "pages of their own", |shared| shared.iter().all(|shared| shared["merging"].is_null()));
    // KSM's own count goes down only with its next pass.
    let cost_bytes: u64 = pool.looks().expect("all are there").iter().map(|look| look.cost_bytes).sum();
    assert!(cost_bytes > filled_bytes * 75 / 100, "all but the zero pages: {} MiB", cost_bytes / MIB);
    pool.stop();
}

/// Guests that write to merged pages in a pool that could not hold all of them unmerged.
#[test]
fn merged_pages_that_are_written_to_stay_within_the_budget() {
    let _ksm = Ksm::hold();
    // They grow no faster than pages are merged, however busy the machine: what would not fit is not there any more.
    const STEPS: u64 = 6;
    const STEP_PAGES: u64 = 4 * 8 * MIB / PAGE_SIZE * 80 / 100;
    let fills = ["fill:8M,dup=80,text=20,seed=SEED;repeat:told,(idle:0.05)"; STEPS as usize].join(";");
    let program = format!("{fills};repeat:100000,(walk:48M,secs=2,write=20;idle:2;verify)");
    let mut pool = like_guests(4, "128M", &program);
    for step in 1..=STEPS {
        wait_for(&mut pool, "merged pages", |shared| {
            shared.iter().all(|shared| !shared["merging"].is_null())
                && sum(shared, "merging.merged_pages") * 100 >= step * STEP_PAGES * 85
        });
        pool.vms.iter_mut().for_each(PagedVm::tell);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut peak_bytes = 0;
    while Instant::now() < deadline {
        // What passes from one to another in the middle of a look would count twice.
        let still = Still::all(pool.vms.iter().map(|vm| vm.running.pid()));
        let cost_bytes: u64 = pool.looks().map_or(0, |looks| looks.iter().map(|look| look.cost_bytes).sum());
        drop(still);
        peak_bytes = peak_bytes.max(cost_bytes);
        thread::sleep(Duration::from_millis(50));
    }
    println!("at most {} MiB", peak_bytes / MIB);
    let shared: Vec<_> = pool.vms.iter_mut().map(sharing).collect();
    println!("{shared:#?}");
    assert!(sum(&shared, "merging.broken_pages") > 0);
    for vm in &mut pool.vms {
        vm.wait_for_verifies(1);
    }
    pool.stop();
    assert!(peak_bytes <= 128 * MIB * 102 / 100, "{} MiB", peak_bytes / MIB);
}

/// Guests that rewrite half of their duplicates all the time.
#[test]
fn what_churns_is_given_up_and_what_does_not_stays_merged() {
    let _ksm = Ksm::hold();
    // They begin when all was merged.
    let program = "fill:24M,dup=100;fill:24M,dup=100;repeat:told,(idle:0.1);\
                   repeat:100000,(walk:24M,secs=0.5,dist=sequential,write=100;idle:0.5)";
    let mut pool = like_guests(3, "1G", program);
    let half_pages = 3 * 24 * MIB / PAGE_SIZE;
    wait_for(&mut pool, "merged pages", |shared| {
        shared.iter().all(|shared| !shared["merging"].is_null())
            && sum(shared, "merging.merged_pages") * 100 >= 2 * half_pages * 95
    });
    pool.vms.iter_mut().for_each(PagedVm::tell);
    // The halves meet inside a region.
    let most_pages = half_pages + 3 * 2 * 512;
    let shared = wait_for(&mut pool, "given up half", |shared| {
        sum(shared, "merging.given_up_regions") >= 3 * 10 && sum(shared, "merging.advised_pages") <= most_pages
    });
    println!("{}", shared[0]["merging"]);
    // It lasts, and the other half does too.
    for vm in &mut pool.vms {
        vm.running.catch_up();
        (0..5).for_each(|_| drop(vm.running.wait_for_phase("walk")));
    }
    let shared = wait_for(&mut pool, "merged half", |shared| {
        sum(shared, "merging.advised_pages") <= most_pages
            && sum(shared, "merging.merged_pages") * 100 >= half_pages * 95
    });
    // By the page map: KSM's own count goes down only with its next pass.
    let merged_pages = sum(&shared, "merging.merged_pages");
    println!("{merged_pages} of {half_pages} are merged: {}", shared[0]["merging"]);
    assert!(merged_pages * 100 >= half_pages * 95 && merged_pages <= most_pages);
    pool.stop();
}
