//! How much memory a guest works with, as it is estimated while it does. How exact that is the bench `activity` says.

use cistern_tests::estimates::{Period, WalkingVm, median};

/// The guest, and how far the estimate may be off: a tenth of it.
const GUEST_MIB: u64 = 512;
const ERROR_MIB: u64 = GUEST_MIB / 10;

/// Rises, goes on without writing, falls.
const PROGRAM: &str = "fill:300M,text=100,seed=1;walk:50M,secs=12,write=30;walk:250M,secs=10,write=60;\
                       walk:250M,secs=14;walk:50M,secs=14;idle:1000000";

/// What each walk works with, and the whole periods after which it is known: at once upward, and by the half-life of 1.4
/// periods downward.
const WALKS: [(u64, usize); 4] = [(50, 4), (250, 1), (250, 0), (50, 4)];

#[test]
fn the_estimate_follows_a_guest_up_and_down() {
    let mut vm = WalkingVm::start(PROGRAM, &["--memory", "512M", "--track", "--sample-period", "1s"]);
    let periods = vm.observe(WALKS.len());
    vm.vm.stop();
    let of_walk = |walk: usize, settling: usize| -> Vec<Period> {
        periods.iter().copied().filter(|period| period.walk == walk && period.is_whole).skip(settling).collect()
    };
    for (walk, (expected_mib, settling)) in WALKS.into_iter().enumerate() {
        let settled = of_walk(walk, settling);
        println!("walk {walk}, {expected_mib} MiB: {settled:?}");
        assert!(settled.len() >= 2, "{periods:?}");
        // The one in the middle: what a busy host keeps from running touches nothing, and that is seen too.
        for estimate in [|period: &Period| period.active_mib, |period: &Period| period.sampled_mib] {
            let estimate = median(settled.iter().map(estimate).collect()).expect("there are some");
            assert!(estimate.abs_diff(expected_mib) <= ERROR_MIB, "walk {walk}, {expected_mib} MiB: {settled:?}");
        }
    }
    // The log follows writes, up and down; a walk that only reads is work, and no writing.
    let written = |walk: usize, settling: usize| {
        let values = of_walk(walk, settling).iter().filter_map(|period| period.written_mib).collect();
        median(values).unwrap_or_else(|| panic!("no writes watched: {periods:?}"))
    };
    assert!(written(0, 4).abs_diff(50) <= ERROR_MIB && written(1, 1).abs_diff(250) <= ERROR_MIB, "{periods:?}");
    assert!(written(2, 6) < 50, "{periods:?}");
}
