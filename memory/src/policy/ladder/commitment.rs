//! What was given to one is not given to another before it is known to have been given up.

use super::{Pool, Standing, divide, unsigned};

/// How far each member may grow now, when it should be `wanted_bytes`: less where others still hold what it is to get.
/// Lowering takes effect at once for its member, and for others once that says so.
pub(super) fn committed(pool: &Pool, members: &[Standing], wanted_bytes: &[u64]) -> Vec<u64> {
    let held: Vec<u64> = members.iter().map(|member| member.committed_bytes.max(member.charge_bytes)).collect();
    let all_bytes: i128 = held.iter().map(|&bytes| i128::from(bytes)).sum();
    let left_bytes = unsigned(i128::from(pool.budget_bytes) - i128::from(pool.reserve_bytes) - all_bytes);
    let raises: Vec<u64> = wanted_bytes.iter().zip(&held).map(|(wanted, held)| wanted.saturating_sub(*held)).collect();
    let raised = divide(left_bytes, &raises);
    let told = wanted_bytes.iter().zip(held).zip(raised);
    told.map(|((&wanted_bytes, held_bytes), raise_bytes)| wanted_bytes.min(held_bytes + raise_bytes)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::watermark::{Level, Watermarks};

    fn pool(budget_bytes: u64) -> Pool {
        Pool { level: Level::High, budget_bytes, free_bytes: 0, reserve_bytes: 10, watermarks: Watermarks::default() }
    }

    fn holding(charge_bytes: u64, committed_bytes: u64) -> Standing {
        Standing { charge_bytes, committed_bytes, ..Standing::default() }
    }

    #[test]
    fn what_one_gives_up_another_gets_later() {
        let members = [holding(100, 500), holding(300, 300)];
        assert_eq!(committed(&pool(910), &members, &[200, 700]), [200, 400], "100 are nobody's");
        let members = [holding(100, 200), holding(300, 400)];
        assert_eq!(committed(&pool(910), &members, &[200, 700]), [200, 700]);
        assert_eq!(committed(&pool(500), &members, &[300, 700]), [200, 400], "nothing is left");
    }

    proptest! {
        #[test]
        fn the_budget_holds_whatever_was_told_before(
            members in prop::collection::vec((0..1000_u64, 0..1000_u64, 0..1000_u64), 1..8),
            budget_bytes in 10..4000_u64,
        ) {
            let standings: Vec<_> = members.iter().map(|&(charge, held, _)| holding(charge, held)).collect();
            let wanted: Vec<_> = members.iter().map(|&(.., wanted)| wanted).collect();
            let told = committed(&pool(budget_bytes), &standings, &wanted);
            let before: u64 = members.iter().map(|&(charge, held, _)| held.max(charge)).sum();
            let after: u64 = members.iter().zip(&told).map(|(&(charge, held, _), &told)| held.max(charge).max(told)).sum();
            prop_assert!(after <= before.max(budget_bytes - 10));
            prop_assert!(told.iter().zip(wanted).all(|(&told, wanted)| told <= wanted));
        }
    }
}
