//! Cold pages taken before anybody needs the memory, as far as that costs the guest nothing it would feel.

use std::time::{Duration, Instant};

use crate::PAGE_SIZE;
use crate::pager::PagerUsage;
use crate::policy::brake::{ProactiveStep, Promotion};

/// How often a step is taken.
const PERIOD: Duration = Duration::from_secs(6);

/// Steps of one guest.
#[derive(Debug, Default)]
pub(super) struct Proactive {
    looked: Option<(Instant, PagerUsage)>,
    goal_bytes: Option<u64>,
}

impl Proactive {
    /// What a member that holds `charge_bytes` should give pages down to now, if it should.
    pub fn goal_bytes(
        &mut self,
        now: Instant,
        usage: &PagerUsage,
        charge_bytes: u64,
        working_set_bytes: u64,
    ) -> Option<u64> {
        let Some((looked, before)) = self.looked else {
            self.looked = Some((now, *usage));
            return None;
        };
        let period = now.duration_since(looked);
        if period >= PERIOD {
            self.looked = Some((now, *usage));
            let stall_ns = usage.refault_stall_ns.saturating_sub(before.refault_stall_ns);
            let promotion = Promotion {
                charge_bytes,
                working_set_bytes,
                refaulted_bytes: usage.refaulted_pages.saturating_sub(before.refaulted_pages) * PAGE_SIZE,
                period,
                stall_fraction: stall_ns as f64 / period.as_nanos() as f64,
            };
            self.goal_bytes = match promotion.step() {
                ProactiveStep::Reclaim(bytes) if bytes >= PAGE_SIZE => Some(charge_bytes - bytes),
                ProactiveStep::Reclaim(_) | ProactiveStep::BackOff(_) => None,
            };
        }
        self.goal_bytes
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
            proactive.goal_bytes(start + Duration::from_secs(seconds), usage, 1000 * MIB, 100 * MIB)
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
}
