//! How much the guest may grow before it has to wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// No limit.
const NONE: u64 = u64::MAX;

/// What resident and stored pages of a VM may cost the host. Both in bytes; `None` for no such limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Pages leave until they cost no more than this.
    pub reclaim_to_bytes: Option<u64>,
    /// A page that would make them cost more waits.
    pub grow_to_bytes: Option<u64>,
    /// Merged pages that would make them cost more stay merged, besides those that would pass the limit of growth.
    pub unmerge_to_bytes: Option<u64>,
    /// The guest waits even when none of its pages can leave: others give. Otherwise it grows beyond the limit then.
    pub is_firm: bool,
}

impl Limits {
    /// For a VM that has only itself to take from.
    pub fn alone(limit_bytes: Option<u64>) -> Self {
        Self {
            reclaim_to_bytes: limit_bytes,
            grow_to_bytes: limit_bytes,
            unmerge_to_bytes: limit_bytes,
            is_firm: false,
        }
    }

    /// Whether some page may have to leave that had not to before.
    pub(super) fn takes_from(&self, before: &Self) -> bool {
        self.reclaim_to_bytes != before.reclaim_to_bytes || is_less(self.grow_to_bytes, before.grow_to_bytes)
    }

    /// Whether some fault that waits may find room, or need not wait any more.
    pub(super) fn gives_to(&self, before: &Self) -> bool {
        is_less(before.grow_to_bytes, self.grow_to_bytes) || self.is_firm != before.is_firm
    }
}

fn is_less(left: Option<u64>, right: Option<u64>) -> bool {
    left.unwrap_or(NONE) < right.unwrap_or(NONE)
}

/// The limits and who may pass them. Each value stands alone, so relaxed operations do; a fault that waits is looked at
/// again after each of them rises.
#[derive(Debug)]
pub(super) struct Credit {
    reclaim_to_bytes: AtomicU64,
    grow_to_bytes: AtomicU64,
    unmerge_to_bytes: AtomicU64,
    is_firm: AtomicBool,
    /// Nothing more can be evicted: growth is granted all the same.
    exhausted: AtomicBool,
    /// When that was last so, in milliseconds from `started`; 0 for never.
    exhausted_ms: AtomicU64,
    started: Instant,
    /// The VM is ending: nobody waits any more.
    released: AtomicBool,
}

impl Default for Credit {
    fn default() -> Self {
        Self {
            reclaim_to_bytes: AtomicU64::new(NONE),
            grow_to_bytes: AtomicU64::new(NONE),
            unmerge_to_bytes: AtomicU64::new(NONE),
            is_firm: AtomicBool::new(false),
            exhausted: AtomicBool::new(false),
            released: AtomicBool::new(false),
            exhausted_ms: AtomicU64::new(0),
            started: Instant::now(),
        }
    }
}

/// What a guest that wants to grow is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Growth {
    /// There is room for this many bytes.
    Granted(u64),
    /// There is none and there will be none: go on beyond the limit.
    BeyondLimit,
    /// Wait until something was evicted.
    Wait,
}

impl Credit {
    pub fn limits(&self) -> Limits {
        let limit = |bytes: &AtomicU64| Some(bytes.load(Ordering::Relaxed)).filter(|&bytes| bytes != NONE);
        Limits {
            reclaim_to_bytes: limit(&self.reclaim_to_bytes),
            grow_to_bytes: limit(&self.grow_to_bytes),
            unmerge_to_bytes: limit(&self.unmerge_to_bytes),
            is_firm: self.is_firm.load(Ordering::Relaxed),
        }
    }

    pub fn set_limits(&self, limits: Limits) {
        self.reclaim_to_bytes.store(limits.reclaim_to_bytes.unwrap_or(NONE), Ordering::Relaxed);
        self.grow_to_bytes.store(limits.grow_to_bytes.unwrap_or(NONE), Ordering::Relaxed);
        self.unmerge_to_bytes.store(limits.unmerge_to_bytes.unwrap_or(NONE), Ordering::Relaxed);
        self.is_firm.store(limits.is_firm, Ordering::Relaxed);
        self.set_exhausted(false);
    }

