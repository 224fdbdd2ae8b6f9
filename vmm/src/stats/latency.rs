//! Times and how they are distributed, in a few characters.

use serde_json::Value;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A time of three digits or so: `850ns`, `12.3us`, `4.5ms`, `2.0s`.
pub fn time(ns: u64) -> String {
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    match units.into_iter().find(|&(unit, _)| ns >= unit) {
        Some((unit, name)) if ns >= 100 * unit => format!("{}{name}", ns / unit),
        Some((unit, name)) => format!("{:.1}{name}", ns as f64 / unit as f64),
        None => format!("{ns}ns"),
    }
}

/// A histogram as bars, each twice as long a time as the one before it; their heights are logarithms too, so that few
/// long times show beside many short ones. Between the longest times of the first and last bar.
pub fn bars(histogram: &Value) -> String {
    // One slot for each power of two.
    let mut counts = [0u64; 64];
    for step in histogram.as_array().into_iter().flatten() {
        let (up_to_ns, count) = (step["up_to_ns"].as_u64().unwrap_or(0), step["count"].as_u64().unwrap_or(0));
        counts[up_to_ns.max(1).ilog2() as usize] += count;
    }
    let filled = |count: &u64| *count > 0;
    let (Some(first), Some(last)) = (counts.iter().position(filled), counts.iter().rposition(filled)) else {
        return String::new();
    };
    let highest = counts.iter().max().copied().unwrap_or(0);
    let bar = |count: &u64| match count {
        0 => ' ',
        count => BARS[((count.ilog2() + 1) as usize * BARS.len()).div_ceil((highest.ilog2() + 1) as usize) - 1],
    };
    let drawn: String = counts[first..=last].iter().map(bar).collect();
    let longest = |slot: usize| time(u64::MAX >> (63 - slot));
    format!("{} {drawn} {}", longest(first), longest(last))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_short() {
        for (ns, text) in [(0, "0ns"), (999, "999ns"), (1_500, "1.5us"), (123_456, "123us"), (2_000_000_000, "2.0s")] {
            assert_eq!(time(ns), text);
        }
    }

    #[test]
    fn bars_stand_for_powers_of_two() {
        assert_eq!(bars(&json!([])), "");
        assert_eq!(bars(&Value::Null), "");
        assert_eq!(bars(&json!([{"up_to_ns": 1000, "count": 1}])), "1.0us █ 1.0us");
        // 1000 and 1023 are one bar, the next is empty, 4000 is few.
        let histogram = json!([
            {"up_to_ns": 1000, "count": 500}, {"up_to_ns": 1023, "count": 500}, {"up_to_ns": 4000, "count": 1}
        ]);
        assert_eq!(bars(&histogram), "1.0us █ ▁ 4.1us");
        assert!(bars(&json!([{"up_to_ns": u64::MAX, "count": 1}])).contains('█'));
    }
}
