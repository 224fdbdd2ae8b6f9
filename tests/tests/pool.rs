//! VMs that share a budget: who gives, how much, by which means, and who is let in.

use cistern_tests::paged::MIB;
use cistern_tests::pool::{Look, TestPool, in_mib, is_within};
use cistern_tests::process::Finished;

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
    let is_settled =
        |look: &Look| is_within(5, look.pss_bytes, look.due_bytes) && is_within(5, look.grant_bytes(), look.due_bytes);
    looks.iter().all(is_settled)
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
        are_settled(looks) && looks.iter().all(|look| is_within(5, look.pss_bytes, half_bytes))
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
        are_settled(looks) && looks[worker].pss_bytes * 2 > looks[1 - worker].pss_bytes * 3
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
