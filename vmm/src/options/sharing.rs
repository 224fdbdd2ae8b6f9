//! What a user may ask of sharing.

use cistern_memory::sharing::{Mechanisms, SharingConfig};

use super::{OptionsError, RunOptions};
use crate::config::EvictionChoice;

impl RunOptions {
    /// What is shared. Merging takes a pool to merge with, and pages that can be moved.
    pub(super) fn resolve_sharing(&self) -> Result<SharingConfig, OptionsError> {
        let bad = |flag, value: String, reason: &str| OptionsError::Value { flag, value, reason: reason.to_owned() };
        let defaults = SharingConfig::default();
        let mechanisms = self.sharing.unwrap_or(defaults.mechanisms);
        if mechanisms.ksm && self.pool.is_none() {
            return Err(bad(
                "sharing",
                mechanisms.to_string(),
                "there is no pool to merge with: name its folder with --pool DIR",
            ));
        }
        if mechanisms.ksm && self.eviction == Some(EvictionChoice::Copy) {
            return Err(bad(
                "sharing",
                mechanisms.to_string(),
                "KSM takes pages that can be moved: leave out --eviction copy",
            ));
        }
        let scan_cpu_percent = match self.scan_cpu {
            None => defaults.scan_cpu_percent,
            Some(percent @ 1..=100) => percent,
            Some(percent) => return Err(bad("scan-cpu", percent.to_string(), "1 to 100 percent of a CPU")),
        };
        let scans_always = self.sharing.is_some_and(|Mechanisms { zero, ksm, .. }| zero || ksm);
        Ok(SharingConfig { mechanisms, scans_always, scan_cpu_percent })
    }

    /// Whether all of guest memory is offered to KSM. Then none of it is ours to page: KSM takes the protections off that
    /// paging relies on.
    pub(super) fn resolve_mergeable(&self) -> Result<bool, OptionsError> {
        let scans = self.sharing.is_some_and(|Mechanisms { zero, ksm, .. }| zero || ksm);
        let pages = [
            ("--pool", self.pool.is_some()),
            ("--resident", self.resident.is_some()),
            ("--sharing", scans),
            ("--swap", self.swap.is_some()),
        ];
        match pages.into_iter().find(|(_, is_there)| *is_there) {
            Some((flag, _)) if self.mergeable == Some(true) => Err(OptionsError::Value {
                flag: "mergeable",
                value: "true".to_owned(),
                reason: format!("its pages are the kernel's to page: leave out {flag}"),
            }),
            _ => Ok(self.mergeable.unwrap_or(false)),
        }
    }
}
