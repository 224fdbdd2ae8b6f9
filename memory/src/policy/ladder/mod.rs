//! What each member of a pool is told, cheapest means first: a balloon target, how far to evict, how far it may grow.
//!
//! [`Level::High`] takes nothing and gives balloons back. [`Level::Soft`] asks balloons for what is missing up to the high
//! line, and the pager where there is no balloon that works. [`Level::Hard`] has the pager take what is missing up to the
//! soft line at once. [`Level::Low`] sends members above their grant back to it, and [`Level::Stop`] lets nobody above its
//! reservation grow. Who gives is always a member above its grant, in proportion to its excess; only where the grants
//! turn out to be too much for the memory there is, everybody gives what it holds beyond its reservation.
//!
//! **The budget holds.** All that members hold and may grow by is never more than the budget without its reserve, whatever
//! they do until the next round: where a member may not have taken up an order that lowers `grow_to_bytes`, what it may
//! still come to hold is nobody else's.
//!
//! **Nobody waits for ever.** A member whose growth waits is in one of three cases. Its faults are backed: then it is told
//! to keep at or under what it may grow to, so the pager's own slack below that lets one page out for another in; that
//! takes nothing from anybody and needs no decision of others. It is below its grant, or has no backing, and was dealt
//! less than a page: then the pool acts as in [`Level::Hard`] at least, and whoever is above its grant is reclaimed for it.
//! Or it was dealt a page or more: then it grows. What remains is a pool in which nobody who holds too much has a balloon
//! or backing; no decision can help it, and admission must not let it overcommit. Nor does it come to that by unmerging
//! what was shared, which leaves such a pool free memory to grow into (`unmerging`).

mod balloon;
mod commitment;
mod credit;
mod reclaim;
mod unmerging;

use serde::{Deserialize, Serialize};

pub(crate) use unmerging::limit_bytes as unmerging_limit_bytes;

use super::watermark::{Level, Watermarks};
use crate::ram::PAGE_SIZE;

/// At most this part of the budget is taken in a round for members that wait.
const WANTED_PART: u64 = 8;

/// Whether a guest's balloon can be counted on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BalloonHealth {
    /// It does what it is told.
    Working,
    /// The guest has no driver for it.
    #[default]
    Absent,
    /// It does next to nothing of what it is told.
    Stalled,
}

impl BalloonHealth {
    /// The health of a number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Working, Self::Absent, Self::Stalled].get(usize::from(number)).copied()
    }
}

/// Where one member stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What the [allocator](super::allocator) grants it.
    pub grant_bytes: u64,
    /// The most it could use, as in its [claim](super::allocator::Claim): granted less, it is squeezed.
    pub most_bytes: u64,
    /// What it holds.
    pub charge_bytes: u64,
    /// What it may come to hold by orders it may not have given up yet.
    pub committed_bytes: u64,
    /// What it is promised.
    pub reservation_bytes: u64,
    /// The guest's size.
    pub size_bytes: u64,
    /// What its balloon holds.
    pub ballooned_bytes: u64,
    /// The most its balloon may be asked to hold.
    pub balloon_most_bytes: u64,
    /// What the guest could use without paging, by its own statistics.
    pub guest_free_bytes: Option<u64>,
    /// Whether its balloon can be counted on.
    pub balloon: BalloonHealth,
    /// Faults wait for credit now.
    pub wants_growth: bool,
    /// What of its charge others come to hold by what it has unmerged, until they know.
    pub owed_bytes: u64,
    /// Its pages may be compressed or swapped.
    pub has_backing: bool,
}

impl Standing {
    /// What nobody takes from it: its grant, and its reservation even where the grant is older than that.
    fn entitled_bytes(&self) -> u64 {
        self.grant_bytes.max(self.reservation_bytes)
    }

    fn excess_bytes(&self) -> u64 {
        self.charge_bytes.saturating_sub(self.entitled_bytes())
    }

    fn lacking_bytes(&self) -> u64 {
        self.entitled_bytes().saturating_sub(self.charge_bytes)
    }

    /// Whether it can be held at its grant: it has more pages than that, and can change which of them it holds.
    fn exchanges(&self) -> bool {
        self.has_backing && self.grant_bytes < self.most_bytes
    }
}

/// What one member is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// What its balloon should hold.
    pub balloon_target_bytes: u64,
    /// Evict until the charge is at most this, as a limit of the pager: with the pager's slack below it.
    pub reclaim_to_bytes: Option<u64>,
    /// First touches and refaults of the guest that would take the charge beyond this wait. The member's own limit holds
    /// beside it.
    pub grow_to_bytes: u64,
    /// Merged pages that would take the charge beyond this stay merged.
    pub unmerge_to_bytes: u64,
}

/// A pool in need of decisions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// How short of memory it is.
    pub level: Level,
    /// What its members may hold together.
    pub budget_bytes: u64,
    /// What is free; less where the host has less left than the budget says, negative where more is held. What the members'
    /// charges leave of the budget counts if it is less.
    pub free_bytes: i64,
    /// Held back from the guests' growth for threads that must not wait. Less than the last watermark, else it is felt as
    /// shortage before the levels show one.
    pub reserve_bytes: u64,
    /// The lines between the levels.
    pub watermarks: Watermarks,
}

