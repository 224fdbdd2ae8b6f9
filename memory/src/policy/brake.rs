//! What keeps reclaim from costing more than it gives.
//!
//! [`Promotion`] bounds reclaim that nobody needs yet, by what comes back (Lagar-Cavilla and others, ASPLOS 2019: at most
//! 0.2 % of the working set a minute) and by how long the guest, or the host, stalls (senpai, Weiner and others,
//! ASPLOS 2022).
//! [`Thrash`] makes any reclaim spare younger pages while those it takes come back at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The part of the working set that may come back in a minute.
const PROMOTION_A_MINUTE: f64 = 0.002;

/// What senpai's figures are meant for.
const SENPAI_PERIOD: Duration = Duration::from_secs(6);

/// The part of a period that a guest may stall: 10 ms in 6 s.
const STALL_TARGET: f64 = 0.01 / 6.0;

/// The least stall that is told from none: 1 us in 6 s.
const LEAST_STALL: f64 = 1e-6 / 6.0;

/// How far under its target stall must be for the whole step.
const PROBE_FACTOR: f64 = 10.0;

/// The largest step down in 6 s.
const MOST_PROBE: f64 = 0.01;

/// How far over its target stall must be for the whole step back.
const BACK_OFF_FACTOR: f64 = 20.0;

/// What came of proactive reclaim in a period.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Promotion {
    /// What the member holds.
    pub charge_bytes: u64,
    /// What its guest uses; never taken proactively.
    pub working_set_bytes: u64,
    /// What came back in the period.
    pub refaulted_bytes: u64,
    /// How long that was.
    pub period: Duration,
    /// The guest's summed stall in the period, divided by the period; above 1 if several threads stalled.
    pub stall_fraction: f64,
    /// The part of the period in which others of the cgroup, or of the host, stalled for memory, where that is known.
    pub host_stall_fraction: Option<f64>,
}

/// The next step of proactive reclaim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProactiveStep {
    /// So many bytes may be taken in a period as long as the last one; 0 to wait.
    Reclaim(u64),
    /// The guest stalls, or the host does: it may grow so many bytes beyond its charge before anything is taken again.
    BackOff(u64),
}

impl Promotion {
    /// What may come back in the period.
    pub fn allowed_bytes(&self) -> u64 {
        (self.working_set_bytes as f64 * PROMOTION_A_MINUTE * self.period.as_secs_f64() / 60.0) as u64
    }

    /// The next step: senpai's, smaller the nearer what came back is to what may, and none when it is there.
    pub fn step(&self) -> ProactiveStep {
        let periods = self.period.as_secs_f64() / SENPAI_PERIOD.as_secs_f64();
        // The guest's is not in the host's: the kernel does not count waits for a userfaultfd. What the host is short of is had
        // by its watermarks; this reclaim can wait, and would only add to the others' waits for CPUs and disks.
        let stalls = [self.stall_fraction, self.host_stall_fraction.unwrap_or(0.0)];
        // Whatever is not a number is no licence.
        let stall = if stalls.iter().any(|stall| stall.is_nan()) {
            f64::INFINITY
        } else {
            stalls.into_iter().fold(LEAST_STALL, f64::max)
        };
        if stall > STALL_TARGET {
            let part = (stall / STALL_TARGET / BACK_OFF_FACTOR).powi(2).min(1.0);
            return ProactiveStep::BackOff((self.charge_bytes as f64 * part) as u64);
        }
        let probe = ((STALL_TARGET / stall / PROBE_FACTOR).powi(2) * MOST_PROBE).min(MOST_PROBE);
        let allowed_bytes = self.allowed_bytes();
        let unused_bytes = allowed_bytes.saturating_sub(self.refaulted_bytes);
        let room = unused_bytes as f64 / allowed_bytes.max(1) as f64;
        let step_bytes = (self.charge_bytes as f64 * probe * periods * room) as u64;
        ProactiveStep::Reclaim(step_bytes.min(self.charge_bytes.saturating_sub(self.working_set_bytes)))
    }
}

/// Pages that come back this soon after they were evicted were taken too young.
pub const SOON: Duration = Duration::from_secs(10);

/// One evicted page in so many may come back soon.
const TOLERATED_PART: u64 = 20;

/// So many pages that come back are chance.
const CHANCE_PAGES: u64 = 16;

/// The least age is at most this.
const MOST_AGE: Duration = Duration::from_secs(64);

/// How much the least age changes at the least.
const AGE_STEP: Duration = Duration::from_secs(1);

/// The least age at which pages are taken as long as there are older ones; where there are none, the oldest are. It
/// doubles with each period in which too much came back [soon](SOON), up to 64 s, and falls by a second in each other
/// one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thrash {
    least_age: Duration,
}

impl Thrash {
    /// The age.
    pub fn least_age(self) -> Duration {
        self.least_age
    }

