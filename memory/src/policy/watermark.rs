//! How short a pool is of memory: five levels of its free memory, with hysteresis.
//!
//! The levels and their means are those of ESX (Waldspurger, OSDI 2002, section 6.3), with a level below the last at
//! which nobody grows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A line is left upward this part of the distance to the line above it later than it was crossed downward.
const MARGIN_PART: u64 = 4;

/// The least margin: one cluster, so that a single fault does not go back and forth over a line.
const LEAST_MARGIN_BYTES: u64 = 64 << 10;

/// How short of memory a pool is; what is worse is greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// There is enough: nothing is taken.
    #[default]
    High,
    /// Balloons take.
    Soft,
    /// Pages are compressed and swapped too.
    Hard,
    /// Members above their grant wait before they grow.
    Low,
    /// Nobody above its reservation grows.
    Stop,
}

impl Level {
    /// From the best to the worst.
    pub const ALL: [Self; 5] = [Self::High, Self::Soft, Self::Hard, Self::Low, Self::Stop];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Low => "low",
            Self::Stop => "stop",
        }
    }

    /// The level of a number, counted from the best.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The level below this one; the last one for itself.
    pub(super) fn below(self) -> Self {
        *Self::ALL.get(self as usize + 1).unwrap_or(&Self::Stop)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The lines between the levels, in percent of the budget: below the first it is no longer high, below the last it is
/// stop. Written as `6,4,2,1`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Watermarks {
    percents: [f64; 4],
}

/// Why a text is no four watermarks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WatermarksError {
    /// There are more or fewer than four.
    #[error("watermarks '{text}': {count} given, four are needed, as in 6,4,2,1")]
    Count {
        /// What was given.
        text: String,
        /// How many parts it has.
        count: usize,
    },
    /// A part is no number.
    #[error("watermarks '{text}': '{part}' is not a number")]
    Number {
        /// What was given.
        text: String,
        /// The part.
        part: String,
    },
    /// A part is no sensible share of a budget.
    #[error("watermarks '{text}': {percent} is not above 0 and below 50 percent")]
    Range {
        /// What was given.
        text: String,
        /// The part.
        percent: f64,
    },
    /// A part is not below the one before it.
    #[error("watermarks '{text}': {next} comes after {percent}, each must be lower than the one before")]
    Order {
        /// What was given.
        text: String,
        /// The earlier part.
        percent: f64,
        /// The later part.
        next: f64,
    },
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { percents: [6.0, 4.0, 2.0, 1.0] }
    }
}

impl Watermarks {
    /// Watermarks in thousandths of a percent; `None` unless they fall, all above 0 and below 50 percent.
    pub fn from_millipercent(millipercent: [u32; 4]) -> Option<Self> {
        let falls = millipercent.windows(2).all(|pair| pair[0] > pair[1]);
        let percents = millipercent.map(|mark| f64::from(mark) / 1000.0);
        (falls && millipercent[3] > 0 && millipercent[0] < 50_000).then_some(Self { percents })
    }

    /// The watermarks in thousandths of a percent.
    pub fn millipercent(&self) -> [u32; 4] {
        self.percents.map(|percent| (percent * 1000.0).round() as u32)
    }

    /// The free memory at which a level ends downward; 0 for the last, which has no end.
    pub fn line_bytes(&self, level: Level, budget_bytes: u64) -> u64 {
        let percent = self.percents.get(level as usize).copied().unwrap_or(0.0);
        (budget_bytes as f64 * percent / 100.0) as u64
    }

    /// The free memory at which a level is entered from below: its line and a quarter of the distance to the line above
    /// it (the one below it for the highest), at least 64 KiB.
    pub fn entry_bytes(&self, level: Level, budget_bytes: u64) -> u64 {
        let line_bytes = self.line_bytes(level, budget_bytes);
        let other = match level {
            Level::High | Level::Hard => Level::Soft,
            Level::Soft => Level::High,
            Level::Low => Level::Hard,
            // Every level is better.
            Level::Stop => return 0,
        };
        let distance_bytes = self.line_bytes(other, budget_bytes).abs_diff(line_bytes);
        line_bytes + (distance_bytes / MARGIN_PART).max(LEAST_MARGIN_BYTES)
    }

    /// The level after `level`, now that so much of the budget is free (negative: used beyond it). Down at once and over
    /// several lines if need be; up to the best level whose [entry](Self::entry_bytes) is reached.
    pub fn next(&self, level: Level, free_bytes: i64, budget_bytes: u64) -> Level {
        let best = |bound_bytes: fn(&Self, Level, u64) -> u64| {
            let reached = |&level: &Level| i128::from(free_bytes) >= i128::from(bound_bytes(self, level, budget_bytes));
            Level::ALL.into_iter().find(reached).unwrap_or(Level::Stop)
        };
        let fallen_to = best(Self::line_bytes);
        if fallen_to >= level { fallen_to } else { level.min(best(Self::entry_bytes)) }
    }
}

impl fmt::Display for Watermarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [high, soft, hard, low] = self.percents;
        write!(f, "{high},{soft},{hard},{low}")
    }
}

impl From<Watermarks> for String {
    fn from(watermarks: Watermarks) -> Self {
        watermarks.to_string()
    }
}

impl TryFrom<String> for Watermarks {
    type Error = WatermarksError;

    fn try_from(text: String) -> Result<Self, WatermarksError> {
        text.parse()
    }
}

impl FromStr for Watermarks {
    type Err = WatermarksError;

