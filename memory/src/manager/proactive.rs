//! How much is taken before anybody needs the memory, as far as that costs the guest nothing it would feel. Pure.

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
}

impl Proactive {
    /// The next step of a member that holds `charge_bytes`; `None` before it is time for one. `pressure` reads the host's,
    /// where it is known; it is asked once a period.
    pub fn step(
        &mut self,
        now: Instant,
        usage: &PagerUsage,
        pressure: impl FnOnce() -> Option<Pressure>,
        charge_bytes: u64,
        working_set_bytes: u64,
    ) -> Option<ProactiveStep> {
        if self.looked.is_some_and(|before| now.duration_since(before.at) < PERIOD) {
            return None;
        }
        let look = Look { at: now, usage: *usage, pressure: pressure() };
        let before = self.looked.replace(look)?;
        Some(look.since(&before, charge_bytes, working_set_bytes).step())
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
        let mut step = |seconds, usage: &PagerUsage| {
            proactive.step(start + Duration::from_secs(seconds), usage, || None, 1000 * MIB, 100 * MIB)
        };
        let a_hundredth = Some(ProactiveStep::Reclaim(10 * MIB));
        assert_eq!(step(0, &usage), None);
        assert_eq!(step(5, &usage), None, "nothing is known before a period is over");
        assert_eq!(step(6, &usage), a_hundredth);
        assert_eq!(step(11, &usage), None, "one step a period");
        usage.refault_stall_ns = 100_000_000;
        let stalled = step(12, &usage);
        assert!(
            matches!(stalled, Some(ProactiveStep::BackOff(_))),
            "it stalled for a sixtieth of the time: {stalled:?}"
        );
        assert_eq!(step(18, &usage), a_hundredth);
        // 0.2 % of 100 MiB a minute is 20 KiB in six seconds.
        usage.refaulted_pages = 6;
        assert_eq!(step(24, &usage), Some(ProactiveStep::Reclaim(0)));
        assert_eq!(step(30, &usage), a_hundredth);
    }

    #[test]
    fn a_host_that_stalls_is_spared() {
        let (mut proactive, start) = (Proactive::default(), Instant::now());
        let mut takes = |seconds, stalled_ms: Option<u64>| {
            let pressure = || stalled_ms.map(|ms| Pressure { stalled: Duration::from_millis(ms) });
            let now = start + Duration::from_secs(seconds);
            let step = proactive.step(now, &PagerUsage::default(), pressure, 1000 * MIB, 100 * MIB);
            matches!(step, Some(ProactiveStep::Reclaim(bytes)) if bytes > 0)
        };
        assert!(!takes(0, Some(7000)));
        assert!(takes(6, Some(7001)), "what was before is not ours, and a millisecond is little");
        assert!(!takes(12, Some(7100)));
        assert!(takes(18, Some(7100)));
        assert!(takes(24, None), "it cannot be read any more");
        assert!(takes(30, Some(9000)), "nor was it at the last look");
        assert!(!takes(36, Some(9100)));
    }
}
