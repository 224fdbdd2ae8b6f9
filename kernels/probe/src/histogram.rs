//! A log-linear histogram: 32 steps in every power of two, so a value is known to about 3 %.

/// Steps in a power of two, as a power of two.
const STEP_BITS: u32 = 5;
const STEPS: usize = 1 << STEP_BITS;
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) * STEPS;

/// Counts of values, in whatever unit the values have. All zero bits is an empty histogram.
#[derive(Debug, Clone)]
#[repr(C)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    pub const fn new() -> Self {
        Self { counts: [0; BUCKETS], total: 0, max: 0 }
    }

    /// Forgets every value.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
        self.max = 0;
    }

    /// Counts one value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        if value > self.max {
            self.max = value;
        }
    }

    /// Adds everything another histogram counted.
    pub fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *ours += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many values were counted.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The greatest value, exactly; 0 when there is none.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// The value that `per_mille` of 1000 values do not exceed (nearest rank, upper edge of its bucket); 0 when empty.
    pub fn quantile(&self, per_mille: u64) -> u64 {
        let rank = (u128::from(self.total) * u128::from(per_mille)).div_ceil(1000).max(1) as u64;
        let mut seen = 0;
        for (at, &count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_edge(at).min(self.max);
            }
        }
        self.max
    }
}

#[inline]
const fn bucket(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - STEP_BITS;
    // The top STEP_BITS + 1 bits of the value; the leading one carries into the next power of two.
    (shift as usize) * STEPS + (value >> shift) as usize
}

/// The greatest value that falls into the bucket.
const fn upper_edge(bucket: usize) -> u64 {
    if bucket < 2 * STEPS {
        return bucket as u64;
    }
    let shift = bucket / STEPS - 1;
    let top = (bucket % STEPS + STEPS) as u64;
    // Written this way round so that the last bucket does not overflow.
    (top << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_values_are_exact() {
        let mut histogram = Histogram::new();
        (1..=60).for_each(|value| histogram.record(value));
        assert_eq!((histogram.quantile(500), histogram.quantile(1000), histogram.total()), (30, 60, 60));
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        let histogram = Histogram::new();
        assert_eq!((histogram.quantile(999), histogram.max(), histogram.total()), (0, 0, 0));
    }

    #[test]
    fn the_tail_is_the_tail() {
        let mut histogram = Histogram::new();
        (0..998).for_each(|_| histogram.record(100));
        histogram.record(50_000);
        histogram.record(1_000_000);
        assert!((100..=103).contains(&histogram.quantile(500)));
        assert!((50_000..=51_600).contains(&histogram.quantile(999)));
        assert_eq!(histogram.max(), 1_000_000);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_value(value: u64) {
            let at = bucket(value);
            prop_assert!(at < BUCKETS);
            prop_assert!(value <= upper_edge(at));
            prop_assert!(at == 0 || upper_edge(at - 1) < value);
            prop_assert!(upper_edge(at) - value <= value / STEPS as u64);
        }

        #[test]
        fn quantiles_are_near_the_sorted_truth(
            mut values in prop::collection::vec(0..10_000_000u64, 1..500),
            per_mille in 1..=1000u64,
        ) {
            let (mut left, mut right) = (Histogram::new(), Histogram::new());
            for (at, &value) in values.iter().enumerate() {
                if at % 2 == 0 { left.record(value) } else { right.record(value) }
            }
            left.merge(&right);
            values.sort_unstable();
            let truth = values[(values.len() as u64 * per_mille).div_ceil(1000) as usize - 1];
            let found = left.quantile(per_mille);
            prop_assert!(found >= truth && found <= truth + truth / 32, "{} for {}", found, truth);
        }
    }
}