    fn from_str(text: &str) -> Result<Self, WatermarksError> {
        let number = |part: &str| {
            let part = part.trim();
            part.parse().map_err(|_| WatermarksError::Number { text: text.into(), part: part.into() })
        };
        let percents = text.split(',').map(number).collect::<Result<Vec<f64>, _>>()?;
        let percents = <[f64; 4]>::try_from(percents)
            .map_err(|parts| WatermarksError::Count { text: text.into(), count: parts.len() })?;
        if let Some(&percent) = percents.iter().find(|&&percent| !(percent > 0.0 && percent < 50.0)) {
            return Err(WatermarksError::Range { text: text.into(), percent });
        }
        match percents.windows(2).find(|pair| pair[1] >= pair[0]) {
            Some(pair) => Err(WatermarksError::Order { text: text.into(), percent: pair[0], next: pair[1] }),
            None => Ok(Self { percents }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Of a budget of 10000 MiB, 100 MiB are a percent.
    fn after(level: Level, free_mib: i64) -> Level {
        Watermarks::default().next(level, free_mib * MIB as i64, 10_000 * MIB)
    }

    #[test]
    fn a_level_is_entered_as_its_line_is_crossed() {
        assert_eq!(after(Level::High, 600), Level::High);
        assert_eq!(after(Level::High, 599), Level::Soft);
        assert_eq!(after(Level::Soft, 400), Level::Soft);
        assert_eq!(after(Level::Soft, 399), Level::Hard);
        assert_eq!(after(Level::High, 199), Level::Low, "two lines at once");
        assert_eq!(after(Level::High, 99), Level::Stop);
        assert_eq!(after(Level::High, i64::MIN >> 20), Level::Stop, "used beyond the budget");
    }

    #[test]
    fn a_level_is_left_upward_only_clearly_above_its_line() {
        assert_eq!(after(Level::Soft, 649), Level::Soft);
        assert_eq!(after(Level::Soft, 650), Level::High);
        assert_eq!(after(Level::Hard, 449), Level::Hard);
        assert_eq!(after(Level::Hard, 450), Level::Soft);
        assert_eq!(after(Level::Low, 250), Level::Hard);
        assert_eq!(after(Level::Stop, 124), Level::Stop);
        assert_eq!(after(Level::Stop, 125), Level::Low);
        assert_eq!(after(Level::Stop, 640), Level::Soft, "as far as it is clear");
        assert_eq!(after(Level::Stop, 5_000), Level::High);
    }

    #[test]
    fn watermarks_are_read_as_they_are_written() {
        for text in ["6,4,2,1", "49.5,4,0.25,0.1"] {
            assert_eq!(text.parse::<Watermarks>().unwrap().to_string(), text);
        }
        assert_eq!(" 6, 4 ,2,1".parse(), Ok(Watermarks::default()));
    }

    #[test]
    fn what_is_no_watermarks_is_refused_with_the_reason() {
        let refused = [
            ("6,4,2", "watermarks '6,4,2': 3 given, four are needed, as in 6,4,2,1"),
            ("6,4,2,1,0.5", "watermarks '6,4,2,1,0.5': 5 given, four are needed, as in 6,4,2,1"),
            ("6,4,,1", "watermarks '6,4,,1': '' is not a number"),
            ("6,4,2,1%", "watermarks '6,4,2,1%': '1%' is not a number"),
            ("6,4,2,0", "watermarks '6,4,2,0': 0 is not above 0 and below 50 percent"),
            ("50,4,2,1", "watermarks '50,4,2,1': 50 is not above 0 and below 50 percent"),
            ("6,4,NaN,1", "watermarks '6,4,NaN,1': NaN is not above 0 and below 50 percent"),
            ("6,4,4,1", "watermarks '6,4,4,1': 4 comes after 4, each must be lower than the one before"),
        ];
        for (text, message) in refused {
            assert_eq!(text.parse::<Watermarks>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn levels_and_watermarks_are_texts_in_reports() {
        assert_eq!(serde_json::to_string(&Level::ALL).unwrap(), r#"["high","soft","hard","low","stop"]"#);
        assert_eq!(format!("{:>6}", Level::Hard), "  hard");
        let text = serde_json::to_string(&Watermarks::default()).unwrap();
        assert_eq!(text, r#""6,4,2,1""#);
        assert_eq!(serde_json::from_str::<Watermarks>(&text).unwrap(), Watermarks::default());
        assert!(serde_json::from_str::<Watermarks>(r#""1,2,4,6""#).is_err());
    }

    fn level() -> impl Strategy<Value = Level> {
        (0..5usize).prop_map(|index| Level::ALL[index])
    }

    fn watermarks() -> impl Strategy<Value = Watermarks> {
        (0.1..10.0, 0.1..10.0, 0.1..10.0, 0.1..10.0).prop_map(|(a, b, c, d): (f64, f64, f64, f64)| Watermarks {
            percents: [a + b + c + d, b + c + d, c + d, d],
        })
    }

    proptest! {
        #[test]
        fn the_same_free_memory_keeps_the_level(
            lines in watermarks(), level in level(), free in -1000..5000i64, budget_mib in 0..10_000u64,
        ) {
            let free_bytes = free * budget_mib as i64 * MIB as i64 / 10_000;
            let once = lines.next(level, free_bytes, budget_mib * MIB);
            prop_assert_eq!(lines.next(once, free_bytes, budget_mib * MIB), once);
        }

        #[test]
        fn more_free_memory_is_never_worse(
            lines in watermarks(), level in level(), free_mib in -100..2000i64, more_mib in 0..2000i64,
        ) {
            let next = |free_mib: i64| lines.next(level, free_mib * MIB as i64, 4000 * MIB);
            prop_assert!(next(free_mib + more_mib) <= next(free_mib));
        }

        #[test]
        fn any_numbers_are_taken(lines in watermarks(), level in level(), free: i64, budget: u64) {
            lines.next(level, free, budget);
        }
    }
}
