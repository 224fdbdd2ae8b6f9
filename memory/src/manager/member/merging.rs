//! A member's part in the merging of pages.

use std::time::Instant;

use crate::ledger::{MemberView, PoolView};
use crate::ram::PAGE_SIZE;
use crate::sharing::SharingHandle;
use crate::sharing::sketch::LiveMember;

use super::super::ManagerError;
use super::Member;

impl Member {
    /// Says now and then who else is there, to merge pages with and to share the CPU time for that.
    pub(super) fn meet_others(&mut self) -> Result<(), ManagerError> {
        let is_time = self.looked.is_some_and(|looked| self.met != Some(looked));
        let is_scanning =
            |sharing: &SharingHandle| sharing.mechanisms().ksm || sharing.is_wanted() || sharing.is_asked();
        let Some(sharing) = self.sharing.as_deref().filter(|sharing| is_time && is_scanning(sharing)) else {
            return Ok(());
        };
        self.met = self.looked;
        let live =
            |member: &MemberView| LiveMember { id: member.id, guest_pages: member.identity.size_bytes / PAGE_SIZE };
        sharing.set_live(self.membership.members()?.members.iter().map(live).collect());
        Ok(())
    }

    /// Sees to the kernel's merging, for all. What fails there is tried again, and nothing else waits for it.
    pub(super) fn drive_ksm(&mut self, view: &PoolView, now: Instant) {
        let waiting_bytes: u64 = view.members.iter().map(|member| member.report.mergeable_bytes).sum();
        let driven = self.ksm.step(&self.folder, now, waiting_bytes / PAGE_SIZE);
        self.handle.update(|statistics| {
            statistics.ksm_tuner = self.ksm.state().cloned();
            if let Err(error) = driven {
                statistics.ksm_failure = Some(error.to_string());
            }
        });
    }
}
