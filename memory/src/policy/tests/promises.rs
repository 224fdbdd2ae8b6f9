//! What orders promise for any pool.

use proptest::prelude::*;

use super::MIB;
use crate::policy::ladder::{BalloonHealth, Orders, Pool, Standing};
use crate::policy::watermark::{Level, Watermarks};
use crate::ram::PAGE_SIZE;

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..20_000u64, (0..4096u64).prop_map(|mib| mib * MIB), 0..1u64 << 62, any::<u64>()]
}

prop_compose! {
    fn standing()(
        grant_bytes in size(), most_bytes in size(), charge_bytes in size(), reservation_bytes in size(), size_bytes in size(),
        ballooned_bytes in size(), guest_free_bytes in proptest::option::of(size()), balloon in 0..3usize,
        wants_growth: bool, has_backing: bool, balloon_most_bytes in size(),
    ) -> Standing {
        let balloon = [BalloonHealth::Working, BalloonHealth::Absent, BalloonHealth::Stalled][balloon];
        Standing {
            committed_bytes: 0,
            owed_bytes: 0,
            grant_bytes, most_bytes, charge_bytes, reservation_bytes, size_bytes, ballooned_bytes, guest_free_bytes, balloon,
            wants_growth, has_backing, balloon_most_bytes,
        }
    }
}

prop_compose! {
    fn pool()(
        level in 0..5usize, budget_bytes in size(), free_bytes in prop_oneof![(0..1i64 << 40), any::<i64>()],
        reserve_bytes in prop_oneof![Just(0), 0..100 * MIB, any::<u64>()],
    ) -> Pool {
        let level = Level::ALL[level];
        Pool { level, budget_bytes, free_bytes, reserve_bytes, watermarks: Watermarks::default() }
    }
}

fn sum(bytes: impl Iterator<Item = u64>) -> u128 {
    bytes.map(u128::from).sum()
}

/// What members may hold before the next round, whatever they do.
fn most(members: &[Standing], orders: &[Orders]) -> u128 {
    sum(members.iter().zip(orders).map(|(member, orders)| member.charge_bytes.max(orders.grow_to_bytes)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn growth_never_exceeds_the_budget(pool in pool(), members in proptest::collection::vec(standing(), 0..8)) {
        let orders = pool.orders(&members);
        let held = sum(members.iter().map(|member| member.charge_bytes));
        let budget = u128::from(pool.budget_bytes.saturating_sub(pool.reserve_bytes));
        prop_assert!(most(&members, &orders) <= held.max(budget));
        let free = pool.free_bytes.saturating_sub_unsigned(pool.reserve_bytes).max(0) as u128;
        prop_assert!(most(&members, &orders) <= held + free, "nor what is free");
    }

    #[test]
    fn promises_are_kept(pool in pool(), members in proptest::collection::vec(standing(), 0..8)) {
        for (member, orders) in members.iter().zip(pool.orders(&members)) {
            let promised_bytes = member.reservation_bytes.min(member.charge_bytes);
            prop_assert!(orders.reclaim_to_bytes.is_none_or(|bytes| bytes >= promised_bytes), "{member:?} {orders:?}");
            prop_assert!(orders.grow_to_bytes >= promised_bytes, "{member:?} {orders:?}");
            prop_assert!(member.has_backing || orders.reclaim_to_bytes.is_none(), "reclaim is off");
            prop_assert!(orders.unmerge_to_bytes <= orders.grow_to_bytes);
            prop_assert!(orders.balloon_target_bytes <= member.balloon_most_bytes);
            let grows = orders.balloon_target_bytes > member.ballooned_bytes;
            prop_assert!(!grows || member.balloon == BalloonHealth::Working && member.charge_bytes > member.grant_bytes);
        }
    }

    /// What waits with its faults backed has room or makes it itself.
    #[test]
    fn backed_growth_has_a_way_out(pool in pool(), members in proptest::collection::vec(standing(), 0..8)) {
        for (member, orders) in members.iter().zip(pool.orders(&members)) {
            if member.wants_growth && member.has_backing {
                let grows = orders.grow_to_bytes >= member.charge_bytes.saturating_add(PAGE_SIZE);
                let exchanges = orders.reclaim_to_bytes.is_some_and(|bytes| bytes <= orders.grow_to_bytes);
                prop_assert!(exchanges || grows && pool.level < Level::Hard, "{member:?} {orders:?}");
            }
        }
    }

    /// Where nobody can be reclaimed for it, only a member's own excess keeps it waiting.
    #[test]
    fn unbacked_growth_waits_for_others(pool in pool(), members in proptest::collection::vec(standing(), 1..8)) {
        let orders = pool.orders(&members);
        let held = sum(members.iter().map(|member| member.charge_bytes));
        let takes = members.iter().zip(&orders).any(|(member, orders)| {
            orders.reclaim_to_bytes.is_some_and(|bytes| bytes < member.charge_bytes)
        });
        let can_give = members.iter().any(|member| member.has_backing && member.charge_bytes > member.grant_bytes.max(member.reservation_bytes));
        let unbacked = members.iter().zip(&orders).any(|(member, orders)| {
            member.wants_growth && !member.has_backing && orders.grow_to_bytes < member.charge_bytes.saturating_add(PAGE_SIZE)
        });
        // Beyond the budget memory is short without doubt.
        if unbacked && can_give && held > u128::from(pool.budget_bytes) {
            prop_assert!(takes, "{:?}", orders);
        }
    }

    #[test]
    fn high_takes_nothing_from_those_that_do_not_wait(pool in pool(), members in proptest::collection::vec(standing(), 0..8)) {
        let pool = Pool { level: Level::High, ..pool };
        let members: Vec<Standing> = members.into_iter().map(|member| Standing { wants_growth: false, ..member }).collect();
        for (member, orders) in members.iter().zip(pool.orders(&members)) {
            prop_assert_eq!(orders.reclaim_to_bytes, None);
            prop_assert!(orders.balloon_target_bytes <= member.ballooned_bytes);
            prop_assert!(orders.grow_to_bytes >= member.charge_bytes);
        }
    }

    #[test]
    fn who_may_not_grow_does_not(pool in pool(), members in proptest::collection::vec(standing(), 0..8)) {
        let stop = Pool { level: Level::Stop, ..pool }.orders(&members);
        let low = Pool { level: Level::Low, ..pool }.orders(&members);
        for ((member, stop), low) in members.iter().zip(stop).zip(low) {
            prop_assert!(stop.grow_to_bytes <= member.charge_bytes.max(member.reservation_bytes));
            let entitled_bytes = member.grant_bytes.max(member.reservation_bytes);
            let is_above = member.charge_bytes > entitled_bytes;
            prop_assert!(!is_above || low.grow_to_bytes <= entitled_bytes && stop.grow_to_bytes <= entitled_bytes);
        }
    }
}
