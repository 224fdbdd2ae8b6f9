//! Whether a pool is at rest: nothing is to be done there. Pure.
//!
//! A pool whose guests fit the budget by their sizes is left alone, though what their processes take beside, 3 MiB each, may
//! exceed it. One that was short of memory comes to rest only when that fits too: until then its members keep to the budget.

use crate::ledger::{MAXIMUM_BYTES, MemberView, PoolView};

/// What a process costs beside its guest at the least, for one that has not said yet.
const LEAST_OWN_BYTES: u64 = 2 << 20;

/// Whether all guests fit the budget as large as they may get, and nobody has to keep to it any more.
pub(super) fn is_at_rest(view: &PoolView) -> bool {
    let fits = |bytes: fn(&MemberView) -> u64| {
        view.members.iter().map(bytes).fold(0, u64::saturating_add) <= view.settings.budget_bytes
    };
    let mut orders = view.members.iter().filter_map(|member| member.orders);
    fits(size_bytes)
        && (orders.all(|orders| orders.grow_to_bytes >= MAXIMUM_BYTES)
            || fits(process_bytes)
            || view.members.iter().any(waits_in_vain))
}

/// The most RAM that a guest may have.
fn size_bytes(member: &MemberView) -> u64 {
    member.identity.size_bytes.min(member.identity.limit_bytes)
}

/// The most that a member's process may come to cost. What is stored goes on costing for a while after all pages are back in
/// guest RAM.
fn process_bytes(member: &MemberView) -> u64 {
    let MemberView { identity, report, .. } = member;
    let guest_bytes = match identity.limit_bytes < identity.size_bytes {
        true => identity.limit_bytes,
        false => identity.size_bytes.saturating_add(report.compressed_bytes),
    };
    guest_bytes.saturating_add(report.own_bytes.max(LEAST_OWN_BYTES))
}

/// Whether a guest waits for memory and has no page that could leave for it. Where all fit, it was promised that memory.
fn waits_in_vain(member: &MemberView) -> bool {
    let has_begun = member.report.resident_bytes > 0;
    has_begun && member.report.wants_growth && !member.report.can_reclaim
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Orders, Report};
    use crate::manager::leader::tests as leader;

    const MIB: u64 = 1 << 20;

    fn member(limit_mib: u64, own_mib: u64, compressed_mib: u64) -> MemberView {
        let mut member = leader::member(0, 250, 0);
        member.identity.limit_bytes = limit_mib * MIB;
        member.report = Report {
            resident_bytes: 250 * MIB,
            own_bytes: own_mib * MIB,
            compressed_bytes: compressed_mib * MIB,
            can_reclaim: true,
            ..Report::default()
        };
        member
    }

    /// Two in a budget of 512 MiB more than so much, told so.
    fn is_at_rest_beside(more_mib: u64, members: [MemberView; 2], told_bytes: Option<u64>) -> bool {
        let with_orders = |member: MemberView| MemberView {
            orders: told_bytes.map(|bytes| Orders { grow_to_bytes: bytes, ..Orders::default() }),
            ..member
        };
        is_at_rest(&leader::pool(512 + more_mib, 75, members.map(with_orders).to_vec()))
    }

    /// What one is told that was short of memory.
    const SHORT: Option<u64> = Some(300 * MIB);

    #[test]
    fn guests_that_fit_are_left_alone() {
        let filled = || [member(256, 10, 0), member(256, 10, 0)];
        for told_bytes in [None, Some(MAXIMUM_BYTES)] {
            assert!(is_at_rest_beside(0, filled(), told_bytes));
            let mut larger = filled();
            larger[1].identity.size_bytes += 1;
            larger[1].identity.limit_bytes += 1;
            assert!(!is_at_rest_beside(0, larger, told_bytes));
        }
    }

    #[test]
    fn who_was_short_keeps_to_the_budget_until_processes_and_what_is_stored_fit() {
        let at_rest = |more_mib, members| is_at_rest_beside(more_mib, members, SHORT);
        let two = |own_mib, compressed_mib| [0, 1].map(|_| member(256, own_mib, compressed_mib));
        assert!(at_rest(6, two(3, 0)) && !at_rest(5, two(3, 0)));
        assert!(at_rest(4, two(0, 0)) && !at_rest(3, two(0, 0)), "who has not said anything yet");
        assert!(at_rest(26, two(3, 10)) && !at_rest(25, two(3, 10)));
        // Its limit holds whatever the pool does.
        assert!(at_rest(0, [member(200, 3, 10), member(256, 3, 10)]));
    }

    #[test]
    fn who_fits_does_not_wait_for_what_nobody_can_give() {
        let mut two = [0, 1].map(|_| member(256, 4, 0));
        two[0].report.wants_growth = true;
        assert!(!is_at_rest_beside(0, two.clone(), SHORT));
        two[0].report.can_reclaim = false;
        assert!(is_at_rest_beside(0, two.clone(), SHORT));
        two[0].report.resident_bytes = 0;
        assert!(!is_at_rest_beside(0, two.clone(), SHORT), "it waits to begin");
        two[0].report.resident_bytes = 1;
        two[1].identity.size_bytes += 1;
        two[1].identity.limit_bytes += 1;
        assert!(!is_at_rest_beside(0, two, SHORT), "they do not fit");
    }
}
