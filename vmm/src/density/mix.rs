//! Which guest runs which program.

use std::str::FromStr;

/// What stands for a guest's number in a program.
const NUMBER: &str = "{n}";

/// A program, and for how many of the guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Guests of each round through all parts.
    pub weight: u32,
    /// The program as the user wrote it.
    pub program: String,
}

/// Text that is no part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}': write a program of the probe, or WEIGHT:PROGRAM with a weight of 1 to {WEIGHT_MAX}")]
pub struct PartError(String);

/// Finer parts than this of a pool's guests are none.
const WEIGHT_MAX: u32 = 1000;

impl FromStr for Part {
    type Err = PartError;

    /// `PROGRAM`, or `WEIGHT:PROGRAM`: no step of a program begins with a digit.
    fn from_str(text: &str) -> Result<Self, PartError> {
        let invalid = || PartError(text.to_owned());
        let weighted = text.split_once(':').filter(|(weight, _)| weight.starts_with(|c: char| c.is_ascii_digit()));
        let (weight, program) = match weighted {
            Some((weight, program)) => (weight.parse().map_err(|_| invalid())?, program),
            None => (1, text),
        };
        if !(1..=WEIGHT_MAX).contains(&weight) || program.trim().is_empty() {
            return Err(invalid());
        }
        Ok(Self { weight, program: program.to_owned() })
    }
}

impl Part {
    /// The program of guest `number`; guests count from 1.
    pub fn of_guest(&self, number: usize) -> String {
        self.program.replace(NUMBER, &number.to_string())
    }
}

/// The part of each of so many guests: at every point of the row each part has as many as its weight says, within one.
pub fn interleave(weights: &[u32], guests: usize) -> Vec<usize> {
    let total: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
    let mut due = vec![0i64; weights.len()];
    let mut next = || {
        due.iter_mut().zip(weights).for_each(|(due, &weight)| *due += i64::from(weight));
        // The first of those that wait longest.
        let part = (0..due.len()).rev().max_by_key(|&part| due[part])?;
        due[part] -= total;
        Some(part)
    };
    (0..guests).map_while(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_told_from_a_step() {
        let part = |text: &str| text.parse::<Part>().map(|part| (part.weight, part.program));
        assert_eq!(part("fill:4M;verify"), Ok((1, "fill:4M;verify".to_owned())));
        assert_eq!(part("3:fill:4M,seed={n}"), Ok((3, "fill:4M,seed={n}".to_owned())));
        for text in ["", " ", "3:", "0:verify", "1001:verify", "-1:verify", "1x:verify", "99999999999:verify"] {
            assert_eq!(part(text).is_err(), text != "-1:verify", "{text}");
        }
        let part: Part = "fill:4M,seed={n};fill:1M,seed=9{n}".parse().expect("a part");
        assert_eq!(part.of_guest(12), "fill:4M,seed=12;fill:1M,seed=912");
    }

    #[test]
    fn parts_take_turns_by_weight() {
        assert_eq!(interleave(&[1], 3), [0, 0, 0]);
        assert_eq!(interleave(&[1, 1], 4), [0, 1, 0, 1]);
        let mix = interleave(&[7, 3], 100);
        for end in 1..=100 {
            let active = mix[..end].iter().filter(|&&part| part == 1).count() as f64;
            assert!((active - end as f64 * 0.3).abs() < 1.0, "{active} of {end}");
        }
        assert_eq!(interleave(&[], 3), [0; 0]);
    }
}
