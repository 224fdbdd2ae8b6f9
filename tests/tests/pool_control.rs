//! A VM in a pool, controlled from outside.

use cistern_tests::control::ask;
use cistern_tests::paged::{MIB, PagedVm, counter};
use cistern_tests::process::cistern;

const PROGRAM: &str = "fill:32M,text=100,seed=1;verify;idle:1000000";

/// `cistern balloon` for this VM.
fn balloon(vm: &PagedVm, size: &str) -> (Option<i32>, String) {
    let finished = cistern(&["balloon", vm.socket().to_str().expect("test paths are plain"), size]);
    (finished.status, finished.stdout + &finished.stderr)
}

#[test]
fn a_balloon_by_hand_stays_until_the_pool_has_it_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let pool = folder.path().join("pool");
    let mut vm = PagedVm::start(PROGRAM, &["--pool", pool.to_str().expect("test paths are plain"), "--budget", "1G"]);
    vm.wait_for_verifies(1);
    let (status, output) = balloon(&vm, "64M");
    assert!(status == Some(0) && output.starts_with("target 64 MiB, holds "), "{output}");
    let inflated = |memory: &serde_json::Value| counter(memory, "balloon_inflated_bytes");
    let memory = vm.wait_for_memory("the balloon", |memory| inflated(memory) == 64 * MIB);
    // The pool wants none of it, and has looked several times.
    let before = counter(&memory, "pool.rounds_led");
    let memory = vm.wait_for_memory("a few looks", |memory| counter(memory, "pool.rounds_led") > before + 3);
    assert_eq!((inflated(&memory), counter(&memory, "pool.manual_balloon_bytes")), (64 * MIB, 64 * MIB), "{memory}");
    assert_eq!(balloon(&vm, "auto").0, Some(0));
    let memory = vm.wait_for_memory("no balloon", |memory| inflated(memory) == 0);
    assert!(memory["pool"]["manual_balloon_bytes"].is_null(), "{memory}");

    let (status, output) = balloon(&vm, "129M");
    assert!(status == Some(1) && output.contains("the guest has 128"), "{output}");
    assert_eq!(balloon(&vm, "much").0, Some(2));
    ask(&vm.socket(), "PATCH", "/memory", r#"{"resident_bytes": 67108864}"#).expect_refusal(400, "is in a pool");
    vm.stop();
}

#[test]
fn without_a_pool_nobody_has_the_balloon() {
    let mut vm = PagedVm::start(PROGRAM, &[]);
    vm.wait_for_verifies(1);
    assert_eq!(balloon(&vm, "16M").0, Some(0));
    let (status, output) = balloon(&vm, "auto");
    assert!(status == Some(1) && output.contains("in no pool"), "{output}");
    vm.stop();
}
