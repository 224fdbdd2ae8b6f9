//! What members and leader tell each other.

use std::time::Duration;

use serde::Serialize;

use crate::policy::ladder::BalloonHealth;
use crate::policy::watermark::Level;

/// The most bytes anything here may have: what a physical address of x86-64 reaches.
pub const MAXIMUM_BYTES: u64 = 1 << 52;

/// The most shares a member may have.
pub const MAXIMUM_SHARES: u64 = 1 << 40;

/// The most bytes of a member's name.
pub const MAXIMUM_NAME_BYTES: usize = 64;

/// A member for as long as it lives: whoever has its slot later is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberId {
    /// Its slot.
    pub slot: u16,
    /// Tells the members that had this slot apart; rises.
    pub generation: u64,
}

/// Who a member is, and what it is entitled to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The VM's name, of which no two live members have the same.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// When the process started, in clock ticks since boot (field 22 of /proc/PID/stat; 0: unknown): a process of
    /// this pid that started at another time is another.
    #[serde(skip)]
    pub start_ticks: u64,
    /// The guest's size.
    pub size_bytes: u64,
    /// What it is guaranteed.
    pub reservation_bytes: u64,
    /// What it may use at most.
    pub limit_bytes: u64,
    /// Its part when active memory does not fit.
    pub shares: u64,
}

/// What a member says of itself. Totals count up from the VM's start; everything else is as of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// When it was made: `CLOCK_MONOTONIC`, as [`now_ns`](super::now_ns) tells it.
    #[serde(skip)]
    pub time_ns: u64,
    /// What the VM costs the host (design, section 1).
    pub charge_bytes: u64,
    /// What of that is not the guest's: the process itself, its tables and page tables.
    pub own_bytes: u64,
    /// What the guest has ever touched and not given back: the most it could use.
    pub touched_bytes: u64,
    /// What it works with.
    pub active_bytes: u64,
    /// The estimate that follows fast, if it is sampled.
    pub active_fast_bytes: Option<u64>,
    /// The estimate that follows slowly, if it is sampled.
    pub active_slow_bytes: Option<u64>,
    /// Guest RAM backed by host memory.
    pub resident_bytes: u64,
    /// Guest RAM whose content others have too: merged, or stored once for several pages.
    pub shared_bytes: u64,
    /// Guest RAM that the kernel has merged with equal pages.
    pub merged_bytes: u64,
    /// Guest RAM that it was told to merge if it can, and has not.
    pub mergeable_bytes: u64,
    /// Host memory that the compressed store holds.
    pub compressed_bytes: u64,
    /// Guest RAM in the swap file.
    pub swapped_bytes: u64,
    /// Guest RAM stored as zero.
    pub zero_bytes: u64,
    /// What is in the balloon.
    pub ballooned_bytes: u64,
    /// What the guest was asked to have in it.
    pub balloon_target_bytes: u64,
    /// The most it may be asked to hold: less than its own limit while the guest suffers.
    pub balloon_most_bytes: u64,
    /// Host memory that inflating it has freed, in total.
    pub balloon_given_bytes: u64,
    /// Bytes the guest has reported as free, in total.
    pub reported_bytes: u64,
    /// What the guest calls free, if it says.
    pub guest_free_bytes: Option<u64>,
    /// Whether the balloon works.
    pub balloon: BalloonHealth,
    /// The guest would grow now if it could.
    pub wants_growth: bool,
    /// Pages can be taken from the guest without its help.
    pub can_reclaim: bool,
    /// What of the charge is others': what they come to cost by pages that are merged with theirs no more, until they know.
    pub owed_bytes: u64,
    /// How far it may grow by the orders it carries out.
    pub grow_to_bytes: u64,
    /// When those orders were decided; 0 before the first.
    #[serde(skip)]
    pub orders_time_ns: u64,
    /// Faults on pages that had left guest RAM, in total.
    pub refaults: u64,
    /// Bytes that came back into guest RAM, in total.
    pub refaulted_bytes: u64,
    /// Time from fault to answer, summed over all faults.
    pub stall_ns: u64,
    /// Pages moved out of guest RAM, in total.
    pub evicted_pages: u64,
    /// Pages that grew beyond the limit because nothing else could be done, in total.
    pub over_limit_pages: u64,
    /// Anything else; members of one version agree on what it means.
    pub flags: u32,
}

/// What the leader wants of one member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Orders {
    /// What the member may use.
    pub grant_bytes: u64,
    /// What to reclaim down to; `None`: reclaim nothing.
    pub reclaim_to_bytes: Option<u64>,
    /// What to grow up to without asking again.
    pub grow_to_bytes: u64,
    /// What of that merged pages may be unmerged up to.
    pub unmerge_to_bytes: u64,
    /// What to ask of the balloon.
    pub balloon_target_bytes: u64,
    /// How long a page stays in the RAM of that guest of the pool which lacks memory most; `None` where no page comes back.
    pub residence_ms: Option<u64>,
}

/// One round of the leader: the pool as it sees it, and orders for its members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    /// When it was decided: `CLOCK_MONOTONIC`, as [`now_ns`](super::now_ns) tells it.
    pub time_ns: u64,
    /// How short of memory the pool is.
    pub level: Level,
    /// What is left of the budget; negative when more is used.
    pub free_bytes: i64,
    /// The orders, each for the very member it names.
    pub orders: Vec<(MemberId, Orders)>,
}

/// A member's orders and the round they are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandingOrders {
    /// When the round was decided: `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Who led it.
    pub leader_pid: u32,
    /// How short of memory the pool was.
    pub level: Level,
    /// What was left of the budget.
    pub free_bytes: i64,
    /// What this member is to do.
    pub orders: Orders,
}

impl StandingOrders {
    /// Whether they are older than 3 periods: the leader is stopped, and members do not grow. A time from another boot is
    /// as good as none.
    pub fn is_stale(&self, now_ns: u64, period: Duration) -> bool {
        u128::from(now_ns.abs_diff(self.time_ns)) > 3 * period.as_nanos()
    }
}
