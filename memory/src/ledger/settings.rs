//! What a pool's first member sets for all.

use serde::Serialize;

use super::record::MAXIMUM_BYTES;
use crate::policy::allocator::IdleTax;
use crate::policy::watermark::Watermarks;

/// A whole, in thousandths of a percent.
const WHOLE_MILLIPERCENT: u32 = 100_000;

/// What holds for all members of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PoolSettings {
    /// Host memory that all members together may use.
    pub budget_bytes: u64,
    /// The idle memory tax.
    pub idle_tax_percent: u8,
    /// Where the levels high, soft, hard and low end, in thousandths of a percent of the budget, falling.
    pub watermarks_millipercent: [u32; 4],
}

impl PoolSettings {
    /// What no grant may take: growth that cannot wait comes from here.
    pub fn reserve_bytes(&self) -> u64 {
        let reserve = u128::from(self.budget_bytes) * u128::from(self.watermarks_millipercent[0]);
        (reserve / u128::from(WHOLE_MILLIPERCENT)) as u64
    }

    /// What is wrong with them, if anything is.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let watermarks = &self.watermarks_millipercent;
        if !(1..=MAXIMUM_BYTES).contains(&self.budget_bytes) {
            return Some("a budget is above 0 and at most 4 PiB");
        }
        if self.idle_tax_percent > 99 {
            return Some("an idle memory tax is at most 99 percent");
        }
        if !watermarks.windows(2).all(|pair| pair[0] > pair[1]) || watermarks[0] >= WHOLE_MILLIPERCENT {
            return Some("watermarks are below 100 percent and each below the one before");
        }
        None
    }
}

/// What a member asks of the settings; `None`: whatever there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettingsRequest {
    /// See [`PoolSettings::budget_bytes`].
    pub budget_bytes: Option<u64>,
    /// See [`PoolSettings::idle_tax_percent`].
    pub idle_tax_percent: Option<u8>,
    /// See [`PoolSettings::watermarks_millipercent`].
    pub watermarks_millipercent: Option<[u32; 4]>,
}

impl SettingsRequest {
    /// The settings of a pool that this makes.
    pub(super) fn or_default(&self, default_budget_bytes: u64) -> PoolSettings {
        PoolSettings {
            budget_bytes: self.budget_bytes.unwrap_or(default_budget_bytes),
            idle_tax_percent: self.idle_tax_percent.unwrap_or_else(|| IdleTax::default().percent()),
            watermarks_millipercent: self
                .watermarks_millipercent
                .unwrap_or_else(|| Watermarks::default().millipercent()),
        }
    }

    /// The first setting that was asked for and is another in the pool: what it is called, what the pool has, and what
    /// was asked.
    pub(super) fn difference(&self, pool: &PoolSettings) -> Option<(&'static str, String, String)> {
        let bytes = |value: u64| format!("{value} bytes");
        let percent = |value: u8| format!("{value} percent");
        let asked_other = |asked: Option<u64>, has: u64| asked.filter(|asked| *asked != has);
        if let Some(asked) = asked_other(self.budget_bytes, pool.budget_bytes) {
            return Some(("budget", bytes(pool.budget_bytes), bytes(asked)));
        }
        if let Some(asked) = self.idle_tax_percent.filter(|asked| *asked != pool.idle_tax_percent) {
            return Some(("idle memory tax", percent(pool.idle_tax_percent), percent(asked)));
        }
        let asked = self.watermarks_millipercent.filter(|asked| *asked != pool.watermarks_millipercent)?;
        Some(("watermarks", watermarks_text(&pool.watermarks_millipercent), watermarks_text(&asked)))
    }
}

/// Watermarks as they are written on the command line: `6,4,2,1`.
fn watermarks_text(watermarks: &[u32; 4]) -> String {
    watermarks.map(|mark| (f64::from(mark) / 1000.0).to_string()).join(",") + " percent"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found() {
        let good = SettingsRequest::default().or_default(1 << 30);
        assert_eq!(good.fault(), None);
        let bad = [
            PoolSettings { budget_bytes: 0, ..good },
            PoolSettings { budget_bytes: MAXIMUM_BYTES + 1, ..good },
            PoolSettings { idle_tax_percent: 100, ..good },
            PoolSettings { watermarks_millipercent: [6000, 4000, 4000, 1000], ..good },
            PoolSettings { watermarks_millipercent: [100_000, 4000, 2000, 1000], ..good },
        ];
        assert!(bad.iter().all(|settings| settings.fault().is_some()));
    }

    #[test]
    fn only_what_was_asked_for_differs() {
        let pool = SettingsRequest::default().or_default(1 << 30);
        assert_eq!(SettingsRequest::default().difference(&pool), None);
        let same = SettingsRequest { budget_bytes: Some(1 << 30), ..SettingsRequest::default() };
        assert_eq!(same.difference(&pool), None);
        let asked = SettingsRequest { watermarks_millipercent: Some([6500, 4000, 2000, 500]), ..same };
        let difference = asked.difference(&pool).map(|(_, has, asked)| (has, asked));
        assert_eq!(difference, Some(("6,4,2,1 percent".into(), "6.5,4,2,0.5 percent".into())));
    }

    #[test]
    fn the_reserve_is_the_first_watermark() {
        assert_eq!(SettingsRequest::default().or_default(1000).reserve_bytes(), 60);
        assert_eq!(SettingsRequest::default().or_default(MAXIMUM_BYTES).reserve_bytes(), MAXIMUM_BYTES / 100 * 6 + 5);
    }
}