    /// After a period in which so many pages were evicted and so many came back soon after they had been.
    #[must_use]
    pub fn next(self, evicted_pages: u64, soon_refaulted_pages: u64) -> Self {
        let too_many = soon_refaulted_pages > (evicted_pages / TOLERATED_PART).max(CHANCE_PAGES);
        let least_age = match too_many {
            true => self.least_age.saturating_mul(2).clamp(AGE_STEP, MOST_AGE),
            false => self.least_age.saturating_sub(AGE_STEP),
        };
        Self { least_age }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 1000 MiB held, 400 of them in use, of which 0.08 may come back in 6 s.
    fn quiet() -> Promotion {
        Promotion {
            charge_bytes: 1000 * MIB,
            working_set_bytes: 400 * MIB,
            refaulted_bytes: 0,
            period: SENPAI_PERIOD,
            stall_fraction: 0.0,
            host_stall_fraction: None,
        }
    }

    fn reclaimed_mib(promotion: Promotion) -> f64 {
        match promotion.step() {
            ProactiveStep::Reclaim(bytes) => (bytes as f64 / MIB as f64 * 100.0).round() / 100.0,
            ProactiveStep::BackOff(bytes) => -(bytes as f64 / MIB as f64).round(),
        }
    }

    #[test]
    fn the_step_shrinks_with_stall_and_turns_over_the_target() {
        let stalled =
            |target_part: f64| reclaimed_mib(Promotion { stall_fraction: STALL_TARGET * target_part, ..quiet() });
        assert_eq!(reclaimed_mib(quiet()), 10.0, "1 %");
        assert_eq!(stalled(0.1), 10.0);
        assert_eq!(stalled(0.5), 0.4);
        assert_eq!(stalled(0.99), 0.1);
        assert_eq!(stalled(2.0), -10.0, "(2 / 20)^2 of what is held");
        assert_eq!(stalled(1e9), -1000.0);
        assert_eq!(stalled(f64::NAN), -1000.0);
    }

    #[test]
    fn the_worse_of_both_stalls_counts() {
        let stalled = |guest_part: f64, host_part: f64| {
            reclaimed_mib(Promotion {
                stall_fraction: STALL_TARGET * guest_part,
                host_stall_fraction: Some(STALL_TARGET * host_part),
                ..quiet()
            })
        };
        assert_eq!(stalled(0.0, 0.0), 10.0);
        assert_eq!((stalled(0.5, 0.1), stalled(0.1, 0.5)), (0.4, 0.4));
        assert_eq!((stalled(2.0, 0.0), stalled(0.0, 2.0)), (-10.0, -10.0));
        assert_eq!(stalled(0.0, f64::NAN), -1000.0);
    }

    #[test]
    fn what_comes_back_is_bounded() {
        assert_eq!(quiet().allowed_bytes(), 400 * MIB / 5000);
        let refaulted = |part: f64| {
            reclaimed_mib(Promotion { refaulted_bytes: (quiet().allowed_bytes() as f64 * part) as u64, ..quiet() })
        };
        assert_eq!(refaulted(0.5), 5.0);
        assert_eq!(refaulted(1.0), 0.0);
        assert_eq!(refaulted(7.0), 0.0);
    }

    #[test]
    fn the_step_follows_the_period_and_stops_at_the_working_set() {
        assert_eq!(reclaimed_mib(Promotion { period: SENPAI_PERIOD / 6, ..quiet() }), 1.67);
        assert_eq!(reclaimed_mib(Promotion { period: Duration::ZERO, ..quiet() }), 0.0);
        assert_eq!(reclaimed_mib(Promotion { working_set_bytes: 998 * MIB, ..quiet() }), 2.0);
        assert_eq!(reclaimed_mib(Promotion { working_set_bytes: 2000 * MIB, ..quiet() }), 0.0);
        assert_eq!(reclaimed_mib(Promotion { working_set_bytes: 0, ..quiet() }), 0.0, "nothing may come back");
    }

    #[test]
    fn pages_that_come_back_soon_raise_the_age() {
        let seconds = |thrash: Thrash| thrash.least_age().as_secs();
        let calm = Thrash::default();
        assert_eq!(seconds(calm.next(1000, 50)), 0, "5 % are tolerated");
        assert_eq!(seconds(calm.next(0, 16)), 0, "few are chance");
        let mut thrash = calm;
        let ages: Vec<u64> = (0..9)
            .map(|_| {
                thrash = thrash.next(1000, 51);
                seconds(thrash)
            })
            .collect();
        assert_eq!(ages, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        thrash = thrash.next(1000, 0);
        assert_eq!(seconds(thrash), 63);
        for _ in 0..100 {
            thrash = thrash.next(0, 0);
        }
        assert_eq!(thrash, calm);
    }
}
