//! How long pages stay in a guest's RAM where others have to come back: what that memory is worth to whoever holds colder pages
//! in the same pool ([`tiers`](super::tiers)).

use std::time::Duration;

/// Time over which the rate is averaged: a burst of a second is not what a guest works with.
const AVERAGED: Duration = Duration::from_secs(5);

/// Follows one guest's refaults. Memory that grows for the first time brings no page back, so a guest that boots or fills its
/// memory has nobody's pages written away.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Turnover {
    seen: Option<(u64, u64)>,
    bytes_per_second: f64,
}

impl Turnover {
    /// Takes what had come back in total at a time, in nanoseconds; one that was taken before tells nothing new.
    pub fn take(&mut self, time_ns: u64, refaulted_bytes: u64) {
        let (before_ns, before_bytes) = self.seen.unwrap_or((time_ns, refaulted_bytes));
        self.seen = Some((time_ns, refaulted_bytes));
        let passed = Duration::from_nanos(time_ns.saturating_sub(before_ns));
        if passed.is_zero() {
            return;
        }
        let rate = refaulted_bytes.saturating_sub(before_bytes) as f64 / passed.as_secs_f64();
        let weight = 1.0 - (-passed.div_duration_f64(AVERAGED)).exp();
        self.bytes_per_second += weight * (rate - self.bytes_per_second);
    }

    /// How long a page stays, where so many bytes are in guest RAM and pages come back as they do; the longest there is where
    /// none do.
    pub fn residence(&self, resident_bytes: u64) -> Duration {
        residence(resident_bytes, self.bytes_per_second)
    }
}

/// How long each of so many stays, where so many a second come; the longest there is where none do.
pub fn residence(resident: u64, coming_per_second: f64) -> Duration {
    Duration::try_from_secs_f64(resident as f64 / coming_per_second).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn after(seconds: u64, bytes_per_second: u64) -> Turnover {
        let mut turnover = Turnover::default();
        (0..=seconds).for_each(|second| turnover.take(second * SECOND_NS, second * bytes_per_second));
        turnover
    }

    #[test]
    fn a_guest_whose_pages_come_back_is_followed() {
        assert_eq!(Turnover::default().residence(1000), Duration::MAX);
        assert_eq!(after(10, 0).residence(1000), Duration::MAX);
        let residence = after(60, 100).residence(1000).as_secs_f64();
        assert!((residence - 10.0).abs() < 0.1, "{residence}");
        let burst = after(1, 100).residence(1000).as_secs_f64();
        assert!(burst > 50.0, "{burst}: a second tells little");
    }

    #[test]
    fn what_is_told_twice_counts_once() {
        let mut turnover = after(60, 100);
        let before = turnover;
        turnover.take(60 * SECOND_NS, 6000);
        assert_eq!(turnover, before);
        turnover.take(59 * SECOND_NS, 7000);
        assert_eq!(turnover.bytes_per_second, before.bytes_per_second, "nor does what comes late");
    }
}
