//! Cold pages leave a guest although nobody needs the memory yet: slowly, and not those it works with.

use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::cycles::{returned_pages, stored_pages};
use cistern_tests::estimates::WalkingVm;
use cistern_tests::paged::{MIB, counter, without_histograms};
use cistern_tests::process::LIMIT;

/// Touches most of its memory once, and goes on with a sixth of that. What has left comes back in the end, to be verified.
const PROGRAM: &str = "fill:96M,text=100,seed=1;walk:16M,secs=40,write=30;verify;idle:1000000";

/// What is taken in a step of 6 s, at most: a hundredth. A step may be seen late, and a period may be a little longer.
const STEP_PARTS: u64 = 100;
const STEP: Duration = Duration::from_secs(6);

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(200);

#[test]
fn cold_pages_leave_slowly_and_those_in_use_stay() {
    let arguments = ["--memory", "128M", "--reclaim", "proactive", "--sample-period", "1s"];
    let mut vm = WalkingVm::start(PROGRAM, &arguments);
    let deadline = Instant::now() + LIMIT;
    while vm.reports("fill").is_empty() {
        assert!(Instant::now() < deadline && !vm.vm.running.has_ended(), "no fill");
        thread::sleep(INTERVAL);
    }
    // While it walks, and no longer: the look counts if the walk goes on after it.
    let started = Instant::now();
    let mut walked = None;
    loop {
        let memory = vm.vm.memory();
        if !vm.reports("walk").is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "no end of the walk");
        walked = Some((started.elapsed(), memory));
        thread::sleep(INTERVAL);
    }
    let (passed, memory) = walked.expect("it was looked while it walked");
    let (stored, returned) = (stored_pages(&memory), returned_pages(&memory));
    let text = without_histograms(memory.clone());
    println!("{stored} pages in {passed:?}, {returned} back, {} soon", counter(&memory, "refaults.soon"));

    // Nobody was short of anything.
    assert!(memory["pool"]["level"] == "high" && memory["pool"]["levels"][1]["entered"] == 0, "{text}");
    // They leave, no faster than a hundredth at a time.
    let steps = passed.as_secs().div_ceil(STEP.as_secs());
    let most_pages = steps * (128 * MIB / STEP_PARTS / 4096);
    assert!(stored > 0 && stored <= most_pages, "{stored} of at most {most_pages} pages in {passed:?}: {text}");
    // What it works with is not taken, or is at once too dear to take more of.
    assert!(returned * 20 <= stored && counter(&memory, "refaults.soon") * 20 <= stored, "{stored}: {text}");

    while vm.reports("verify").is_empty() {
        assert!(Instant::now() < deadline && !vm.vm.running.has_ended(), "no verify");
        thread::sleep(INTERVAL);
    }
    let verify = vm.reports("verify").remove(0);
    assert!(verify["bad"] == 0 && counter(&verify, "pages") == 96 * MIB / 4096, "{verify}");
    assert!(vm.reports("walk").iter().all(|walk| walk["bad"] == 0), "{:?}", vm.reports("walk"));
    // They had left indeed.
    let after = vm.vm.memory();
    assert!(returned_pages(&after) > returned, "{}", without_histograms(after));
    vm.vm.stop();
}
