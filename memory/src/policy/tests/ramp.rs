//! One guest wakes and grows while another is idle, faster and faster.

use super::MIB;
use super::simulator::{Balloon, Guest, Simulator};
use crate::policy::watermark::Level;
use crate::ram::PAGE_SIZE;

/// An idle guest that holds 500 MiB, and one that has just begun, in a budget of 1000.
fn pool(idle: Balloon) -> Simulator {
    let idle = Guest { active_bytes: 0, demand_bytes: 0, balloon: idle, ..Guest::new(1000 * MIB, 500 * MIB) };
    let idle = Guest { touched_bytes: 500 * MIB, ..idle };
    let growing = Guest { touched_bytes: 0, active_bytes: 0, demand_bytes: 0, ..Guest::new(1000 * MIB, 0) };
    Simulator::new(1000 * MIB, vec![idle, growing])
}

/// Lets the second guest grow by so much a round up to 700 MiB; the levels that came, each once in a row, and the rounds
/// it took.
fn ramp(pool: &mut Simulator, mib_a_round: u64) -> (Vec<Level>, u64) {
    let mut levels = vec![pool.level];
    for round in 1..200 {
        let growing = &mut pool.guests[1];
        growing.demand_bytes = (growing.charge_bytes + mib_a_round * MIB).min(700 * MIB);
        growing.active_bytes = growing.charge_bytes;
        pool.round();
        levels.push(pool.level);
        if pool.guests[1].charge_bytes == 700 * MIB && pool.held_bytes() < 940 * MIB + PAGE_SIZE {
            levels.dedup();
            return (levels, round);
        }
    }
    panic!("never done: {pool:#?}");
}

#[test]
fn a_slow_ramp_needs_nothing_but_the_balloon() {
    let mut pool = pool(Balloon::Prompt);
    let (levels, rounds) = ramp(&mut pool, 10);
    assert_eq!(levels, [Level::High, Level::Soft]);

    assert_eq!(rounds, 71, "it never waited");
    assert_eq!(pool.guests[0].evicted_bytes, 0);
}

#[test]
fn a_ramp_faster_than_the_balloon_needs_the_pager() {
    let mut pool = pool(Balloon::Prompt);
    pool.inflate_bytes = 10 * MIB;
    let (levels, rounds) = ramp(&mut pool, 30);
    assert_eq!(levels.iter().max(), Some(&Level::Hard));

    assert!(pool.guests[0].evicted_bytes > 0);
    assert!(rounds <= 28, "{rounds}");
}

#[test]
fn a_ramp_faster_than_reclaim_goes_as_fast_as_that() {
    let mut pool = pool(Balloon::Absent);
    pool.evict_bytes = 5 * MIB;
    let (levels, rounds) = ramp(&mut pool, 300);
    assert!(levels.contains(&Level::Low), "{levels:?}");
    // 260 MiB must be evicted, 5 a round.
    assert!((52..=60).contains(&rounds), "{rounds}");
}
