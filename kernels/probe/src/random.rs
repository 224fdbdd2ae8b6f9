//! Deterministic numbers: a mixing function and a generator made of it.
//!
//! One 64x64 -> 128 bit multiplication a word: fast enough to make and check page contents at memory speed.

/// Golden ratio and square roots of primes, as odd 64-bit fractions: constants with nothing up their sleeve.
const PHI: u64 = 0x9e37_79b9_7f4a_7c15;
const SQRT_3: u64 = 0xbb67_ae85_84ca_a73b;
const SQRT_5: u64 = 0x3c6e_f372_fe94_f82b;

/// Mixes two words into one; every bit of both reaches every bit of the result.
#[inline]
pub const fn mix(a: u64, b: u64) -> u64 {
    let product = ((a ^ PHI) as u128).wrapping_mul((b ^ SQRT_3) as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

/// A stream of random-looking words, the same for the same seed everywhere.
#[derive(Debug, Clone)]
pub struct Generator {
    state: u64,
}

impl Generator {
    /// A stream of its own for each seed.
    #[inline]
    pub const fn new(seed: u64) -> Self {
        Self { state: mix(seed, SQRT_5) }
    }

    /// The next word.
    #[inline]
    pub const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(PHI);
        mix(self.state, self.state.rotate_left(32) ^ SQRT_5)
    }

    /// A number below `bound`, which must not be zero; even to one part in 2^64 / bound.
    #[inline]
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_seed_and_repeat_by_seed() {
        let take = |seed| {
            let mut generator = Generator::new(seed);
            core::array::from_fn::<u64, 8, _>(|_| generator.next())
        };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }

    #[test]
    fn every_bit_is_set_half_the_time() {
        let mut generator = Generator::new(42);
        let mut ones = [0u32; 64];
        for _ in 0..10_000 {
            let word = generator.next();
            for (bit, count) in ones.iter_mut().enumerate() {
                *count += (word >> bit) as u32 & 1;
            }
        }
        assert!(ones.iter().all(|&count| (4_700..=5_300).contains(&count)), "{ones:?}");
    }

    #[test]
    fn below_stays_below_and_reaches_everything() {
        let mut generator = Generator::new(7);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[generator.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (850..=1_150).contains(&count)), "{seen:?}");
    }
}
