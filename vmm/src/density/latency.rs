//! Touch latencies of many phases as one distribution.

use serde::Serialize;

use super::goodput::Window;
use super::record::Phase;

/// What the guest prints of a phase's latencies: shares of its touches, in parts of a thousand, that took no longer than
/// the median, the 99th and 99.9th percentile and the longest, each without those before it.
const SHARES_PER_MILLE: [f64; 4] = [500.0, 490.0, 9.0, 1.0];

/// Latency of touches, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Half of the touches took no longer.
    pub p50: u64,
    /// 99 % took no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// Steps of a distribution.
#[derive(Debug, Clone, Default)]
pub struct Mixture {
    /// Times, and how many touches took no longer than each and longer than the phase's next shorter one.
    steps: Vec<(u64, f64)>,
}

impl Mixture {
    /// Adds phases of a guest, each as far as it is in the window.
    pub fn add(&mut self, phases: &[Phase], window: &Window) {
        for phase in phases {
            let touches = phase.touches as f64 * window.part_of(phase);
            if touches > 0.0 {
                self.steps.extend(
                    phase.latency_ns.iter().zip(SHARES_PER_MILLE).map(|(&ns, share)| (ns, touches * share / 1000.0)),
                );
            }
        }
    }

    /// Exact for one phase; for several at most too long, since of what is between two steps the longer is taken. `None`
    /// without any.
    pub fn latency(mut self) -> Option<Latency> {
        self.steps.sort_unstable_by_key(|step| step.0);
        let total: f64 = self.steps.iter().map(|step| step.1).sum();
        let max = self.steps.last()?.0;
        let quantile = |share: f64| {
            let mut seen = 0.0;
            // Sums of parts are not quite the whole.
            let step = self.steps.iter().find(|(_, touches)| {
                seen += touches;
                seen >= total * share * (1.0 - 1e-9)
            });
            step.map_or(max, |step| step.0)
        };
        Some(Latency { p50: quantile(0.5), p99: quantile(0.99), max })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::record::PhaseKind;
    use super::*;

    #[test]
    fn phases_weigh_by_their_touches() {
        let start = Instant::now();
        let (end, length) = (start + Duration::from_secs(10), Duration::from_secs(1));
        let window = Window { start, end };
        let phase = |touches, latency_ns, at| Phase { kind: PhaseKind::Walk, at, length, touches, latency_ns };
        let latency = |phases: &[Phase]| {
            let mut mixture = Mixture::default();
            mixture.add(phases, &window);
            mixture.latency()
        };
        let quick = phase(1000, [10, 20, 30, 40], end);
        assert_eq!(latency(&[quick]), Some(Latency { p50: 10, p99: 20, max: 40 }));
        let slow = |touches| phase(touches, [500, 600, 700, 800], end);
        assert_eq!(latency(&[quick, slow(11)]), Some(Latency { p50: 20, p99: 500, max: 800 }));
        assert_eq!(latency(&[quick, slow(4000)]), Some(Latency { p50: 500, p99: 600, max: 800 }));
        assert_eq!(latency(&[quick, phase(9000, [900; 4], start)]), latency(&[quick]), "before the window");
        assert_eq!(latency(&[]), None);
    }
}