impl Pool {
    /// What each member is told, in their order.
    pub fn orders(&self, members: &[Standing]) -> Vec<Orders> {
        let (level, credits) = self.deal(members);
        let wanted_bytes = self.wanted_bytes(members, &credits);
        let mut parts = self.parts(level, members, wanted_bytes);
        let targets = balloon::targets(self, level, members, &mut parts);
        let kept = reclaim::kept(self, level, members, &parts, wanted_bytes);
        let wanted = members.iter().zip(&credits);
        let wanted: Vec<u64> = wanted.map(|(member, &bytes)| grow_to_bytes(member, level, bytes)).collect();
        let committed = commitment::committed(self, members, &wanted);
        let bounds = unmerging::bounds(self, members, &committed);
        let growth = committed.into_iter().zip(bounds);
        let told = members.iter().zip(credits).zip(growth).zip(targets.into_iter().zip(kept));
        told.map(|(((member, credit_bytes), (grow_to_bytes, unmerge_to_bytes)), (balloon_target_bytes, kept_bytes))| {
            // Growth that waits while the pager may evict is served by exchange.
            let exchange = member.wants_growth && (level >= Level::Hard || credit_bytes < PAGE_SIZE);
            let bound_bytes = exchange.then_some(grow_to_bytes);
            let reclaim_to_bytes = [kept_bytes, bound_bytes].into_iter().flatten().min().filter(|_| member.has_backing);
            Orders { balloon_target_bytes, reclaim_to_bytes, grow_to_bytes, unmerge_to_bytes }
        })
        .collect()
    }

    /// The level to act at, and what each member may grow by.
    fn deal(&self, members: &[Standing]) -> (Level, Vec<u64>) {
        let credits = credit::deal(self, self.level, members);
        let is_stuck = |(member, &credit_bytes): (&Standing, &u64)| {
            let needs_others = !member.has_backing || member.lacking_bytes() >= PAGE_SIZE;
            member.wants_growth && credit_bytes < PAGE_SIZE && needs_others
        };
        if self.level < Level::Hard && members.iter().zip(&credits).any(is_stuck) {
            return (Level::Hard, credit::deal(self, Level::Hard, members));
        }
        (self.level, credits)
    }

    /// What each member above its grant should give so that the high line is reached and what is wanted found.
    fn parts(&self, level: Level, members: &[Standing], wanted_bytes: u64) -> Vec<u64> {
        if level == Level::High {
            return vec![0; members.len()];
        }
        let goal_bytes = self.line_bytes(Level::High).saturating_add(wanted_bytes);
        let can_give = |member: &Standing| member.has_backing || balloon::has_room(member);
        let excesses: Vec<u64> =
            members.iter().map(|member| if can_give(member) { member.excess_bytes() } else { 0 }).collect();
        divide(self.missing_bytes(goal_bytes, members), &excesses)
    }

    /// What members that wait now lack of their grants, or may grow by if that is more, as far as that is to be found in one
    /// round: memory they are about to take is missed before it is gone.
    fn wanted_bytes(&self, members: &[Standing], credits: &[u64]) -> u64 {
        let waiting = members.iter().zip(credits).filter(|(member, _)| member.wants_growth);
        let wanted = waiting.map(|(member, &credit_bytes)| member.lacking_bytes().max(credit_bytes));
        wanted.fold(0, u64::saturating_add).min(self.budget_bytes / WANTED_PART)
    }

    fn free_bytes(&self, members: &[Standing]) -> i128 {
        let charges: i128 = members.iter().map(|member| i128::from(member.charge_bytes)).sum();
        (i128::from(self.budget_bytes) - charges).min(self.free_bytes.into())
    }

    /// What must become free before `goal_bytes` are.
    fn missing_bytes(&self, goal_bytes: u64, members: &[Standing]) -> u64 {
        unsigned(i128::from(goal_bytes) - self.free_bytes(members))
    }

    fn line_bytes(&self, level: Level) -> u64 {
        self.watermarks.line_bytes(level, self.budget_bytes)
    }
}

fn grow_to_bytes(member: &Standing, level: Level, credit_bytes: u64) -> u64 {
    if level >= Level::Low && member.excess_bytes() > 0 {
        member.entitled_bytes()
    } else {
        member.charge_bytes.saturating_add(credit_bytes)
    }
}

fn unsigned(bytes: i128) -> u64 {
    bytes.clamp(0, u64::MAX.into()) as u64
}

/// Divides `total_bytes` in proportion to the weights, which are also the most that each can have.
fn divide(total_bytes: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let total = u128::from(total_bytes).min(sum);
    // A weight is no more than the sum, so a part is no more than its weight.
    weights.iter().map(|&weight| (total * u128::from(weight) / sum.max(1)) as u64).collect()
}
