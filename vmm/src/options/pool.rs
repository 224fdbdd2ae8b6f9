//! What a user may ask of a pool.

use cistern_memory::activity::TrackerConfig;
use cistern_memory::ledger::{JoinRequest, MAXIMUM_BYTES, SettingsRequest};
use cistern_memory::manager::{ManagerConfig, automatic_budget_bytes};
use cistern_memory::sharing::ksm::TunerConfig;

use super::{MINIMUM_RESIDENT, OptionsError, RunOptions};
use crate::pool_options::{Budget, PoolConfig};
use crate::size::Size;

/// A sample is taken page by page.
const SAMPLE_PAGES_MAX: u32 = 10_000;

impl RunOptions {
    /// What is asked of the pool, if there is one; every flag that needs one is refused without.
    pub(super) fn resolve_pool(&self, name: &str, memory: Size) -> Result<Option<PoolConfig>, OptionsError> {
        let bad = |flag, value: String, reason: &str| OptionsError::Value { flag, value, reason: reason.to_owned() };
        let Some(folder) = &self.pool else {
            return match self.first_pool_flag() {
                Some((flag, value)) => Err(bad(flag, value, "there is no pool: name its folder with --pool DIR")),
                None => Ok(None),
            };
        };
        if let Some(resident) = self.resident {
            return Err(bad("resident", resident.to_string(), "a VM in a pool is limited by --limit"));
        }
        let limit = self.limit.unwrap_or(memory);
        if limit < MINIMUM_RESIDENT.min(memory) || limit > memory {
            return Err(bad(
                "limit",
                limit.to_string(),
                &format!("{MINIMUM_RESIDENT} to {memory}, the guest's memory"),
            ));
        }
        let reservation = self.reservation.unwrap_or(Size { bytes: 0 });
        if reservation > limit {
            return Err(bad("reservation", reservation.to_string(), &format!("at most {limit}, the guest's limit")));
        }
        let budget_bytes = match self.budget {
            Some(Budget::Size(size)) if !(MINIMUM_RESIDENT.bytes..=MAXIMUM_BYTES).contains(&size.bytes) => {
                return Err(bad("budget", size.to_string(), &format!("at least {MINIMUM_RESIDENT}")));
            }
            Some(Budget::Size(size)) => Some(size.bytes),
            Some(Budget::Auto) | None => None,
        };
        let defaults = ManagerConfig::default();
        let tracker = TrackerConfig {
            period: self.sample_period.map_or(defaults.tracker.period, |period| period.0),
            sample_pages: match self.sample_pages {
                None => defaults.tracker.sample_pages,
                Some(pages @ 1..=SAMPLE_PAGES_MAX) => pages as usize,
                Some(pages) => return Err(bad("sample-pages", pages.to_string(), &format!("1 to {SAMPLE_PAGES_MAX}"))),
            },
        };
        let balloon_max_percent = match self.balloon_max {
            None => defaults.balloon_max_percent,
            Some(percent @ 0..=95) => percent,
            Some(percent) => return Err(bad("balloon-max", percent.to_string(), "0 to 95 percent of the guest")),
        };
        Ok(Some(PoolConfig {
            folder: folder.clone(),
            request: JoinRequest {
                name: name.to_owned(),
                settings: SettingsRequest {
                    budget_bytes,
                    idle_tax_percent: self.idle_tax.map(|tax| tax.percent()),
                    watermarks_millipercent: self.watermarks.map(|watermarks| watermarks.millipercent()),
                },
                default_budget_bytes: automatic_budget_bytes().unwrap_or(MAXIMUM_BYTES),
                size_bytes: memory.bytes,
                reservation_bytes: reservation.bytes,
                limit_bytes: limit.bytes,
                shares: self.shares.unwrap_or_default().of(memory),
            },
            manager: ManagerConfig {
                tracker,
                track: self.track.unwrap_or(defaults.track),
                reclaim: self.reclaim.map_or(defaults.reclaim, Into::into),
                balloon_max_percent,
                ksm_tuner: self.resolve_ksm_tuner()?,
            },
        }))
    }

    /// How the host's KSM is to be driven, if it is.
    fn resolve_ksm_tuner(&self) -> Result<Option<TunerConfig>, OptionsError> {
        let bad = |value: u8, reason: &str| OptionsError::Value {
            flag: "ksm-across-nodes",
            value: value.to_string(),
            reason: reason.to_owned(),
        };
        let across_nodes = match self.ksm_across_nodes {
            None => None,
            Some(value @ 0..=1) => Some(value == 1),
            Some(value) => return Err(bad(value, "0 or 1")),
        };
        match (self.ksm_tune, self.ksm_across_nodes) {
            (Some(true), _) => Ok(Some(TunerConfig { across_nodes, ..TunerConfig::default() })),
            (_, Some(value)) => Err(bad(value, "KSM is changed only with --ksm-tune")),
            (_, None) => Ok(None),
        }
    }

    /// A flag that means nothing without a pool, and its value.
    pub fn first_pool_flag(&self) -> Option<(&'static str, String)> {
        fn text<T>(flag: &'static str, value: Option<T>, show: impl Fn(T) -> String) -> Option<(&'static str, String)> {
            value.map(|value| (flag, show(value)))
        }
        text("budget", self.budget, |budget| match budget {
            Budget::Size(size) => size.to_string(),
            Budget::Auto => "auto".to_owned(),
        })
        .or_else(|| text("shares", self.shares, |shares| shares.to_string()))
        .or_else(|| text("reservation", self.reservation, |size| size.to_string()))
        .or_else(|| text("limit", self.limit, |size| size.to_string()))
        .or_else(|| text("idle-tax", self.idle_tax, |tax| tax.percent().to_string()))
        .or_else(|| text("watermarks", self.watermarks, |watermarks| watermarks.to_string()))
        .or_else(|| text("sample-period", self.sample_period, |period| format!("{}s", period.0.as_secs_f64())))
        .or_else(|| text("sample-pages", self.sample_pages, |pages| pages.to_string()))
        .or_else(|| text("track", self.track, |track| track.to_string()))
        .or_else(|| text("balloon-max", self.balloon_max, |percent| percent.to_string()))
        .or_else(|| text("reclaim", self.reclaim, |choice| format!("{choice:?}").to_lowercase()))
        .or_else(|| text("ksm-tune", self.ksm_tune, |tune| tune.to_string()))
        .or_else(|| text("ksm-across-nodes", self.ksm_across_nodes, |across| across.to_string()))
    }
}
