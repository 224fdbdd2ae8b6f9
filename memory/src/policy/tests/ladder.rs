//! What members are told, level by level, in a budget of 1000 MiB: the lines are at 60, 40, 20 and 10.

use super::MIB;
use crate::policy::ladder::{BalloonHealth, Orders, Pool, Standing};
use crate::policy::watermark::{Level, Watermarks};

const BUDGET_BYTES: u64 = 1000 * MIB;

/// A squeezed member of 1000 MiB whose guest says nothing.
fn member(charge_mib: u64, grant_mib: u64) -> Standing {
    Standing {
        grant_bytes: grant_mib * MIB,
        most_bytes: 1000 * MIB,
        charge_bytes: charge_mib * MIB,
        size_bytes: 1000 * MIB,
        balloon_most_bytes: 650 * MIB,
        balloon: BalloonHealth::Working,
        has_backing: true,
        ..Standing::default()
    }
}

fn waiting(member: Standing) -> Standing {
    Standing { wants_growth: true, ..member }
}

fn without_balloon(member: Standing) -> Standing {
    Standing { balloon: BalloonHealth::Absent, ..member }
}

fn without_backing(member: Standing) -> Standing {
    Standing { has_backing: false, ..member }
}

/// The orders at a level, free memory being what the charges leave.
fn orders(level: Level, members: &[Standing]) -> Vec<Orders> {
    let charges: u64 = members.iter().map(|member| member.charge_bytes).sum();
    let pool = Pool {
        level,
        budget_bytes: BUDGET_BYTES,
        free_bytes: BUDGET_BYTES as i64 - charges as i64,
        reserve_bytes: 0,
        watermarks: Watermarks::default(),
    };
    pool.orders(members)
}

/// MiB of each balloon's target, rounded.
fn targets_mib(orders: &[Orders]) -> Vec<u64> {
    orders.iter().map(|orders| (orders.balloon_target_bytes + MIB / 2) / MIB).collect()
}

/// MiB that each keeps, rounded; 0 for no order.
fn kept_mib(orders: &[Orders]) -> Vec<u64> {
    orders.iter().map(|orders| (orders.reclaim_to_bytes.unwrap_or(0) + MIB / 2) / MIB).collect()
}

/// MiB that each may grow to, rounded.
fn grow_to_mib(orders: &[Orders]) -> Vec<u64> {
    orders.iter().map(|orders| (orders.grow_to_bytes + MIB / 2) / MIB).collect()
}

#[test]
fn high_takes_nothing_and_gives_balloons_back() {
    let ballooned = |charge, grant, mib: u64| Standing { ballooned_bytes: mib * MIB, ..member(charge, grant) };
    let members = [ballooned(200, 250, 100), ballooned(300, 300, 100), ballooned(335, 300, 100)];
    let orders = orders(Level::High, &members);
    // 100 MiB beyond where high is clear: half to each that is not above its grant, the first wanting no more than that.
    assert_eq!(targets_mib(&orders), [50, 50, 100]);
    assert_eq!(kept_mib(&orders), [0, 0, 0]);
}

#[test]
fn what_is_above_the_high_line_is_for_those_that_wait() {
    let mut members = [member(90, 90); 10];
    // 40 MiB of 100 are.
    assert_eq!(grow_to_mib(&orders(Level::High, &members)), [94; 10]);
    members[3] = waiting(members[3]);
    let told = orders(Level::High, &members);
    assert_eq!(grow_to_mib(&told)[3], 130);
    assert_eq!(told[4].grow_to_bytes, 90 * MIB + MIB / 2, "an eighth, to begin with");
    members[4] = waiting(members[4]);
    assert_eq!(grow_to_mib(&orders(Level::High, &members))[3..5], [110, 110]);
}

