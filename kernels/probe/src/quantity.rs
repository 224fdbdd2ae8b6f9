//! Numbers, sizes and times as programs spell them.

use crate::PAGE_SIZE;
use crate::program::ParseError;

/// A decimal number of at most `max`.
///
/// # Errors
/// Anything else.
pub fn number(text: &str, max: u64) -> Result<u64, ParseError<'_>> {
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.filter(|&number| number <= max).ok_or(ParseError { near: text, cause: "not a number in range" })
}

/// A size in pages, rounded up; at least one.
///
/// # Errors
/// Anything else, and more pages than there are numbers.
pub fn size(text: &str) -> Result<u32, ParseError<'_>> {
    let error = ParseError { near: text, cause: "not a size (bytes, or a number and K, M or G)" };
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let units = number(digits, u64::MAX).map_err(|_| error)?;
    let bytes = units.checked_mul(1 << shift).ok_or(error)?;
    u32::try_from(bytes.div_ceil(PAGE_SIZE)).ok().filter(|&pages| pages > 0).ok_or(error)
}

/// Seconds with up to three digits behind the point, at most eleven days.
///
/// # Errors
/// Anything else.
pub fn milliseconds(text: &str) -> Result<u64, ParseError<'_>> {
    const LIMIT_SECONDS: u64 = 1_000_000;
    let error = ParseError { near: text, cause: "not a number of seconds" };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (whole, digits) = (number(whole, LIMIT_SECONDS).map_err(|_| error)?, fraction.len() as u32);
    if digits > 3 || (digits == 0 && text.contains('.')) {
        return Err(error);
    }
    let fraction = if digits == 0 { 0 } else { number(fraction, 999).map_err(|_| error)? };
    Ok(whole * 1000 + fraction * 10u64.pow(3 - digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_to_pages() {
        for (text, pages) in [("1", 1), ("4096", 1), ("4097", 2), ("4K", 1), ("5k", 2), ("1M", 256), ("2g", 524_288)] {
            assert_eq!(size(text), Ok(pages), "{text}");
        }
        for text in ["", "K", "0", "0G", "-1", "1T", "1.5M", "16384G", "18446744073709551615"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_milliseconds() {
        for (text, expected) in [("0", 0), ("2", 2_000), ("0.5", 500), ("1.25", 1_250), ("3.007", 3_007)] {
            assert_eq!(milliseconds(text), Ok(expected), "{text}");
        }
        for text in ["", ".", ".5", "1.", "1.2345", "1e3", "1000001", "1.x"] {
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }
}
