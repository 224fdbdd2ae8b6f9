//! The ways of sharing, each of which can be switched: they differ in price and in what they reveal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which ways of sharing are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mechanisms {
    /// Zero pages go back to the host.
    pub zero: bool,
    /// Equal pages that have left guest RAM are stored once.
    pub store: bool,
    /// Equal pages in guest RAM are merged by the kernel, with those of other guests.
    pub ksm: bool,
}

impl Mechanisms {
    /// None of them.
    pub const OFF: Self = Self { zero: false, store: false, ksm: false };

    const NAMES: [&'static str; 3] = ["zero", "store", "ksm"];

    fn flags(self) -> [bool; 3] {
        [self.zero, self.store, self.ksm]
    }
}

impl Default for Mechanisms {
    /// What reveals nothing to other guests.
    fn default() -> Self {
        Self { zero: true, store: true, ksm: false }
    }
}

/// Text that names no ways of sharing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}': sharing is off, or some of zero,store,ksm")]
pub struct MechanismsError {
    text: String,
}

impl FromStr for Mechanisms {
    type Err = MechanismsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let mut named = Self::OFF;
        for name in text.split(',') {
            let flag = match name.trim() {
                "zero" => &mut named.zero,
                "store" => &mut named.store,
                "ksm" => &mut named.ksm,
                _ => return Err(MechanismsError { text: text.to_owned() }),
            };
            *flag = true;
        }
        Ok(named)
    }
}

impl TryFrom<String> for Mechanisms {
    type Error = MechanismsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mechanisms> for String {
    fn from(mechanisms: Mechanisms) -> Self {
        mechanisms.to_string()
    }
}

impl fmt::Display for Mechanisms {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Self::NAMES.into_iter().zip(self.flags()).filter_map(|(name, is)| is.then_some(name)).collect();
        formatter.write_str(if names.is_empty() { "off" } else { "" })?;
        formatter.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_what_they_are_called() {
        for text in ["off", "zero", "store", "ksm", "zero,store", "zero,store,ksm", "store,ksm"] {
            assert_eq!(text.parse::<Mechanisms>().map(|mechanisms| mechanisms.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(
            " ksm, zero".parse::<Mechanisms>().map(|mechanisms| mechanisms.to_string()),
            Ok("zero,ksm".to_owned())
        );
        assert_eq!(Mechanisms::default().to_string(), "zero,store");
        for text in ["", "on", "zero,", "ksm,off", "tps"] {
            assert!(text.parse::<Mechanisms>().is_err(), "{text}");
        }
    }
}