#[test]
fn a_guest_under_its_grant_gets_its_balloon_back_at_any_level() {
    let squeezed = |free_mib: Option<u64>| Standing {
        ballooned_bytes: 300 * MIB,
        guest_free_bytes: free_mib.map(|mib| mib * MIB),
        ..member(100, 300)
    };
    for level in Level::ALL {
        let orders = orders(level, &[squeezed(None), squeezed(Some(0)), squeezed(Some(150)), member(690, 100)]);
        assert_eq!(targets_mib(&orders)[..3], [100, 100, 250], "{level}");
    }
}

#[test]
fn soft_asks_balloons_in_proportion_to_the_excess() {
    let members = [member(400, 300), member(350, 300), member(210, 300)];
    let orders = orders(Level::Soft, &members);
    // 20 MiB are missing to the high line.
    assert_eq!(targets_mib(&orders), [13, 7, 0]);
    assert_eq!(kept_mib(&orders), [0, 0, 0]);
}

#[test]
fn a_balloon_is_asked_gently_and_not_beyond_its_most() {
    let alone = |change: fn(&mut Standing)| {
        let mut member = member(500, 200);
        change(&mut member);
        targets_mib(&orders(Level::Low, &[member, without_balloon(without_backing(self::member(500, 600)))]))[0]
    };
    assert_eq!(alone(|_| ()), 60, "all that is missing");
    assert_eq!(alone(|member| member.size_bytes = 640 * MIB), 40, "1/16 of the guest at once");
    assert_eq!(alone(|member| member.guest_free_bytes = Some(10 * MIB)), 26, "1/64 beyond what is free");
    assert_eq!(alone(|member| member.ballooned_bytes = 640 * MIB), 650, "65 % of the guest");
    assert_eq!(alone(|member| member.ballooned_bytes = 700 * MIB), 650, "an earlier balloon is let down to that");
}

#[test]
fn the_pager_takes_what_balloons_cannot() {
    let full = Standing { ballooned_bytes: 650 * MIB, ..member(250, 200) };
    let stalled = Standing { balloon: BalloonHealth::Stalled, ballooned_bytes: 30 * MIB, ..member(250, 200) };
    let members = [full, stalled, without_balloon(member(250, 200)), member(210, 200)];
    let soft = orders(Level::Soft, &members);
    // 20 MiB are missing, of an excess of 160.
    assert_eq!(kept_mib(&soft), [244, 244, 244, 0]);
    assert_eq!(targets_mib(&soft), [650, 30, 0, 1]);
    let unbacked = members.map(without_backing);
    let soft = orders(Level::Soft, &unbacked);
    assert!(soft.iter().all(|orders| orders.reclaim_to_bytes.is_none()), "reclaim is off");
    assert_eq!(targets_mib(&soft), [650, 30, 0, 10], "the only one that can give");
}

#[test]
fn hard_reclaims_to_above_the_soft_line_and_leaves_the_rest_to_balloons() {
    let members = [member(500, 400), member(275, 250), member(200, 300)];
    let hard = orders(Level::Hard, &members);
    // Of 25 MiB free, 20 are missing to where soft is clear and 35 to the high line.
    assert_eq!(kept_mib(&hard), [484, 271, 0]);
    assert_eq!(targets_mib(&hard), [28, 7, 0]);
    // What a member lacks of its grant and asks for is found too.
    let hard = orders(Level::Hard, &[member(500, 400), member(275, 250), waiting(member(200, 240))]);
    assert_eq!(kept_mib(&hard), [452, 263, 200 + 14]);
}

#[test]
fn where_grants_are_stale_all_give_but_what_is_promised() {
    let promised = Standing { reservation_bytes: 300 * MIB, ..member(300, 300) };
    let members = [member(400, 400), member(290, 290), promised];
    let hard = orders(Level::Hard, &members);
    // 35 MiB are missing, and nobody is above its grant.
    assert_eq!(kept_mib(&hard), [380, 275, 0]);
    assert_eq!(kept_mib(&orders(Level::Soft, &members)), [0, 0, 0]);
}

