//! A VM's place in a pool, as its user asks for it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cistern_memory::ledger::JoinRequest;
use cistern_memory::manager::{ManagerConfig, ReclaimMode};
use cistern_memory::sharing::ksm::TunerConfig;
use clap::ValueEnum;
use serde::Deserialize;

use crate::size::Size;

/// Shares of a guest with normal shares, for each MiB.
const NORMAL_SHARES_PER_MIB: u64 = 10;

/// Text that does not say what is asked for; the message says what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}': {form}")]
pub struct PoolTextError {
    text: String,
    form: &'static str,
}

fn refused(text: &str, form: &'static str) -> PoolTextError {
    PoolTextError { text: text.to_owned(), form }
}

/// A VM in a pool, every default filled in.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// The pool's folder.
    pub folder: PathBuf,
    /// What this VM brings and asks for.
    pub request: JoinRequest,
    /// How it behaves.
    pub manager: ManagerConfig,
    /// How it drives the host's KSM when it leads; `None` to leave that alone.
    pub ksm_tuner: Option<TunerConfig>,
}

/// What a pool may use: `512M`, or `auto` for what the host or the cgroup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub enum Budget {
    /// So much.
    Size(Size),
    /// What there is.
    Auto,
}

impl FromStr for Budget {
    type Err = PoolTextError;

    fn from_str(text: &str) -> Result<Self, PoolTextError> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Size).map_err(|_| refused(text, "a budget is a size like 8G, or auto")),
        }
    }
}

/// A VM's part when active memory does not fit: `low`, `normal` and `high` are 1 : 2 : 4 a MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub enum Shares {
    /// So many for each MiB of the guest.
    PerMib(u64),
    /// So many.
    Number(u64),
}

impl Shares {
    /// For a guest of this size; at least 1.
    pub fn of(self, memory: Size) -> u64 {
        match self {
            Self::Number(shares) => shares,
            Self::PerMib(shares) => (memory.bytes >> 20).max(1) * shares,
        }
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerMib(shares) => write!(formatter, "{shares} a MiB"),
            Self::Number(shares) => write!(formatter, "{shares}"),
        }
    }
}

impl Default for Shares {
    fn default() -> Self {
        Self::PerMib(NORMAL_SHARES_PER_MIB)
    }
}

impl FromStr for Shares {
    type Err = PoolTextError;

    fn from_str(text: &str) -> Result<Self, PoolTextError> {
        match text {
            "low" => Ok(Self::PerMib(NORMAL_SHARES_PER_MIB / 2)),
            "normal" => Ok(Self::default()),
            "high" => Ok(Self::PerMib(NORMAL_SHARES_PER_MIB * 2)),
            _ => match text.parse() {
                Ok(shares @ 1..=cistern_memory::ledger::MAXIMUM_SHARES) => Ok(Self::Number(shares)),
                _ => Err(refused(text, "shares are low, normal, high or a number above 0")),
            },
        }
    }
}

/// A time like `5s` or `500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = PoolTextError;

    fn from_str(text: &str) -> Result<Self, PoolTextError> {
        const FORM: &str = "a period is 100ms to 1h, like 5s or 500ms";
        let (number, unit) = match text.strip_suffix("ms") {
            Some(number) => (number, 0.001),
            None => (text.strip_suffix('s').unwrap_or(text), 1.0),
        };
        let seconds = number.parse::<f64>().map_err(|_| refused(text, FORM))? * unit;
        match Duration::try_from_secs_f64(seconds) {
            Ok(period) if (0.1..=3600.0).contains(&seconds) => Ok(Self(period)),
            _ => Err(refused(text, FORM)),
        }
    }
}

/// When pages are taken from a guest without its help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ReclaimChoice {
    /// Never
    Off,
    /// When the pool is short of memory
    Pressure,
    /// Cold pages always, as far as that does not cost the guest
    Proactive,
}

impl From<ReclaimChoice> for ReclaimMode {
    fn from(choice: ReclaimChoice) -> Self {
        match choice {
            ReclaimChoice::Off => Self::Off,
            ReclaimChoice::Pressure => Self::Pressure,
            ReclaimChoice::Proactive => Self::Proactive,
        }
    }
}

/// What a file may have where such a text is meant.
#[derive(Deserialize)]
#[serde(untagged, expecting = "text or a whole number")]
enum Text {
    Number(u64),
    Text(String),
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        match text {
            Text::Number(number) => number.to_string(),
            Text::Text(text) => text,
        }
    }
}

impl TryFrom<Text> for Budget {
    type Error = PoolTextError;

    fn try_from(text: Text) -> Result<Self, PoolTextError> {
        String::from(text).parse()
    }
}

impl TryFrom<Text> for Shares {
    type Error = PoolTextError;

    fn try_from(text: Text) -> Result<Self, PoolTextError> {
        String::from(text).parse()
    }
}

impl TryFrom<Text> for Period {
    type Error = PoolTextError;

    fn try_from(text: Text) -> Result<Self, PoolTextError> {
        String::from(text).parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_by_size_or_a_number() {
        let of = |text: &str| text.parse::<Shares>().map(|shares| shares.of(Size::mebibytes(128)));
        assert_eq!([of("low"), of("normal"), of("high"), of("7")], [Ok(640), Ok(1280), Ok(2560), Ok(7)]);
        assert_eq!(Shares::default().of(Size { bytes: 4096 }), 10);
        for text in ["", "0", "-1", "1.5", "medium", "9999999999999999"] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn budgets_and_periods_are_what_they_say() {
        assert_eq!("auto".parse(), Ok(Budget::Auto));
        assert_eq!("1G".parse(), Ok(Budget::Size(Size { bytes: 1 << 30 })));
        assert!("all".parse::<Budget>().is_err());
        for (text, milliseconds) in [("5s", 5000), ("500ms", 500), ("2", 2000), ("0.5s", 500)] {
            assert_eq!(text.parse(), Ok(Period(Duration::from_millis(milliseconds))), "{text}");
        }
        for text in ["", "s", "0", "-5s", "99ms", "2h", "nan", "inf", "4000s"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }
}
