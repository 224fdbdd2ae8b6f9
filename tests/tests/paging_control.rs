//! Limits that change while the guest runs, and ends that come while it waits for memory.

use std::time::Duration;

use cistern_tests::control::ask;
use cistern_tests::cycles::HOMES;
use cistern_tests::paged::{MIB, PagedVm, counter, expect_homes, without_histograms};
use serde_json::Value;

/// Churns for as long as it runs.
const ENDLESS: &str = "fill:64M,churn,seed=7;repeat:1000000,(walk:64M,touches=10000,write=100;verify)";

/// An end that was asked for comes in seconds, the five of the power button among them; a busy host gets many more. A
/// deadlock has no end.
const PROMPT: Duration = Duration::from_secs(120);

/// Ways to end a VM.
const ENDS: [(&str, fn(&PagedVm)); 3] = [
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
            vm.wait_for_memory("pages from every home", |memory| {
                HOMES.iter().all(|home| counter(memory, &format!("refaults.{home}.pages")) > 500)
            });
            end(&vm);
            let finished = vm.running.finish(PROMPT);
            assert_eq!(finished.status, Some(0), "{how}: {finished:?}");
        }
    }
}

#[test]
fn limits_change_while_the_guest_runs() {
    for eviction in ["move", "copy"] {
        // Open, with memory in it that nobody has kept account of.
        let mut vm = PagedVm::start(ENDLESS, &["--swap", "SWAP", "--eviction", eviction]);
        vm.wait_for_verifies(1);
        let memory = vm.memory();
        assert!(memory["armed"] == false && memory["resident_limit_bytes"].is_null(), "{memory}");

        let within = |limit: u64| move |memory: &Value| counter(memory, "charge_bytes") <= limit;
        for round in 0..2 {
            for mebibytes in [32, 16, 8, 24] {
                vm.limit(Some(mebibytes * MIB));
                let memory = vm.wait_for_memory("room", within(mebibytes * MIB));
                assert_eq!(memory["armed"], true, "{memory}");
                assert_eq!(counter(&memory, "resident_limit_bytes"), mebibytes * MIB);
                vm.wait_for_verifies(2);
            }
            let memory = without_histograms(vm.memory());
            expect_homes(&memory, &HOMES);
            let out = |memory: &Value| -> u64 {
                ["aside", "zero", "duplicate", "compressed", "swapped"]
                    .map(|state| counter(memory, &format!("pages.{state}")))
                    .iter()
                    .sum()
            };
            assert!(out(&memory) > 4096, "{memory}");
            // Lifted, it lets everything home, and is open again.
            vm.limit(None);
            let memory = vm.wait_for_memory("open VM", |memory| memory["armed"] == false);
            assert!(out(&memory) == 0 && memory["resident_limit_bytes"].is_null(), "round {round}: {memory}");
            vm.wait_for_verifies(2);
        }
        vm.stop();
    }
}
