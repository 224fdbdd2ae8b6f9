//! Which page of a working set a walk touches next.

use crate::random::Generator;

/// How a walk chooses pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Every page equally often, in random order.
    Uniform,
    /// The page of rank r about as often as 1 / r: a few pages take most touches. Ranks are scattered over the set.
    Zipf,
    /// One after the other, round and round.
    Sequential,
}

impl Distribution {
    /// The name used in programs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::Sequential => "sequential",
        }
    }
}

/// A stream of page numbers below a bound.
#[derive(Debug, Clone)]
pub struct Chooser {
    distribution: Distribution,
    pages: u64,
    next_sequential: u64,
    /// log2(pages + 1), 32 bits behind the point.
    log2_ranks: u64,
}

/// A prime above any number of pages, so that multiples of it visit every page.
const SCATTER: u64 = 2_654_435_761;

impl Chooser {
    /// Chooses among `pages` pages, at least one.
    pub const fn new(distribution: Distribution, pages: u32) -> Self {
        let pages = if pages == 0 { 1 } else { pages as u64 };
        Self { distribution, pages, next_sequential: 0, log2_ranks: log2(pages + 1) }
    }

    /// The next page number.
    #[inline]
    pub const fn next(&mut self, random: &mut Generator) -> u32 {
        (match self.distribution {
            Distribution::Uniform => random.below(self.pages),
            Distribution::Zipf => self.rank(random.next()) * SCATTER % self.pages,
            Distribution::Sequential => {
                let page = self.next_sequential;
                self.next_sequential = if page + 1 == self.pages { 0 } else { page + 1 };
                page
            }
        }) as u32
    }

    /// Rank from 0 by inversion of the continuous distribution: rank + 1 = (pages + 1) ^ u, u even in [0, 1). So rank r
    /// (from 1) has probability log(1 + 1 / r) / log(pages + 1): Zipf's law with exponent 1.
    const fn rank(&self, random: u64) -> u64 {
        let exponent = ((random as u128 * self.log2_ranks as u128) >> 64) as u64;
        let rank = exp2(exponent) - 1;
        if rank >= self.pages { self.pages - 1 } else { rank }
    }
}

/// 2 ^ (i / 64) for i in 0..=64, 32 bits behind the point.
const POWERS: [u64; 65] = {
    // 2 ^ (1 / 64), 62 bits behind the point; the powers follow by multiplication.
    const ROOT: u128 = 4_661_903_986_662_671_289;
    let mut powers = [0; 65];
    let mut power: u128 = 1 << 62;
    let mut at = 0;
    while at < powers.len() {
        powers[at] = ((power + (1 << 29)) >> 30) as u64;
        power = (power * ROOT) >> 62;
        at += 1;
    }
    powers
};

/// Integer part of 2 ^ exponent; the exponent has 32 bits behind the point and is below 33.
const fn exp2(exponent: u64) -> u64 {
    let fraction = exponent & 0xffff_ffff;
    let (at, between) = ((fraction >> 26) as usize, fraction & ((1 << 26) - 1));
    let power = POWERS[at] + (((POWERS[at + 1] - POWERS[at]) * between) >> 26);
    ((power as u128) << (exponent >> 32) >> 32) as u64
}

/// log2(value), rounded down, 32 bits behind the point; the value is not zero. By repeated squaring.
const fn log2(value: u64) -> u64 {
    let whole = 63 - value.leading_zeros() as u64;
    // The value scaled into [1, 2), 62 bits behind the point.
    let mut mantissa = (value << (63 - whole)) >> 1;
    let (mut fraction, mut bit) = (0, 32);
    while bit > 0 {
        bit -= 1;
        let square = (mantissa as u128 * mantissa as u128) >> 62;
        if square >> 63 != 0 {
            fraction |= 1 << bit;
            mantissa = (square >> 1) as u64;
        } else {
            mantissa = square as u64;
        }
    }
    whole << 32 | fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(distribution: Distribution, pages: u32, touches: u32) -> Vec<u32> {
        let (mut chooser, mut random) = (Chooser::new(distribution, pages), Generator::new(1));
        let mut counts = vec![0; pages as usize];
        (0..touches).for_each(|_| counts[chooser.next(&mut random) as usize] += 1);
        counts
    }

    #[test]
    fn sequential_visits_every_page_in_turn() {
        let (mut chooser, mut random) = (Chooser::new(Distribution::Sequential, 3), Generator::new(1));
        let pages: Vec<u32> = (0..7).map(|_| chooser.next(&mut random)).collect();
        assert_eq!(pages, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn uniform_is_even() {
        let counts = counts(Distribution::Uniform, 100, 100_000);
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }

    #[test]
    fn zipf_follows_one_over_rank() {
        let pages = 1_000;
        let mut counts = counts(Distribution::Zipf, pages, 1_000_000);
        assert!(counts.iter().all(|&count| count > 0), "every page is reached");
        counts.sort_unstable_by(|left, right| right.cmp(left));
        for rank in [1u32, 2, 5, 10, 100] {
            let share = (1.0 + 1.0 / f64::from(rank)).log2() / f64::from(pages + 1).log2();
            let found = f64::from(counts[rank as usize - 1]) / 1e6;
            assert!((found / share - 1.0).abs() < 0.12, "rank {rank}: {found} for {share}");
        }
    }

    #[test]
    fn zipf_is_scattered() {
        let counts = counts(Distribution::Zipf, 4_096, 100_000);
        let mut hottest: Vec<usize> = (0..counts.len()).collect();
        hottest.sort_unstable_by_key(|&page| core::cmp::Reverse(counts[page]));
        let clusters: std::collections::BTreeSet<usize> = hottest[..16].iter().map(|page| page / 16).collect();
        assert!(clusters.len() > 12, "{clusters:?}");
    }

    proptest! {
        #[test]
        fn logarithm_and_power_are_right(value in 1..1u64 << 32) {
            let exact = (value as f64).log2();
            prop_assert!((log2(value) as f64 / 4294967296.0 - exact).abs() < 1e-6);
            let back = exp2(log2(value)) as f64;
            prop_assert!((back - value as f64).abs() <= 1.0 + value as f64 * 1e-4, "{} for {}", back, value);
        }

        #[test]
        fn pages_stay_below_their_number(kind in 0..3usize, pages in 1..1u32 << 27, seed: u64) {
            let distribution = [Distribution::Uniform, Distribution::Zipf, Distribution::Sequential][kind];
            let (mut chooser, mut random) = (Chooser::new(distribution, pages), Generator::new(seed));
            for _ in 0..100 {
                prop_assert!(chooser.next(&mut random) < pages);
            }
        }
    }
}
