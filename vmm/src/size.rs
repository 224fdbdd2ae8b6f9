//! Sizes as people write them: `512M`, `2G`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A number of bytes, read from text like `512M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size {
    /// The size in bytes.
    pub bytes: u64,
}

/// Text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: write bytes or a number with K, M, G or T, like 512M")]
pub struct SizeError(String);

impl Size {
    /// A size in mebibytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self { bytes: count << 20 }
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let invalid = || SizeError(text.to_owned());
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let shift = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(invalid()),
        };
        let count: u64 = digits.parse().map_err(|_| invalid())?;
        let bytes = count.checked_mul(1 << shift).ok_or_else(invalid)?;
        Ok(Self { bytes })
    }
}

/// What a file may have where a size is meant: text, or a plain number of bytes.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size: bytes or text like \"512M\"")]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = SizeError;

    fn try_from(size: SizeText) -> Result<Self, SizeError> {
        match size {
            SizeText::Bytes(bytes) => Ok(Self { bytes }),
            SizeText::Text(text) => text.parse(),
        }
    }
}

/// In the largest unit that gives at least 1: whole (`512M`) or with one decimal (`23.5G`).
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1u64 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
        match units.into_iter().find(|&(unit, _)| self.bytes >= unit) {
            Some((unit, name)) if self.bytes.is_multiple_of(unit) => write!(f, "{}{name}", self.bytes / unit),
            Some((unit, name)) => write!(f, "{:.1}{name}", self.bytes as f64 / unit as f64),
            None => write!(f, "{}B", self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("1k", 1024), ("512M", 512 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(text.parse(), Ok(Size { bytes }), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1", "1.5G", "12X", "99999999999999999999", "99999999999T", "1 G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_short() {
        for (bytes, text) in [(512 << 20, "512M"), (3 << 30, "3G"), (100, "100B"), ((3 << 30) / 2, "1.5G")] {
            assert_eq!(Size { bytes }.to_string(), text);
        }
    }
}
