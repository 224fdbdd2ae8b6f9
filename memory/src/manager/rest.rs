//! Whether a pool is at rest: nothing gets short there, so nothing is to be done. Pure.
//!
//! Guests whose sizes fit the budget are left alone. What their processes cost beside them may not fit any more, by 3 MiB a
//! guest; that is waited for: rest ends when it shows, and begins again once all of it fits. As guests at rest are not gated, and
//! looked at once a second, they may exceed the budget by that until then; and where nothing can be taken from anybody they do, for
//! a guest that has what it was promised is not to wait for what nobody can give.

use crate::ledger::{MAXIMUM_BYTES, MemberView, PoolView};
use crate::policy::watermark::{Level, Watermarks};

/// What a process costs beside its guest at the least, for one that has not said yet.
const LEAST_OWN_BYTES: u64 = 2 << 20;

/// The budget may be exceeded by such a part.
const TOLERATED_PART: u64 = 100;

/// Whether all members fit the budget as large as they may get, or do where they are at rest.
pub(super) fn is_at_rest(view: &PoolView) -> bool {
    let sum = |bytes: fn(&MemberView) -> u64| view.members.iter().map(bytes).fold(0, u64::saturating_add);
    let (budget_bytes, most_bytes) = (view.settings.budget_bytes, sum(most_bytes));
    let fits_by_size = sum(size_bytes) <= budget_bytes;
    if fits_by_size && !view.members.iter().any(|member| member.report.can_reclaim) {
        return true;
    }
    let has_rested =
        view.members.iter().filter_map(|member| member.orders).all(|orders| orders.grow_to_bytes >= MAXIMUM_BYTES);
    if !has_rested {
        return most_bytes <= budget_bytes;
    }
    let watermarks = Watermarks::from_millipercent(view.settings.watermarks_millipercent).unwrap_or_default();
    let left_bytes = budget_bytes.saturating_sub(sum(|member| member.report.charge_bytes));
    most_bytes <= budget_bytes + budget_bytes / TOLERATED_PART
        || (fits_by_size && left_bytes >= watermarks.line_bytes(Level::High, budget_bytes))
}

/// The most RAM that a guest may have.
fn size_bytes(member: &MemberView) -> u64 {
    member.identity.size_bytes.min(member.identity.limit_bytes)
}

/// The most a member may come to cost. What is stored goes on costing for a while after all pages are back in guest RAM.
fn most_bytes(member: &MemberView) -> u64 {
    let MemberView { identity, report, .. } = member;
    let guest_bytes = match identity.limit_bytes < identity.size_bytes {
        true => identity.limit_bytes,
        false => identity.size_bytes.saturating_add(report.compressed_bytes),
    };
    guest_bytes.saturating_add(report.own_bytes.max(LEAST_OWN_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Identity, MemberId, Orders, PoolSettings, Report};

    const MIB: u64 = 1 << 20;

    fn member(limit_mib: u64, own_mib: u64, compressed_mib: u64) -> MemberView {
        MemberView {
            id: MemberId { slot: 0, generation: 1 },
            identity: Identity {
                name: "vm".to_owned(),
                pid: 100,
                start_ticks: 1,
                size_bytes: 256 * MIB,
                reservation_bytes: 0,
                limit_bytes: limit_mib * MIB,
                shares: 2560,
            },
            report: Report {
                charge_bytes: 250 * MIB,
                own_bytes: own_mib * MIB,
                compressed_bytes: compressed_mib * MIB,
                can_reclaim: true,
                ..Report::default()
            },
            report_age_ms: 0,
            grant_bytes: None,
            orders: None,
            orders_age_ms: None,
        }
    }

    /// Two in a budget of 512 MiB more than so much, told so.
    fn is_at_rest_beside(more_mib: u64, members: [MemberView; 2], told_bytes: Option<u64>) -> bool {
        let with_orders = |member: MemberView| MemberView {
            orders: told_bytes.map(|bytes| Orders { grow_to_bytes: bytes, ..Orders::default() }),
            ..member
        };
        is_at_rest(&PoolView {
            settings: PoolSettings {
                budget_bytes: (512 + more_mib) * MIB,
                idle_tax_percent: 75,
                watermarks_millipercent: [6000, 4000, 2000, 1000],
            },
            free_bytes: None,
            level: None,
            leader: None,
            leader_pid: None,
            round_age_ms: None,
            corrupt_slots: 0,
            unreadable_members: 0,
            members: members.map(with_orders).to_vec(),
        })
    }

    #[test]
    fn processes_and_what_is_stored_have_to_fit_too() {
        let at_rest = |more_mib, members| is_at_rest_beside(more_mib, members, Some(300 * MIB));
        let two =
            |own_mib, compressed_mib| [member(256, own_mib, compressed_mib), member(256, own_mib, compressed_mib)];
        assert!(at_rest(6, two(3, 0)) && !at_rest(5, two(3, 0)));
        assert!(at_rest(4, two(0, 0)) && !at_rest(3, two(0, 0)), "who has not said anything yet");
        assert!(at_rest(26, two(3, 10)) && !at_rest(25, two(3, 10)));
        // Its limit holds whatever the pool does.
        assert!(at_rest(0, [member(200, 3, 10), member(256, 3, 10)]));
    }

    #[test]
    fn rest_ends_when_what_does_not_fit_shows() {
        let filled = |mib| {
            let report = Report { charge_bytes: mib * MIB, own_bytes: 4 * MIB, can_reclaim: true, ..Report::default() };
            [0, 1].map(|_| MemberView { report, ..member(256, 0, 0) })
        };
        // 6 % of it are 30.7 MiB.
        for told_bytes in [None, Some(MAXIMUM_BYTES)] {
            assert!(is_at_rest_beside(0, filled(240), told_bytes) && !is_at_rest_beside(0, filled(241), told_bytes));
        }
        assert!(!is_at_rest_beside(0, filled(100), Some(300 * MIB)), "it does not begin like this");
        let mut larger = filled(100);
        larger[1].identity.size_bytes += MIB;
        larger[1].identity.limit_bytes += MIB;
        assert!(!is_at_rest_beside(0, larger, None), "nor where the guests alone do not fit");
    }

    #[test]
    fn who_fits_does_not_wait_for_what_nobody_can_give() {
        let [mut one, mut other] = [member(256, 4, 0), member(256, 4, 0)];
        one.report.can_reclaim = false;
        for told_bytes in [None, Some(300 * MIB)] {
            assert!(!is_at_rest_beside(0, [one.clone(), other.clone()], told_bytes));
            other.report.can_reclaim = false;
            assert!(is_at_rest_beside(0, [one.clone(), other.clone()], told_bytes));
            other.identity.limit_bytes += MIB;
            other.identity.size_bytes += MIB;
            assert!(!is_at_rest_beside(0, [one.clone(), other.clone()], told_bytes), "they do not fit");
            other = member(256, 4, 0);
        }
    }

    #[test]
    fn a_pool_does_not_go_to_and_fro() {
        let two = || [member(256, 4, 0), member(256, 4, 0)];
        for told_bytes in [None, Some(MAXIMUM_BYTES)] {
            assert!(is_at_rest_beside(3, two(), told_bytes) && !is_at_rest_beside(2, two(), told_bytes));
        }
        assert!(is_at_rest_beside(8, two(), Some(300 * MIB)) && !is_at_rest_beside(7, two(), Some(300 * MIB)));
    }
}
