//! How far members may take back pages that they have merged: sharing that ends must hold up nobody who grows.

use super::{Level, Pool, Standing, unsigned};

/// Members unmerge at most one in so many bytes of what is spare before they have said how far they came: reports are a
/// round old, and what was taken since is not to be given again.
const STEP_PART: i128 = 4;

/// How many times over it is left free what members owe each other: it is an estimate of what others find out within seconds,
/// and is forgotten here when they should have. The less is spare the less may be wrong with it.
const OWED_TIMES: i128 = 4;

/// What each member's charge may come to by unmerging, when it may grow to `grow_to_bytes`. Who is backed gives what others
/// wait for, and exchanges pages, so for it unmerging is growth like any other. What another has unmerged nobody gets back:
/// it leaves free what is between the high line and halfway to the soft one, where balloons and pagers are asked to fill
/// that up again if any can. From there on free memory is for growth alone: the more of that is gone, the further below its
/// charge each member must come to unmerge, as charges go up and down with the estimate of what merging saves, and whoever took
/// a page each time it is down would take all.
pub(super) fn bounds(pool: &Pool, members: &[Standing], grow_to_bytes: &[u64]) -> Vec<u64> {
    let owed_bytes: i128 = members.iter().map(|member| i128::from(member.owed_bytes)).sum();
    let spare_bytes = pool.free_bytes(members) - i128::from(kept_bytes(pool)) - OWED_TIMES * owed_bytes;
    let part = if spare_bytes > 0 { STEP_PART * members.len().max(1) as i128 } else { STEP_PART };
    let step_bytes = spare_bytes / part;
    let bound = |(member, &grow_to_bytes): (&Standing, &u64)| match member.has_backing {
        true => grow_to_bytes,
        false => grow_to_bytes.min(unsigned(i128::from(member.charge_bytes) + step_bytes)),
    };
    members.iter().zip(grow_to_bytes).map(bound).collect()
}

/// Above it the level is soft at least, so that it is no matter of luck whether more is asked for.
fn kept_bytes(pool: &Pool) -> u64 {
    let (high_bytes, soft_bytes) = (pool.line_bytes(Level::High), pool.line_bytes(Level::Soft));
    soft_bytes + high_bytes.saturating_sub(soft_bytes) / 2
}

/// A member without backing leaves this part of a limit of its own.
const KEPT_PART: u64 = 20;

/// How far a member with a limit of its own may go by unmerging.
pub(crate) fn limit_bytes(limit_bytes: u64, has_backing: bool) -> u64 {
    if has_backing { limit_bytes } else { limit_bytes - limit_bytes / KEPT_PART }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::watermark::Watermarks;

    /// Of a budget of 1000 bytes: the lines are at 60, 40, 20 and 10.
    fn pool(free_bytes: i64) -> Pool {
        let watermarks = Watermarks::default();
        Pool { level: Level::High, budget_bytes: 1000, free_bytes, reserve_bytes: 0, watermarks }
    }

    fn member(charge_bytes: u64, has_backing: bool) -> Standing {
        Standing { charge_bytes, has_backing, ..Standing::default() }
    }

    #[test]
    fn who_cannot_give_leaves_room_for_growth() {
        let members = [member(500, false), member(400, false)];
        assert_eq!(bounds(&pool(98), &members, &[540, 450]), [506, 406], "a quarter of the way to 50");
        assert_eq!(bounds(&pool(98), &members, &[502, 450]), [502, 406], "nor beyond growth");
        let members = [member(500, false), member(449, false)];
        assert_eq!(bounds(&pool(51), &members, &[540, 500]), [500, 449], "less than a byte each");
        assert_eq!(bounds(&pool(45), &members, &[540, 500]), [499, 448]);
        assert_eq!(bounds(&pool(-5), &members, &[480, 449]), [480, 436], "each a quarter of what is missing below");
    }

    #[test]
    fn charges_that_go_up_and_down_take_what_is_kept_no_further_than_they_do() {
        let (budget_bytes, dip_bytes) = (100_000, 4);
        let mut held_bytes = [31_000, 31_000, 31_000];
        for round in 0..10_000 {
            let free_bytes = budget_bytes as i64 - held_bytes.iter().sum::<u64>() as i64;
            let pool = Pool { budget_bytes, ..pool(free_bytes) };
            let told = bounds(&pool, &held_bytes.map(|bytes| member(bytes, false)), &[budget_bytes; 3]);
            let charge_bytes = held_bytes[round % 3] - dip_bytes;
            held_bytes[round % 3] += told[round % 3].saturating_sub(charge_bytes);
        }
        let most_bytes = budget_bytes - kept_bytes(&Pool { budget_bytes, ..pool(0) });
        let taken_bytes = held_bytes.iter().sum::<u64>();
        let most_below_bytes = STEP_PART as u64 * (dip_bytes + 1);
        assert!((most_bytes..=most_bytes + most_below_bytes).contains(&taken_bytes), "{taken_bytes} of {most_bytes}");
    }

    #[test]
    fn what_others_do_not_know_of_yet_is_left_free() {
        let owing = |owed_bytes| Standing { owed_bytes, ..member(500, false) };
        let told = |owed_bytes| bounds(&pool(98), &[owing(owed_bytes), member(400, false)], &[540, 450]);
        assert_eq!([told(0), told(6), told(12), told(40)], [[506, 406], [503, 403], [500, 400], [472, 372]]);
    }

    #[test]
    fn who_gives_may_unmerge_as_it_may_grow() {
        let members = [member(500, true), member(480, false)];
        assert_eq!(bounds(&pool(20), &members, &[510, 485]), [510, 473]);
        assert_eq!((limit_bytes(1000, true), limit_bytes(1000, false)), (1000, 950));
    }

    proptest! {
        #[test]
        fn what_cannot_be_had_back_is_left_free(
            members in prop::collection::vec((0..500_u64, 0..200_u64), 1..8), free_bytes in -100..1000_i64,
        ) {
            let standings: Vec<_> = members.iter().map(|&(charge, _)| member(charge, false)).collect();
            let grow_to: Vec<_> = members.iter().map(|&(charge, credit)| charge + credit).collect();
            let told = bounds(&pool(free_bytes), &standings, &grow_to);
            prop_assert!(told.iter().zip(&grow_to).all(|(told, grow_to)| told <= grow_to));
            let taken: u64 = members.iter().zip(&told).map(|(&(charge, _), &told)| told.saturating_sub(charge)).sum();
            prop_assert!(taken == 0 || taken as i64 <= (free_bytes - 50) / 4);
        }

        /// Each takes all it may, and says so only every other round.
        #[test]
        fn old_reports_take_no_more(charges in prop::collection::vec(0..200_000_u64, 1..8), late in any::<u64>()) {
            let budget_bytes = 1_000_000;
            let pool = Pool { budget_bytes, free_bytes: budget_bytes as i64, ..pool(0) };
            let (mut held, mut said) = (charges.clone(), charges.clone());
            let before: u64 = charges.iter().sum();
            for round in 0..64 {
                let standings: Vec<_> = said.iter().map(|&charge| member(charge, false)).collect();
                let told = bounds(&pool, &standings, &vec![u64::MAX; said.len()]);
                for (at, bytes) in told.into_iter().enumerate() {
                    let now = held[at].max(bytes);
                    if (late >> ((at + round) % 64)) & 1 == 0 {
                        said[at] = held[at];
                    }
                    held[at] = now;
                }
            }
            let after: u64 = held.iter().sum();
            prop_assert!(after <= before.max(950_000), "{after}");
        }
    }
}
