//! How much to evict now, from what a VM costs and may cost. Pure.

use crate::ram::PAGE_SIZE;

/// Pages of slack below the limit, at least and at most: what a guest can grow by without waiting.
const SLACK_PAGES: std::ops::RangeInclusive<u64> = 64..=2048;

/// One page in so many is kept aside.
const RESERVE_PART: u64 = 16;

/// What compressed pages leave to pages in use, at the least. A Linux guest that idles touches a MiB in a minute (docs/density.md):
/// with less room than that it would bring pages back all the time, and have none when it wakes.
const LEAST_IN_USE_BYTES: u64 = 2 << 20;

/// The most that compressed pages take of what a VM may cost, where they can go on to a swap file: three quarters. What is left
/// is for pages in use.
pub(super) fn store_part_bytes(most_bytes: u64) -> u64 {
    (most_bytes / 4 * 3).min(most_bytes.saturating_sub(LEAST_IN_USE_BYTES))
}

/// What a decision is made from. Sizes in bytes or pages as named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// Pages leave until the VM costs no more than this, if that is wanted.
    pub reclaim_to_bytes: Option<u64>,
    /// Where the guest would have to wait.
    pub grow_to_bytes: Option<u64>,
    /// What resident and stored pages cost.
    pub charge_bytes: u64,
    /// Pages in guest RAM.
    pub resident_pages: u64,
    /// Pages aside.
    pub aside_pages: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Pages to move aside.
    pub aside_pages: u64,
    /// Pages to store from aside.
    pub store_pages: u64,
    /// Pages to leave aside, if there are others to be had.
    pub reserve_pages: u64,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_idle(self) -> bool {
        self == Self::default()
    }
}

impl View {
    /// Pages leave for no other reason than that they are wanted. Where they are, slack is kept free below the point where
    /// the guest would wait: eviction starts when half of it is used and goes on until it is whole. A part of what is
    /// resident is kept aside beyond that, where a page that is still in use gets its second chance.
    pub fn plan(&self) -> Plan {
        let Some(reclaim_to_bytes) = self.reclaim_to_bytes else { return Plan::default() };
        let (mut most_bytes, mut goal_bytes) = (reclaim_to_bytes, reclaim_to_bytes);
        if let Some(bytes) = self.grow_to_bytes {
            let slack_bytes = (bytes / 64 / PAGE_SIZE).clamp(*SLACK_PAGES.start(), *SLACK_PAGES.end()) * PAGE_SIZE;
            most_bytes = most_bytes.min(bytes.saturating_sub(slack_bytes / 2));
            goal_bytes = goal_bytes.min(bytes.saturating_sub(slack_bytes));
        }
        if self.charge_bytes <= most_bytes {
            return Plan::default();
        }
        let over_bytes = self.charge_bytes - goal_bytes;
        let store_pages = over_bytes.div_ceil(PAGE_SIZE);
        let reserve_pages = self.resident_pages / RESERVE_PART;
        let aside_pages = (reserve_pages + store_pages).saturating_sub(self.aside_pages).min(self.resident_pages);
        Plan { aside_pages, store_pages, reserve_pages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn view(limit_mib: u64, charge_bytes: u64) -> View {
        View {
            reclaim_to_bytes: Some(limit_mib * MIB),
            grow_to_bytes: Some(limit_mib * MIB),
            charge_bytes,
            resident_pages: charge_bytes / PAGE_SIZE,
            aside_pages: 0,
        }
    }

    #[test]
    fn nothing_is_done_without_a_limit_or_below_it() {
        assert!(View { reclaim_to_bytes: None, ..view(0, 1 << 40) }.plan().is_idle());
        assert!(view(128, 100 * MIB).plan().is_idle());
        assert!(view(128, 127 * MIB).plan().is_idle(), "half of the slack may be used");
        assert!(!view(128, 127 * MIB + 1).plan().is_idle());
    }

    #[test]
    fn eviction_makes_the_slack_whole() {
        assert_eq!(view(128, 128 * MIB).plan().store_pages, 512);
        assert_eq!(view(128, 130 * MIB).plan().store_pages, 1024);
        // Small and large limits have slack too.
        assert_eq!(view(4, 4 * MIB).plan().store_pages, 64);
        assert_eq!(view(1 << 20, (1 << 20) * MIB).plan().store_pages, 2048);
    }

    #[test]
    fn a_vm_that_may_grow_gives_what_is_wanted_and_no_more() {
        let roomy = View { grow_to_bytes: Some(256 * MIB), ..view(128, 130 * MIB) };
        assert_eq!(roomy.plan().store_pages, 512);
        assert_eq!(View { grow_to_bytes: None, ..roomy }.plan(), roomy.plan());
        assert!(View { charge_bytes: 128 * MIB, ..roomy }.plan().is_idle());
    }

    #[test]
    fn compressed_pages_leave_room_to_those_in_use() {
        assert_eq!(store_part_bytes(100 * MIB), 75 * MIB);
        assert_eq!([8, 4, 2, 1].map(|mib| store_part_bytes(mib * MIB)), [6 * MIB, 2 * MIB, 0, 0]);
    }

    #[test]
    fn a_part_is_kept_aside() {
        let plan = view(128, 128 * MIB).plan();
        assert_eq!(plan.aside_pages, 128 * 256 / 16 + 512);
        let later = View { aside_pages: 2000, ..view(128, 128 * MIB) }.plan();
        assert_eq!(later.aside_pages, plan.aside_pages - 2000);
    }
}
