//! What each member may grow by until the next round.

use super::{Level, Pool, Standing, divide, unsigned};

/// A squeezed member that does not wait now may begin with this part of its even share, so that it need not ask first.
const BURST_PART: u64 = 8;

/// The free memory in the course of being dealt.
struct Deal {
    left_bytes: u64,
    credits: Vec<u64>,
}

impl Deal {
    /// Gives to each what `bytes` says, as long as there is any.
    fn give(&mut self, bytes: impl IntoIterator<Item = u64>) {
        for (credit, bytes) in self.credits.iter_mut().zip(bytes) {
            let given_bytes = bytes.min(self.left_bytes);
            *credit += given_bytes;
            self.left_bytes -= given_bytes;
        }
    }
}

/// Deals free memory. What is promised comes first, out of all there is. The rest is dealt down to the line below the
/// level, so that growth alone brings the next level on and that one's means find something left: half of it evenly, for
/// bursts that have not begun; the other half to members that wait, first up to their grants, then evenly.
pub(super) fn deal(pool: &Pool, level: Level, members: &[Standing]) -> Vec<u64> {
    let free_bytes = unsigned(pool.free_bytes(members) - i128::from(pool.reserve_bytes));
    let mut deal = Deal { left_bytes: free_bytes, credits: vec![0; members.len()] };

    let if_waiting = |member: &Standing, bytes: u64| if member.wants_growth { bytes } else { 0 };
    let promised = |member: &Standing| member.reservation_bytes.saturating_sub(member.charge_bytes);
    let promises: Vec<u64> = members.iter().map(|member| if_waiting(member, promised(member))).collect();
    deal.give(divide(free_bytes, &promises));

    deal.left_bytes = deal.left_bytes.saturating_sub(pool.line_bytes(level.below()));
    let bounds = bounds(pool, level, members, deal.left_bytes);
    let rooms = |deal: &Deal| -> Vec<u64> {
        bounds.iter().zip(&deal.credits).map(|(bound, credit)| bound.saturating_sub(*credit)).collect()
    };

    evenly(&mut deal, 2, &rooms);

    let lacking = |((member, &bound_bytes), &credit_bytes): ((&Standing, &u64), &u64)| {
        if_waiting(member, member.lacking_bytes().min(bound_bytes).saturating_sub(credit_bytes))
    };
    let lacking: Vec<u64> = members.iter().zip(&bounds).zip(&deal.credits).map(lacking).collect();
    deal.give(divide(deal.left_bytes, &lacking));

    let is_wanted = members.iter().zip(rooms(&deal)).any(|(member, room)| member.wants_growth && room > 0);
    let waiting = |deal: &Deal| -> Vec<u64> {
        let takes = members.iter().map(|member| member.wants_growth || !is_wanted);
        takes.zip(rooms(deal)).map(|(takes, room)| if takes { room } else { 0 }).collect()
    };
    evenly(&mut deal, 1, &waiting);
    deal.credits
}

/// Gives one of `parts` parts of what is left evenly to those that have room.
fn evenly(deal: &mut Deal, parts: u64, rooms: &dyn Fn(&Deal) -> Vec<u64>) {
    let rooms = rooms(deal);
    let takers = rooms.iter().filter(|&&room| room > 0).count() as u64;
    let share_bytes = deal.left_bytes / parts / takers.max(1);
    deal.give(rooms.into_iter().map(|room| room.min(share_bytes)));
}

/// The most each may be dealt: where memory is short, members that can exchange pages grow to their grants and not beyond. Where
/// it is not, what is above the high line is for those that wait, but for bursts of others; for all where nobody waits.
fn bounds(pool: &Pool, level: Level, members: &[Standing], left_bytes: u64) -> Vec<u64> {
    let part = |bytes: u64, count: usize| bytes / count.max(1) as u64;
    let even = |bytes: u64| part(bytes, members.len());
    let waiting = members.iter().filter(|member| member.wants_growth && member.exchanges()).count();
    let above_high_bytes = unsigned(pool.free_bytes(members) - i128::from(pool.line_bytes(Level::High)));
    let bound = |member: &Standing| match level {
        Level::Stop => member.reservation_bytes.saturating_sub(member.charge_bytes),
        Level::Low if member.excess_bytes() > 0 => 0,
        _ if !member.exchanges() => u64::MAX,
        Level::High if member.wants_growth => member.lacking_bytes().saturating_add(part(above_high_bytes, waiting)),
        Level::High if waiting > 0 => member.lacking_bytes().saturating_add(even(above_high_bytes) / BURST_PART),
        Level::High => member.lacking_bytes().saturating_add(even(above_high_bytes)),
        _ if member.wants_growth => member.lacking_bytes(),
        _ => member.lacking_bytes().saturating_add(even(left_bytes) / BURST_PART),
    };
    members.iter().map(bound).collect()
}