#[test]
fn low_sends_members_back_to_their_grants() {
    let low = orders(Level::Low, &[waiting(member(500, 400)), member(285, 260), waiting(member(200, 280))]);
    assert_eq!(kept_mib(&low)[..2], [400, 260]);
    assert_eq!(grow_to_mib(&low), [400, 260, 215], "they wait, and all that is free is for who is below");
}

#[test]
fn stop_lets_nobody_grow_beyond_its_reservation() {
    let promised = Standing { reservation_bytes: 150 * MIB, ..waiting(member(100, 200)) };
    let stop = orders(Level::Stop, &[waiting(member(500, 400)), waiting(member(395, 450)), promised]);
    assert_eq!(kept_mib(&stop), [400, 395, 105], "what waits exchanges pages, what is too much goes");
    assert_eq!(grow_to_mib(&stop), [400, 395, 105], "all that is free is promised");
}

#[test]
fn free_memory_is_dealt_down_to_the_line_below_the_level() {
    // 58 MiB free at soft: 38 down to the line at 20.
    let unsqueezed = |charge| Standing { most_bytes: charge * MIB, ..member(charge, charge) };
    let dealt = orders(Level::Soft, &[unsqueezed(471), unsqueezed(471)]);
    assert_eq!(grow_to_mib(&dealt), [471 + 19, 471 + 19], "evenly while nobody asks");
    let dealt = orders(Level::Soft, &[waiting(unsqueezed(471)), unsqueezed(471)]);
    assert_eq!(grow_to_mib(&dealt), [471 + 29, 471 + 10], "more to those that ask");
    let dealt = orders(Level::Soft, &[waiting(member(471, 600)), waiting(member(471, 300))]);
    assert_eq!(grow_to_mib(&dealt), [471 + 38, 471], "a squeezed guest does not outgrow its grant");
    assert_eq!(targets_mib(&dealt), [0, 63], "it gives what the other wants, a step of its balloon at once");
    assert_eq!(kept_mib(&dealt), [0, 471], "it goes on with what it has");
}

#[test]
fn what_is_promised_is_dealt_first_and_below_any_line() {
    let promised = Standing { reservation_bytes: 112 * MIB, ..waiting(member(100, 112)) };
    // 15 MiB are free, 5 of them above the line.
    assert_eq!(grow_to_mib(&orders(Level::Hard, &[promised, waiting(member(885, 900))])), [112, 885]);
}

#[test]
fn a_squeezed_guest_that_waits_exchanges_pages_at_any_level() {
    let members = [waiting(member(470, 470)), member(470, 470)];
    let soft = orders(Level::Soft, &members);
    assert_eq!((kept_mib(&soft), grow_to_mib(&soft)[0]), (vec![470, 0], 470));
}

#[test]
fn a_reserve_beyond_the_lines_is_no_deadlock() {
    let members = [without_balloon(member(600, 300)), waiting(member(330, 600))];
    let pool = Pool {
        level: Level::High,
        budget_bytes: BUDGET_BYTES,
        free_bytes: 70 * MIB as i64,
        reserve_bytes: 70 * MIB,
        watermarks: Watermarks::default(),
    };
    let orders = pool.orders(&members);
    assert_eq!(grow_to_mib(&orders), [600, 330], "there is nothing to deal");
    // The goal is 20 MiB beyond the reserve; an eighth of the budget is wanted.
    assert_eq!(kept_mib(&orders)[0], 600 - 20 - 125);
}

#[test]
fn orders_are_written_in_reports() {
    let orders = Orders { balloon_target_bytes: 4096, reclaim_to_bytes: None, grow_to_bytes: 2, unmerge_to_bytes: 1 };
    let text = r#"{"balloon_target_bytes":4096,"reclaim_to_bytes":null,"grow_to_bytes":2,"unmerge_to_bytes":1}"#;
    assert_eq!(serde_json::to_string(&orders).unwrap(), text);
    assert_eq!(serde_json::to_string(&BalloonHealth::Stalled).unwrap(), r#""stalled""#);
}