    pub fn set_exhausted(&self, exhausted: bool) {
        self.exhausted.store(exhausted, Ordering::Relaxed);
        if exhausted {
            self.exhausted_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// Whether nothing more could be evicted within the last second.
    pub fn was_exhausted_lately(&self) -> bool {
        const LATELY_MS: u64 = 1000;
        let exhausted_ms = self.exhausted_ms.load(Ordering::Relaxed);
        exhausted_ms > 0 && self.now_ms() < exhausted_ms + LATELY_MS
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    pub fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// May a guest that costs `charge_bytes` grow by `bytes`?
    pub fn ask(&self, charge_bytes: u64, bytes: u64) -> Growth {
        let room = self.grow_to_bytes.load(Ordering::Relaxed).saturating_sub(charge_bytes);
        if room >= bytes || self.released.load(Ordering::Relaxed) {
            Growth::Granted(room.max(bytes))
        } else if self.is_exhausted() && !self.is_firm.load(Ordering::Relaxed) {
            Growth::BeyondLimit
        } else {
            Growth::Wait
        }
    }

    /// May merged pages of a guest that costs `charge_bytes` become pages of its own that cost `bytes`?
    pub fn may_unmerge(&self, charge_bytes: u64, bytes: u64) -> bool {
        let room = self.unmerge_to_bytes.load(Ordering::Relaxed).saturating_sub(charge_bytes);
        (room >= bytes || self.released.load(Ordering::Relaxed)) && self.ask(charge_bytes, bytes) != Growth::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_something_to_do_is_woken() {
        let limits = |reclaim, grow, unmerge| Limits {
            reclaim_to_bytes: reclaim,
            grow_to_bytes: grow,
            unmerge_to_bytes: unmerge,
            is_firm: true,
        };
        let before = limits(Some(8), Some(10), Some(9));
        let woken = |after: Limits| (after.takes_from(&before), after.gives_to(&before));
        assert_eq!(woken(before), (false, false));
        assert_eq!(woken(limits(Some(8), Some(11), Some(9))), (false, true));
        assert_eq!(woken(limits(Some(8), Some(9), Some(9))), (true, false));
        assert_eq!(woken(limits(Some(7), Some(11), Some(9))), (true, true));
        // Whoever unmerges asks by himself.
        assert_eq!(woken(limits(Some(8), Some(10), Some(10))), (false, false));
        assert_eq!(woken(limits(None, None, None)), (true, true));
        assert_eq!(woken(Limits { is_firm: false, ..before }), (false, true));
    }

    #[test]
    fn growth_waits_at_the_limit_and_nowhere_else() {
        let credit = Credit::default();
        assert_eq!(credit.ask(1 << 40, 4096), Growth::Granted(NONE - (1 << 40)));
        credit.set_limits(Limits::alone(Some(10_000)));
        assert_eq!(credit.ask(5_904, 4096), Growth::Granted(4096));
        assert_eq!(credit.ask(5_905, 4096), Growth::Wait);
        assert_eq!(credit.ask(20_000, 4096), Growth::Wait);
        credit.set_exhausted(true);
        assert_eq!(credit.ask(20_000, 4096), Growth::BeyondLimit);
        credit.set_limits(Limits { is_firm: true, ..Limits::alone(Some(10_000)) });
        credit.set_exhausted(true);
        assert_eq!(credit.ask(20_000, 4096), Growth::Wait);
        credit.release();
        assert_eq!(credit.ask(20_000, 4096), Growth::Granted(4096));
    }

    #[test]
    fn unmerging_leaves_room_to_growth() {
        let credit = Credit::default();
        assert!(credit.may_unmerge(1 << 40, 4096));
        let limits = Limits { is_firm: true, ..Limits::alone(Some(10_000)) };
        credit.set_limits(Limits { unmerge_to_bytes: Some(9_000), ..limits });
        assert!(credit.may_unmerge(4_904, 4096) && !credit.may_unmerge(4_905, 4096));
        credit.set_limits(Limits { unmerge_to_bytes: Some(20_000), ..limits });
        assert!(credit.may_unmerge(5_904, 4096) && !credit.may_unmerge(5_905, 4096), "nor more than growth");
        credit.release();
        assert!(credit.may_unmerge(30_000, 4096));
    }
}
