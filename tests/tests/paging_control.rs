//! Limits that change while the guest runs, and ends that come while it waits for memory.

use std::time::Duration;

use cistern_tests::control::ask;
use cistern_tests::cycles::HOMES;
use cistern_tests::paged::{MIB, PagedVm, counter, expect_homes, without_histograms};
use serde_json::{Value, json};

/// Churns for as long as it runs.
const ENDLESS: &str = "fill:64M,churn,seed=7;repeat:1000000,(walk:64M,touches=10000,write=100;verify)";

/// An end that was asked for comes in seconds, the five of the power button among them; a busy host gets many more. A
/// deadlock has no end.
const PROMPT: Duration = Duration::from_secs(120);

/// A way to end a VM.
type End = (&'static str, fn(&PagedVm));

const ENDS: [End; 3] = [
    ("the power button, which the probe does not know", |vm| vm.running.signal(libc::SIGTERM)),
    ("two signals", |vm| (0..2).for_each(|_| vm.running.signal(libc::SIGTERM))),
    ("a stop through the socket", |vm| {
        let answer = ask(&vm.socket(), "PUT", "/actions", r#"{"action_type": "InstanceStop"}"#);
        assert_eq!(answer.status, 204, "{answer:?}");
    }),
];

#[test]
fn a_vm_that_waits_for_memory_ends_when_it_is_told_to() {
    for eviction in ["move", "copy"] {
        for (how, end) in ENDS {
            // Nearly nothing is taken from a guest that wants eight times its limit.
            let arguments =
                ["--resident", "8M", "--swap", "SWAP", "--reclaim-cpu", "1", "--eviction", eviction, "--cpus", "3"];
            let mut vm = PagedVm::start(ENDLESS, &arguments);
            let memory = vm.wait_for_memory("waiting fault", |memory| counter(memory, "refaults.waited") > 2);
            assert!(counter(&memory, "charge_bytes") > 7 * MIB, "{memory}");
            end(&vm);
            let finished = vm.running.finish(PROMPT);
            assert_eq!(finished.status, Some(0), "{how}: {finished:?}");
        }
    }
}

#[test]
fn a_vm_whose_pages_come_and_go_ends_when_it_is_told_to() {
    for eviction in ["move", "copy"] {
        for (how, end) in ENDS {
            let mut vm = PagedVm::start(ENDLESS, &["--resident", "8M", "--swap", "SWAP", "--eviction", eviction]);
            // What duplicates share is written to the swap file under such a limit, and they come from there.
            vm.wait_for_memory("pages from everywhere", |memory| {
                let pages = |home| counter(memory, &format!("refaults.{home}.pages"));
                ["zero", "compressed", "swapped"].into_iter().all(|home| pages(home) > 500)
            });
            end(&vm);
            let finished = vm.running.finish(PROMPT);
            assert_eq!(finished.status, Some(0), "{how}: {finished:?}");
        }
    }
}

/// Pages that are not in guest RAM.
fn out(memory: &Value) -> u64 {
    ["aside", "zero", "duplicate", "compressed", "swapped"]
        .map(|state| counter(memory, &format!("pages.{state}")))
        .iter()
        .sum()
}

#[test]
fn limits_change_while_the_guest_runs() {
    for eviction in ["move", "copy"] {
        // Open, with memory in it that nobody has kept account of.
        let mut vm = PagedVm::start(ENDLESS, &["--swap", "SWAP", "--eviction", eviction]);
        vm.wait_for_verifies(1);
        let memory = vm.memory();
        assert!(memory["armed"] == false && memory["resident_limit_bytes"].is_null(), "{memory}");
        // A limit that nothing is over is lifted without a trace.
        vm.limit(Some(1 << 30));
        assert_eq!(vm.memory()["armed"], true);
        vm.wait_for_verifies(2);
        vm.limit(None);
        let memory = vm.wait_for_memory("open VM", |memory| memory["armed"] == false);
        assert_eq!((counter(&memory, "evictions.aside"), out(&memory)), (0, 0), "{memory}");

        for _ in 0..2 {
            for mebibytes in [32, 16, 8, 24] {
                vm.limit(Some(mebibytes * MIB));
                let memory = vm.wait_for_memory("room", |memory| counter(memory, "charge_bytes") <= mebibytes * MIB);
                assert_eq!(
                    (&memory["armed"], counter(&memory, "resident_limit_bytes")),
                    (&json!(true), mebibytes * MIB)
                );
                vm.wait_for_verifies(2);
            }
            let memory = without_histograms(vm.memory());
            expect_homes(&memory, &HOMES);
            assert!(out(&memory) > 4096, "{memory}");
            // Lifted, what the guest touches comes home and stays. A few pages of its boot it never touches again.
            vm.limit(None);
            vm.wait_for_verifies(2);
            let memory = vm.wait_for_memory("pages at home", |memory| out(memory) < 64);
            assert!(memory["resident_limit_bytes"].is_null(), "{memory}");
            assert!(counter(&memory, "charge_bytes") >= 64 * MIB, "{memory}");
            let evicted = counter(&memory, "evictions.aside");
            vm.wait_for_verifies(2);
            assert_eq!(counter(&vm.memory(), "evictions.aside"), evicted);
        }
        vm.stop();
    }
}
