//! What a member says of itself.

use std::time::Instant;

use crate::balloon::Balloon;
use crate::ledger::{MAXIMUM_BYTES, Report, now_ns};
use crate::pager::PagerUsage;
use crate::ram::PAGE_SIZE;

use super::super::balloon::BalloonView;
use super::super::{ManagerError, ReclaimMode, budget, own};
use super::{Guest, Member, SLOW};

impl Member {
    /// How this member is now.
    pub(super) fn report(&mut self, now: Instant) -> Result<Report, ManagerError> {
        let is_time = self.looked.is_none_or(|looked| now.duration_since(looked) >= SLOW);
        if is_time {
            self.looked = Some(now);
            self.host_available_bytes = budget::available_bytes();
        }
        let Some(Guest { pager, balloon, usage, estimate }) = &mut self.guest else {
            // Of the program file, which all VMMs share, a part: by what is resident a hundred that wait held half a GiB.
            let own_bytes = self.own_memory.bytes(None, 0, now).map_err(ManagerError::Proc)?;
            // What was given for loading is held, or it would be given to others meanwhile.
            let held_bytes = if self.in_force.1 < MAXIMUM_BYTES { own_bytes.max(self.in_force.1) } else { own_bytes };
            let wanted_bytes = self.loading_bytes.unwrap_or(0).max(held_bytes - own_bytes);
            return Ok(Report {
                time_ns: now_ns(),
                charge_bytes: held_bytes,
                own_bytes,
                // What is loaded is all written and read at once: others' idle memory is cheaper.
                touched_bytes: wanted_bytes,
                active_bytes: wanted_bytes,
                wants_growth: self.loading_bytes.is_some(),
                grow_to_bytes: self.in_force.1,
                orders_time_ns: self.in_force.0,
                ..Report::default()
            });
        };
        let waited_before = std::mem::replace(usage, pager.usage()).waited_refaults;
        // A guest that waits for new pages grows, and is given nothing for pages of its own.
        if usage.waited_refaults > waited_before {
            self.waited = Some(now);
        }
        *estimate = self.tracker.estimate(pager);
        if is_time {
            if usage.is_armed {
                self.own_bytes =
                    self.own_memory.bytes(Some(pager), usage.stored_bytes, now).map_err(ManagerError::Proc)?;
                if let Some(bytes) = self.own_memory.take_merging_saves_bytes() {
                    pager.note_merging_saves(bytes);
                }
            }
            if let Some(balloon) = balloon {
                balloon.request_statistics();
            }
        }
        let guest_charge_bytes = if usage.is_armed {
            usage.charge_bytes
        } else {
            own::resident_bytes().map_err(ManagerError::Proc)?.saturating_sub(self.own_bytes)
        };
        let balloon_view = balloon.as_deref().map(balloon_view).unwrap_or_default();
        let (health, most_bytes) = self.watch.look(&balloon_view, now);
        let size_bytes = self.membership.identity().size_bytes;
        self.balloon_most_bytes = most_bytes.min(size_bytes / 100 * u64::from(self.config.balloon_max_percent));
        // What the balloon took the guest could use.
        let touched_bytes = if usage.is_armed { usage.touched_pages * PAGE_SIZE } else { guest_charge_bytes };
        let report = Report {
            time_ns: now_ns(),
            charge_bytes: guest_charge_bytes + self.own_bytes,
            own_bytes: self.own_bytes,
            touched_bytes: touched_bytes.saturating_add(balloon_view.inflated_bytes),
            active_bytes: estimate.map_or(guest_charge_bytes, |estimate| estimate.active_bytes),
            active_fast_bytes: estimate.map(|estimate| estimate.fast_bytes),
            active_slow_bytes: estimate.map(|estimate| estimate.slow_bytes),
            ..usage_report(usage)
        };
        let can_reclaim = self.config.reclaim != ReclaimMode::Off && !usage.is_exhausted && !self.cannot_limit;
        let merging = self.sharing.as_ref().and_then(|sharing| sharing.statistics().merging).unwrap_or_default();
        let merged_bytes = merging.merged_pages * PAGE_SIZE;
        Ok(Report {
            shared_bytes: report.shared_bytes + merged_bytes,
            merged_bytes,
            mergeable_bytes: merging.waiting_pages * PAGE_SIZE,
            ballooned_bytes: balloon_view.inflated_bytes,
            balloon_given_bytes: balloon.as_ref().map_or(0, |balloon| balloon.given_bytes()),
            reported_bytes: balloon.as_ref().map_or(0, |balloon| balloon.reported_bytes()),
            balloon_target_bytes: balloon_view.target_bytes,
            guest_free_bytes: guest_free_bytes(&balloon_view),
            balloon: health,
            balloon_most_bytes: self.balloon_most_bytes,
            // Room is made for unmerging where it can be given back; elsewhere it waits for what is left over.
            wants_growth: usage.is_waiting || (usage.unmerging_waits && can_reclaim),
            can_reclaim,
            grow_to_bytes: self.in_force.1,
            orders_time_ns: self.in_force.0,
            ..report
        })
    }
}

fn usage_report(usage: &PagerUsage) -> Report {
    Report {
        resident_bytes: usage.resident_pages * PAGE_SIZE,
        shared_bytes: usage.duplicate_pages * PAGE_SIZE,
        compressed_bytes: usage.stored_bytes,
        swapped_bytes: usage.swapped_pages * PAGE_SIZE,
        owed_bytes: usage.owed_bytes,
        zero_bytes: usage.zero_pages * PAGE_SIZE,
        refaults: usage.refaulted_pages,
        refaulted_bytes: usage.refaulted_pages * PAGE_SIZE,
        stall_ns: usage.stall_ns,
        evicted_pages: usage.evicted_pages,
        over_limit_pages: usage.over_limit_pages,
        ..Report::default()
    }
}

fn balloon_view(balloon: &dyn Balloon) -> BalloonView {
    BalloonView {
        has_driver: balloon.has_driver(),
        target_bytes: balloon.target_bytes(),
        inflated_bytes: balloon.inflated_bytes(),
        given_bytes: balloon.given_bytes(),
        statistics: balloon.statistics(),
    }
}

/// What the guest could use without paging.
fn guest_free_bytes(view: &BalloonView) -> Option<u64> {
    let statistics = view.statistics?;
    statistics.available_bytes.or(statistics.free_bytes)
}
