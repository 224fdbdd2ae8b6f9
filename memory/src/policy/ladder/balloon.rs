//! What each balloon should hold.

use super::{BalloonHealth, Level, Pool, Standing, divide, unsigned};
use crate::ram::PAGE_SIZE;

/// A balloon grows by at most this part of its guest in a round, so that the guest can follow.
const STEP_PART: u64 = 16;

/// A balloon takes at most this part of its guest beyond what the guest says is free: enough for it to page out what it
/// does not use, too little to hurt in one round.
const PRESS_PART: u64 = 64;

/// Whether a balloon can be asked for more.
pub(super) fn has_room(member: &Standing) -> bool {
    member.balloon == BalloonHealth::Working
        && member.ballooned_bytes.saturating_add(PAGE_SIZE) <= member.balloon_most_bytes
}

/// The targets. Of the parts to be given, those that balloons are asked for are set to 0: the others are the pager's.
pub(super) fn targets(pool: &Pool, level: Level, members: &[Standing], parts: &mut [u64]) -> Vec<u64> {
    let spare = spare(pool, level, members);
    let target = |((member, part), spare): ((&Standing, &mut u64), u64)| {
        let kept_bytes = member.ballooned_bytes - demanded_bytes(member).max(spare);
        let asked_bytes = match has_room(member) {
            true => std::mem::take(part).min(step_bytes(member)),
            false => 0,
        };
        kept_bytes.saturating_add(asked_bytes).min(member.balloon_most_bytes) / PAGE_SIZE * PAGE_SIZE
    };
    members.iter().zip(parts).zip(spare).map(target).collect()
}

fn step_bytes(member: &Standing) -> u64 {
    let gentle = |free_bytes: u64| free_bytes.saturating_add(member.size_bytes / PRESS_PART);
    (member.size_bytes / STEP_PART).min(member.guest_free_bytes.map_or(u64::MAX, gentle))
}

/// What a guest under its grant gets back at once, where it has not as much free as it may take.
fn demanded_bytes(member: &Standing) -> u64 {
    member.lacking_bytes().saturating_sub(member.guest_free_bytes.unwrap_or(0)).min(member.ballooned_bytes)
}

/// What each balloon gives back because there is more than enough.
fn spare(pool: &Pool, level: Level, members: &[Standing]) -> Vec<u64> {
    if level > Level::High {
        return vec![0; members.len()];
    }
    let enough_bytes = pool.watermarks.entry_bytes(Level::High, pool.budget_bytes);
    let spare_bytes = unsigned(pool.free_bytes(members) - i128::from(enough_bytes));
    let returned = |member: &Standing| if member.excess_bytes() > 0 { 0 } else { member.ballooned_bytes };
    divide(spare_bytes, &members.iter().map(returned).collect::<Vec<_>>())
}
