//! Linux's reclaim by a cgroup's limit: guests that reach it have the kernel swap the oldest of all.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::Baseline;
use super::cgroup::{Cgroup, Usage, Version};
use super::host::Host;
use super::reclaimer::{Look, Reclaim, Work};

/// The limit moves in steps: each writing of it is a round of reclaim.
const STEP_BYTES: u64 = 256 << 10;

/// It never is a smaller part of the budget, so that guests with nothing but pages in zram go on.
const LEAST_PART: u64 = 8;

/// See the top of this file.
pub(super) struct Limit {
    baseline: Baseline,
    host: Arc<Host>,
    budget_bytes: u64,
    cgroup: Cgroup,
    /// As the kernel has it.
    limit_bytes: u64,
}

impl Limit {
    /// The whole budget for now.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn new(baseline: Baseline, host: Arc<Host>, budget_bytes: u64, cgroup: Cgroup) -> Result<Self> {
        let limit_bytes = limit_bytes(budget_bytes, 0);
        ensure!(cgroup.set_limit(limit_bytes)?, "a cgroup that is full already takes no limit of {limit_bytes} bytes");
        Ok(Self { baseline, host, budget_bytes, cgroup, limit_bytes })
    }
}

impl Reclaim for Limit {
    fn look(&mut self, work: &mut Work) -> Result<Look> {
        // Nobody's cgroup is charged for zram, and for zswap in version 2 alone.
        let beside_bytes = match self.cgroup.version() {
            Version::V1 => self.host.store_bytes()?,
            Version::V2 => self.host.zram_bytes()?,
        };
        let wanted_bytes = limit_bytes(self.budget_bytes, beside_bytes);
        // One that is refused is tried again at the next look.
        if wanted_bytes != self.limit_bytes && self.cgroup.set_limit(wanted_bytes)? {
            self.limit_bytes = wanted_bytes;
        }
        let Usage { charged_bytes, swapped_bytes, limit_hits, killed } = self.cgroup.usage()?;
        *work = Work { paged_out_bytes: work.paged_out_bytes.max(swapped_bytes), limit_hits, killed, ..*work };
        let merged_bytes = if self.baseline.merges { self.host.merged_bytes()? } else { 0 };
        let taken_bytes = charged_bytes + beside_bytes;
        Ok(Look { taken_bytes, resident_bytes: charged_bytes + merged_bytes, is_busy: false })
    }
}

/// The budget less what is taken beside the cgroup.
fn limit_bytes(budget_bytes: u64, beside_bytes: u64) -> u64 {
    let left_bytes = budget_bytes.saturating_sub(beside_bytes).max(budget_bytes / LEAST_PART);
    left_bytes / STEP_BYTES * STEP_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_compressed_pages_leave_of_the_budget() {
        const MIB: u64 = 1 << 20;
        assert_eq!(limit_bytes(96 * MIB, 0), 96 * MIB);
        assert_eq!(limit_bytes(96 * MIB, 10 * MIB + 1), 85 * MIB + 3 * STEP_BYTES);
        assert_eq!(limit_bytes(96 * MIB, 200 * MIB), 12 * MIB);
    }
}
