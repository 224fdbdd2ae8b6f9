//! Pages that leave a running guest and come back: every home, every way there, every page checked by the guest.
//!
//! The cycles of [`churned_pages_come_back_from_every_home`] and the two tests after it make up [`cycles::wanted`]; how
//! they are counted is said there. `PAGING_CYCLES=10000000 cargo test --profile checked --test paging churned` is a long
//! run of the same.

use cistern_tests::cycles::{Churned, HOMES, churn, wanted};
use cistern_tests::paged::{MIB, PagedVm, counter, expect_homes, without_histograms};
use serde_json::Value;

/// A quarter of the 64 MiB that are churned.
const QUARTER: &str = "16M";

/// What a VMM costs beside guest RAM and stores, the files it maps apart: its pager's tables for 128 MiB, buffers and
/// stacks.
const OVERHEAD_BYTES: u64 = 3 * MIB;

/// Fails unless limit and page cache were kept to, as seen from outside.
#[track_caller]
fn expect_within(churned: &Churned, limit_bytes: u64) {
    let peak = churned.peak;
    let most = (limit_bytes + OVERHEAD_BYTES) * 101 / 100;
    assert!(peak.pss_bytes <= most, "{} KiB of {} KiB: {churned:?}", peak.pss_bytes >> 10, most >> 10);
    assert!(peak.looks >= 3, "{peak:?}");
    assert_eq!(counter(&churned.memory, "failures.over_limit_pages"), 0, "{churned:?}");
    if churned.memory["swap"].is_object() {
        assert!(peak.looks_at_swap > 0, "{peak:?}");
        assert_eq!(peak.cached_pages, 0, "{peak:?}");
    }
}

/// Churn under a quarter with this share of the suite's cycles.
#[track_caller]
fn churn_share(percent: u64, arguments: &[&str]) -> Value {
    let target = wanted() * percent / 100;
    let churned = churn(target, QUARTER, &[&["--swap", "SWAP"], arguments].concat());
    assert!(churned.cycles.total() >= target, "{target}: {churned:?}");
    churned.cycles.expect_tenths(&HOMES);
    expect_within(&churned, 16 * MIB);
    churned.memory
}

#[test]
fn churned_pages_come_back_from_every_home() {
    let memory = churn_share(60, &[]);
    assert_eq!(memory["eviction"], "move", "{memory}");
    expect_homes(&memory, &["first_touch", "aside"]);
}

#[test]
fn churned_pages_come_back_where_they_were_copied_out() {
    let memory = churn_share(20, &["--eviction", "copy"]);
    assert_eq!(memory["eviction"], "copy", "{memory}");
}

#[test]
fn churned_pages_come_back_from_zstd() {
    churn_share(20, &["--codec", "zstd"]);
}

#[test]
fn without_a_codec_pages_are_swapped() {
    let churned = churn(20_000, QUARTER, &["--swap", "SWAP", "--codec", "none"]);
    // What a duplicate shares lies in the swap file here, so it comes back from there.
    expect_homes(&churned.memory, &["zero", "swapped"]);
    assert!(counter(&churned.memory, "evictions.duplicate") > 0, "{churned:?}");
    assert_eq!(counter(&churned.memory, "evictions.compressed"), 0, "{churned:?}");
    assert!(churned.cycles.total() >= 20_000, "{churned:?}");
    expect_within(&churned, 16 * MIB);
}

#[test]
fn without_a_swap_file_incompressible_pages_stay() {
    // A quarter of the pages at any time, which is half of the limit: more of the others are in.
    for eviction in ["move", "copy"] {
        let churned = churn(20_000, "32M", &["--eviction", eviction]);
        expect_homes(&churned.memory, &["zero", "duplicate", "compressed"]);
        assert!(counter(&churned.memory, "evictions.incompressible") > 0, "{churned:?}");
        assert_eq!(counter(&churned.memory, "refaults.swapped.pages"), 0, "{churned:?}");
        assert!(churned.cycles.total() >= 10_000, "{churned:?}");
        expect_within(&churned, 32 * MIB);
    }
}

