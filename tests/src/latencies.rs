//! How long things took that were done one after the other, and how many of them.

use std::time::Duration;

/// Times of what was done, in order.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    /// Seconds from the beginning at which each ended, and how long it took.
    ends: Vec<(f64, Duration)>,
}

impl Latencies {
    /// Adds one that ended so long after the beginning.
    pub fn add(&mut self, end: Duration, took: Duration) {
        self.ends.push((end.as_secs_f64(), took));
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// How many a second there were, until the last; zero of none.
    pub fn per_second(&self) -> f64 {
        self.ends.last().map_or(0.0, |&(end, _)| self.count() as f64 / end)
    }

    /// The time within which so many of a hundred were done (nearest rank); zero of none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut times: Vec<_> = self.ends.iter().map(|&(_, took)| took).collect();
        times.sort_unstable();
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times.get(rank - 1).copied().unwrap_or_default()
    }

    /// How many a second there were, over time: points of so many seconds each.
    pub fn rates(&self, seconds: f64) -> Vec<(f64, f64)> {
        let end = self.ends.last().map_or(0.0, |&(end, _)| end);
        let mut counts = vec![0_u32; (end / seconds) as usize + 1];
        self.ends.iter().for_each(|(end, _)| counts[(end / seconds) as usize] += 1);
        // The last part is cut short.
        counts.pop();
        let middle = |part: usize| (part as f64 + 0.5) * seconds;
        counts.iter().enumerate().map(|(part, &count)| (middle(part), f64::from(count) / seconds)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_rates() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.percentile(99), latencies.rates(1.0)), (Duration::ZERO, vec![]));
        assert_eq!(latencies.per_second(), 0.0);
        for number in 1..=200_u64 {
            latencies.add(Duration::from_millis(10 * number), Duration::from_millis(201 - number));
        }
        assert_eq!(latencies.count(), 200);
        assert_eq!([50, 99, 100].map(|percent| latencies.percentile(percent).as_millis()), [100, 198, 200]);
        assert!((latencies.per_second() - 100.0).abs() < 1e-9);
        assert_eq!(latencies.rates(1.0), [(0.5, 99.0), (1.5, 100.0)]);
    }
}
