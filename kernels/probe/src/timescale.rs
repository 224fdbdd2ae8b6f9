//! From time stamp counter ticks to nanoseconds.

/// Where the scale comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// KVM's paravirtual clock.
    Kvmclock,
    /// Measured against the interval timer.
    Pit,
    /// Neither answered: one tick is taken for a nanosecond.
    Assumed,
}

impl Source {
    /// The name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvmclock => "kvmclock",
            Self::Pit => "pit",
            Self::Assumed => "assumed",
        }
    }
}

/// Nanoseconds = ticks * multiplier / 2^32, after a shift (KVM's pvclock ABI).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timescale {
    multiplier: u32,
    shift: i8,
    /// Where the scale comes from.
    pub source: Source,
}

impl Timescale {
    /// A scale for when nothing is known.
    pub const ASSUMED: Self = Self { multiplier: 1 << 31, shift: 1, source: Source::Assumed };

    /// The scale KVM gives; `None` if it gave none.
    pub const fn kvmclock(multiplier: u32, shift: i8) -> Option<Self> {
        if multiplier == 0 || shift < -31 || shift > 31 {
            return None;
        }
        Some(Self { multiplier, shift, source: Source::Kvmclock })
    }

    /// The scale by which `ticks` took `nanoseconds`; `None` if that is not a believable processor.
    pub const fn measured(ticks: u64, nanoseconds: u64) -> Option<Self> {
        let (mut multiplier, mut shift) =
            (((nanoseconds as u128) << 32) / (if ticks == 0 { 1 } else { ticks as u128 }), 0);
        while multiplier >> 32 != 0 {
            multiplier >>= 1;
            shift += 1;
        }
        // Between 10 MHz and 100 GHz.
        if shift > 7 || multiplier < (1 << 32) / 100 {
            return None;
        }
        Some(Self { multiplier: multiplier as u32, shift, source: Source::Pit })
    }

    /// Nanoseconds that many ticks take.
    #[inline]
    pub const fn nanoseconds(&self, ticks: u64) -> u64 {
        let shifted = if self.shift >= 0 { (ticks as u128) << self.shift } else { ticks as u128 >> -self.shift };
        ((shifted * self.multiplier as u128) >> 32) as u64
    }

    /// Ticks in that many nanoseconds.
    pub const fn ticks(&self, nanoseconds: u64) -> u64 {
        let shifted = ((nanoseconds as u128) << 32) / self.multiplier as u128;
        (if self.shift >= 0 { shifted >> self.shift } else { shifted << -self.shift }) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kvm_scales_both_ways() {
        // 2.5 GHz as KVM writes it: shift -1, 0.8 * 2^32.
        let scale = Timescale::kvmclock(3_435_973_837, -1).expect("a scale");
        assert_eq!((scale.nanoseconds(2_500_000_000) + 1) / 10, 100_000_000);
        assert_eq!(scale.ticks(1_000_000) / 100, 25_000 - 1);
        assert_eq!((Timescale::kvmclock(0, 0), Timescale::kvmclock(1, 40)), (None, None));
        assert_eq!((Timescale::ASSUMED.nanoseconds(77), Timescale::ASSUMED.ticks(77)), (77, 77));
    }

    #[test]
    fn measuring_refuses_nonsense() {
        assert_eq!(Timescale::measured(0, 10_000_000), None);
        assert_eq!(Timescale::measured(u64::MAX, 10_000_000), None);
    }

    proptest! {
        #[test]
        fn measured_scales_go_round(megahertz in 10..20_000u64, microseconds in 1..1_000_000_000u64) {
            let scale = Timescale::measured(megahertz * 10_000, 10_000_000).expect("a believable processor");
            let ticks = megahertz * microseconds;
            let nanoseconds = scale.nanoseconds(ticks);
            prop_assert!(nanoseconds.abs_diff(microseconds * 1000) <= 1 + microseconds / 1000, "{}", nanoseconds);
            prop_assert!(scale.ticks(nanoseconds).abs_diff(ticks) <= 1 + megahertz / 1000 + ticks / 1_000_000);
        }
    }
}