#[test]
fn a_full_store_is_written_back() {
    let churned = churn(20_000, QUARTER, &["--swap", "SWAP", "--store-limit", "2M"]);
    expect_homes(&churned.memory, &HOMES);
    assert!(counter(&churned.memory, "evictions.written_back") > 0, "{churned:?}");
    assert!(churned.cycles.total() >= 20_000, "{churned:?}");
    expect_within(&churned, 16 * MIB);
}

#[test]
fn one_processor_and_three_do_as_well() {
    for cpus in ["1", "3"] {
        let churned = churn(20_000, QUARTER, &["--swap", "SWAP", "--cpus", cpus]);
        churned.cycles.expect_tenths(&HOMES);
        expect_within(&churned, 16 * MIB);
    }
}

#[test]
fn fixed_kinds_find_their_homes() {
    let program = "fill:64M,zero=25,dup=25,text=25,random=25,seed=3;verify;walk:64M,touches=20000,write=30;verify;\
                   walk:64M,touches=20000,dist=zipf,write=50;repeat:1000000,(verify)";
    for eviction in ["move", "copy"] {
        let mut vm = PagedVm::start(program, &["--resident", QUARTER, "--swap", "SWAP", "--eviction", eviction]);
        vm.wait_for_verifies(4);
        let memory = without_histograms(vm.memory());
        // One guest has no two of the same until some are written: what was written has a header of its own.
        expect_homes(&memory, &["zero", "compressed", "swapped"]);
        assert_eq!(memory["eviction"], eviction, "{memory}");
        vm.stop();
    }
}

#[test]
fn pages_are_written_while_they_are_on_their_way_out() {
    // Few pages get most touches, so that what is taken is wanted back at once.
    let program = "fill:64M,churn,seed=5;repeat:1000000,(walk:64M,touches=40000,dist=zipf,write=100;verify)";
    for eviction in ["move", "copy"] {
        let mut vm = PagedVm::start(program, &["--resident", QUARTER, "--swap", "SWAP", "--eviction", eviction]);
        // The guest caught it on the way out, and right after.
        vm.wait_for_memory("overtaken page", |memory| {
            counter(memory, "evictions.overtaken") > 20 && counter(memory, "refaults.aside.pages") > 1000
        });
        vm.wait_for_verifies(2);
        expect_homes(&vm.memory(), &HOMES);
        vm.stop();
    }
}

#[test]
fn what_is_freed_and_ballooned_while_it_is_evicted_is_not_missed() {
    // What is filled again is of another seed: a page of before would be foreign.
    let program = "fill:48M,churn,seed=1;repeat:1000000,(walk:48M,touches=4000,write=100;free:24M;\
                   fill:24M,churn,seed=2;walk:48M,touches=4000,write=100;free:24M,silent;fill:24M,churn,seed=3;verify)";
    for eviction in ["move", "copy"] {
        let mut vm = PagedVm::start(program, &["--resident", "12M", "--swap", "SWAP", "--eviction", eviction]);
        vm.wait_for_verifies(1);
        let mut most_inflated = 0;
        for round in 0..12 {
            // All it can get, and half of it: the pages that were freed are in it each time.
            vm.inflate(if round % 2 == 0 { 128 } else { 40 });
            for _ in 0..20 {
                most_inflated = most_inflated.max(counter(&vm.memory(), "balloon_inflated_bytes"));
            }
            vm.wait_for_verifies(1);
        }
        vm.inflate(0);
        vm.wait_for_verifies(2);
        let memory = without_histograms(vm.memory());
        assert!(most_inflated > 40 * MIB, "{most_inflated}: {memory}");
        for path in ["reported_bytes", "evictions.freed"] {
            assert!(counter(&memory, path) > 0, "{path}: {memory}");
        }
        expect_homes(&memory, &HOMES);
        vm.stop();
    }
}
