//! How far each member is evicted.

use super::{Level, Pool, Standing, divide};

/// What each member keeps, where the pager is to take something; `parts` is what balloons should have given and cannot.
pub(super) fn kept(
    pool: &Pool,
    level: Level,
    members: &[Standing],
    parts: &[u64],
    wanted_bytes: u64,
) -> Vec<Option<u64>> {
    let taken = taken(pool, level, members, wanted_bytes);
    let kept = |((member, taken_bytes), &part_bytes): ((&Standing, u64), &u64)| {
        let back_bytes = if level >= Level::Low { member.excess_bytes() } else { 0 };
        let most_bytes = taken_bytes.max(part_bytes).max(back_bytes);
        (most_bytes > 0 && member.has_backing).then(|| member.charge_bytes - most_bytes)
    };
    members.iter().zip(taken).zip(parts).map(kept).collect()
}

/// What the pager takes from each at once: as much as leaves the hard level. Members above their grants give it, and give
/// what others wait for; if that is not enough, all do.
fn taken(pool: &Pool, level: Level, members: &[Standing], wanted_bytes: u64) -> Vec<u64> {
    if level < Level::Hard {
        return vec![0; members.len()];
    }
    let clear_bytes = pool.watermarks.entry_bytes(Level::Soft, pool.budget_bytes);
    // A reserve beyond the lines must not leave growth nothing.
    let goal_bytes = clear_bytes.max(pool.reserve_bytes.saturating_add(pool.line_bytes(Level::Hard)));
    let of = |bytes: fn(&Standing) -> u64| -> Vec<u64> {
        members.iter().map(|member| if member.has_backing { bytes(member) } else { 0 }).collect()
    };
    let from_excess =
        divide(pool.missing_bytes(goal_bytes.saturating_add(wanted_bytes), members), &of(Standing::excess_bytes));

    let found_bytes = from_excess.iter().fold(0, |sum: u64, &bytes| sum.saturating_add(bytes));
    let rest_bytes = pool.missing_bytes(goal_bytes, members).saturating_sub(found_bytes);
    let unpromised = of(|member| member.charge_bytes.saturating_sub(member.reservation_bytes));
    let left: Vec<u64> = unpromised.iter().zip(&from_excess).map(|(all, taken)| all - taken).collect();
    divide(rest_bytes, &left).iter().zip(from_excess).map(|(rest, excess)| rest + excess).collect()
}
