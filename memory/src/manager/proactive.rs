//! Cold pages taken before anybody needs the memory, as far as that costs the guest nothing it would feel.

use std::time::{Duration, Instant};

use crate::pager::PagerUsage;
use crate::policy::brake::{ProactiveStep, Promotion};
use crate::{PAGE_SIZE, Pressure};

/// How often a step is taken.
const PERIOD: Duration = Duration::from_secs(6);

/// A look from which the next period is measured.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    usage: PagerUsage,
    pressure: Option<Pressure>,
}

/// Steps of one guest.
#[derive(Debug, Default)]
pub(super) struct Proactive {
    looked: Option<Look>,
    goal_bytes: Option<u64>,
}

impl Proactive {
    /// What a member that holds `charge_bytes` should give pages down to now, if it should. `pressure` reads the host's, where
    /// it is known; it is asked once a period.
    pub fn goal_bytes(
        &mut self,
        now: Instant,
        usage: &PagerUsage,
        pressure: impl FnOnce() -> Option<Pressure>,
        charge_bytes: u64,
        working_set_bytes: u64,
    ) -> Option<u64> {
        if self.looked.is_some_and(|before| now.duration_since(before.at) < PERIOD) {
            return self.goal_bytes;
        }
        let look = Look { at: now, usage: *usage, pressure: pressure() };
        if let Some(before) = self.looked.replace(look) {
            let promotion = look.since(&before, charge_bytes, working_set_bytes);
            self.goal_bytes = match promotion.step() {
                ProactiveStep::Reclaim(bytes) if bytes >= PAGE_SIZE => Some(charge_bytes - bytes),
                ProactiveStep::Reclaim(_) | ProactiveStep::BackOff(_) => None,
            };
        }
        self.goal_bytes
    }
}

impl Look {
    /// What came of reclaim since another look.
    fn since(&self, before: &Self, charge_bytes: u64, working_set_bytes: u64) -> Promotion {
        let period = self.at.duration_since(before.at);
        let part = |stalled: Duration| stalled.as_secs_f64() / period.as_secs_f64();
        let refaulted_pages = self.usage.refaulted_pages.saturating_sub(before.usage.refaulted_pages);
        let stall_ns = self.usage.refault_stall_ns.saturating_sub(before.usage.refault_stall_ns);
        let host_stalled = self.pressure.zip(before.pressure);
        Promotion {
            charge_bytes,
            working_set_bytes,
            refaulted_bytes: refaulted_pages * PAGE_SIZE,
            period,
            stall_fraction: part(Duration::from_nanos(stall_ns)),
            host_stall_fraction: host_stalled.map(|(now, before)| part(now.stalled.saturating_sub(before.stalled))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_cold_guest_gives_a_little_each_period_and_one_that_stalls_nothing() {
        let (mut proactive, start) = (Proactive::default(), Instant::now());
        let mut usage = PagerUsage::default();
        let mut goal = |seconds, usage: &PagerUsage| {
            proactive.goal_bytes(start + Duration::from_secs(seconds), usage, || None, 1000 * MIB, 100 * MIB)
        };
        assert_eq!(goal(0, &usage), None);
        assert_eq!(goal(5, &usage), None, "nothing is known before a period is over");
        assert_eq!(goal(6, &usage), Some(990 * MIB), "a hundredth");
        assert_eq!(goal(11, &usage), Some(990 * MIB));
        usage.refault_stall_ns = 100_000_000;
        assert_eq!(goal(12, &usage), None, "it stalled for a sixtieth of the time");
        assert_eq!(goal(18, &usage), Some(990 * MIB));
        // 0.2 % of 100 MiB a minute is 20 KiB in six seconds.
        usage.refaulted_pages = 6;
        assert_eq!(goal(24, &usage), None);
        assert!(goal(30, &usage).is_some());
    }

    #[test]
    fn a_host_that_stalls_is_spared() {
        let (mut proactive, start) = (Proactive::default(), Instant::now());
        let mut goal = |seconds, stalled_ms: Option<u64>| {
            let pressure = || stalled_ms.map(|ms| Pressure { stalled: Duration::from_millis(ms) });
            let now = start + Duration::from_secs(seconds);
            proactive.goal_bytes(now, &PagerUsage::default(), pressure, 1000 * MIB, 100 * MIB)
        };
        assert_eq!(goal(0, Some(7000)), None);
        assert_eq!(goal(6, Some(7001)), Some(990 * MIB), "what was before is not ours, and a millisecond is little");
        assert_eq!(goal(12, Some(7100)), None);
        assert_eq!(goal(18, Some(7100)), Some(990 * MIB));
        assert_eq!(goal(24, None), Some(990 * MIB), "it cannot be read any more");
        assert_eq!(goal(30, Some(9000)), Some(990 * MIB), "nor was it at the last look");
        assert_eq!(goal(36, Some(9100)), None);
    }
}
