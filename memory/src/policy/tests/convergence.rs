//! Thousands of guests: their charges come to their grants and stay there.

use super::MIB;
use super::simulator::{Balloon, Guest, Numbers, Simulator};

/// Rounds in which charges come to the grants.
const ROUNDS: usize = 20;

/// A pool of `members` guests from any start that keeps the budget.
fn pool(numbers: &mut Numbers, members: u64) -> Simulator {
    let guests: Vec<Guest> = (0..members).map(|_| guest(numbers)).collect();
    let sizes: u64 = guests.iter().map(|guest| guest.size_bytes).sum();
    // From far too little to a little more than enough.
    let mut pool = Simulator::new(sizes / 4 + numbers.up_to(sizes), guests);
    pool.tax = (numbers.up_to(99) as u8).try_into().unwrap();
    pool.reserve_bytes = numbers.up_to(pool.budget_bytes / 100);
    start(numbers, &mut pool);
    pool
}

fn guest(numbers: &mut Numbers) -> Guest {
    let size_bytes = (16 + numbers.up_to(2000)) * MIB;
    let touched_bytes = numbers.up_to(size_bytes);
    Guest {
        shares: if numbers.once_in(20) { 0 } else { 1 + numbers.up_to(1000) },
        reservation_bytes: if numbers.once_in(2) { numbers.up_to(size_bytes / 8) } else { 0 },
        touched_bytes,
        demand_bytes: touched_bytes,
        active_bytes: numbers.up_to(size_bytes),
        balloon: [Balloon::Prompt, Balloon::Useless, Balloon::Absent][numbers.up_to(2) as usize],
        ..Guest::new(size_bytes, 0)
    }
}

/// Deals the budget out at random, sometimes nearly all of it to the first who can take it.
fn start(numbers: &mut Numbers, pool: &mut Simulator) {
    let even = numbers.once_in(2);
    let mut left_bytes = numbers.up_to(pool.budget_bytes - pool.reserve_bytes);
    for guest in &mut pool.guests {
        if guest.balloon != Balloon::Absent && numbers.once_in(2) {
            guest.ballooned_bytes = numbers.up_to(guest.size_bytes / 2);
        }
        let most_bytes = guest.touched_bytes.min(guest.size_bytes - guest.ballooned_bytes).min(left_bytes);
        guest.charge_bytes = if even { numbers.up_to(most_bytes) } else { most_bytes };
        left_bytes -= guest.charge_bytes;
    }
}

#[test]
fn charges_come_to_the_grants_from_any_start_and_stay() {
    for seed in 0..500 {
        let mut numbers = Numbers(seed);
        let members = if seed == 0 { 3000 } else { 1 + numbers.up_to(23) };
        let mut pool = pool(&mut numbers, members);
        let began = pool.clone();
        for _ in 0..ROUNDS {
            pool.round();
        }
        assert!(pool.furthest() <= 0.01, "seed {seed}: {} from the grants: {began:#?}\n{pool:#?}", pool.furthest());
        for _ in 0..ROUNDS {
            let before = pool.clone();
            pool.round();
            let moved =
                pool.guests.iter().zip(&before.guests).map(|(now, then)| now.charge_bytes.abs_diff(then.charge_bytes));
            let moved = moved.max().unwrap_or(0) as f64 / pool.budget_bytes as f64;
            assert!(moved <= 0.001, "seed {seed}: a charge moved by {moved}: {before:#?}\n{pool:#?}");
        }
        assert!(pool.furthest() <= 0.01, "seed {seed}: {} from the grants later: {pool:#?}", pool.furthest());
    }
}

#[test]
fn charges_follow_when_roles_change() {
    for seed in 0..100 {
        let mut numbers = Numbers(1 << 32 | seed);
        let members = 2 + numbers.up_to(14);
        let mut pool = pool(&mut numbers, members);
        for change in 0..5 {
            for guest in &mut pool.guests {
                guest.active_bytes = numbers.up_to(guest.size_bytes);
                guest.shares = 1 + numbers.up_to(1000);
            }
            for _ in 0..ROUNDS {
                pool.round();
            }
            assert!(
                pool.furthest() <= 0.01,
                "seed {seed}, change {change}: {} from the grants: {pool:#?}",
                pool.furthest()
            );
        }
    }
}

/// Guests with and without backing and balloons, whose wishes change all the time.
#[test]
fn nobody_waits_for_ever() {
    for seed in 0..300 {
        let mut numbers = Numbers(2 << 32 | seed);
        let members = 2 + numbers.up_to(14);
        let mut pool = pool(&mut numbers, members);
        // Guests that nothing can be taken from are no more than fit.
        let mut unbacked_bytes = pool.budget_bytes / 2;
        for guest in &mut pool.guests {
            let promised_bytes = guest.size_bytes + guest.reservation_bytes;
            if numbers.once_in(3) && promised_bytes <= unbacked_bytes {
                unbacked_bytes -= promised_bytes;
                guest.has_backing = false;
            }
        }
        pool.reserve_bytes = numbers.up_to(pool.budget_bytes / 20);
        for round in 0..200 {
            if numbers.once_in(10) {
                for guest in &mut pool.guests {
                    guest.demand_bytes = numbers.up_to(guest.size_bytes);
                    guest.active_bytes = numbers.up_to(guest.demand_bytes);
                }
            }
            pool.round();
            let starved = pool.guests.iter().find(|guest| guest.starved_rounds > 10);
            assert!(starved.is_none(), "seed {seed}, round {round}: {starved:#?} in {pool:#?}");
        }
    }
}
