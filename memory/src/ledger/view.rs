//! The pool as an observer sees it.

use serde::Serialize;

use super::record::{Identity, Level, MemberId, Orders, Report};
use super::settings::PoolSettings;

/// A pool at a moment. Serialized, it is what `cistern pool --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolView {
    /// What the first member set.
    #[serde(flatten)]
    pub settings: PoolSettings,
    /// What was left of the budget in the last round; `None` before the first.
    pub free_bytes: Option<i64>,
    /// How short of memory the pool was in the last round.
    #[serde(rename = "state")]
    pub level: Option<Level>,
    /// The name of the member that leads, if it has led a round.
    pub leader: Option<String>,
    /// Its process.
    pub leader_pid: Option<u32>,
    /// How long ago the last round was.
    pub round_age_ms: Option<u64>,
    /// Slots and rounds that could not be read because they are damaged.
    pub corrupt_slots: u32,
    /// Of those, live members: they are in none of the sums that can be made of what follows.
    pub unreadable_members: u32,
    /// The live members that can be read, by slot.
    pub members: Vec<MemberView>,
}

/// One live member.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemberView {
    /// What orders for it are addressed to.
    #[serde(skip)]
    pub id: MemberId,
    /// Who it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// What it last said; all zero before it has said anything.
    #[serde(flatten)]
    pub report: Report,
    /// How long ago that was.
    pub report_age_ms: u64,
    /// What it was last granted; `None` before that.
    pub grant_bytes: Option<u64>,
    /// The orders it was last given.
    pub orders: Option<Orders>,
    /// How long ago that was.
    pub orders_age_ms: Option<u64>,
}
