//! CPU time that a thread may use.

use std::time::{Duration, Instant};

use crate::cpu_time::thread_cpu_time;

/// How much a thread may use ahead of its share.
const BURST: Duration = Duration::from_millis(10);

/// A share of one CPU, of which what is not used is lost.
#[derive(Debug)]
pub(crate) struct CpuShare {
    budget: f64,
    /// What of that is used now.
    share: f64,
    looked: Instant,
    began: Duration,
    used: Duration,
    /// Seconds of CPU time that may be used now; negative when too much was.
    credit: f64,
}

impl CpuShare {
    /// For the calling thread.
    pub fn new(percent: u32) -> Self {
        let used = thread_cpu_time();
        let budget = f64::from(percent) / 100.0;
        Self { budget, share: budget, looked: Instant::now(), began: used, used, credit: BURST.as_secs_f64() }
    }

    /// CPU time used as of the last call of [`CpuShare::pause`].
    pub fn used(&self) -> Duration {
        self.used.saturating_sub(self.began)
    }

    /// From now on only this part of the share is used, above 0 and at most 1.
    pub fn use_part(&mut self, part: f64) {
        self.share = self.budget * part;
    }

    /// How long to pause before going on, after what the thread has used since the last call.
    pub fn pause(&mut self) -> Option<Duration> {
        let (now, used) = (Instant::now(), thread_cpu_time());
        let (passed, spent) = (now - self.looked, used.saturating_sub(self.used));
        (self.looked, self.used) = (now, used);
        self.account(passed, spent)
    }

    /// As [`CpuShare::pause`], but when there has to be one, until so much CPU time may be used again.
    pub fn pause_for(&mut self, lump: Duration) -> Option<Duration> {
        let pause = self.pause()?;
        Some(pause + lump.min(BURST).div_f64(self.share))
    }

    fn account(&mut self, passed: Duration, spent: Duration) -> Option<Duration> {
        let earned = passed.as_secs_f64() * self.share;
        self.credit = (self.credit + earned - spent.as_secs_f64()).min(BURST.as_secs_f64());
        (self.credit < 0.0).then(|| Duration::from_secs_f64(-self.credit / self.share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_too_much_is_waited_for() {
        let mut share = CpuShare::new(20);
        let milliseconds = Duration::from_millis;
        assert_eq!(share.account(milliseconds(10), milliseconds(10)), None, "within the burst");
        let pause = share.account(milliseconds(10), milliseconds(10)).expect("16 ms too much, 10 of them allowed");
        assert!((pause.as_secs_f64() - 0.030).abs() < 1e-6, "{pause:?}");
        assert_eq!(share.account(pause, Duration::ZERO), None);
        // Rest is no licence to burn.
        share.account(Duration::from_secs(1000), Duration::ZERO);
        assert!(share.account(milliseconds(50), milliseconds(50)).is_some());
    }

    #[test]
    fn a_part_of_it_is_used() {
        let mut share = CpuShare::new(50);
        let (mut used, mut passed) = (Duration::ZERO, Duration::ZERO);
        let step = Duration::from_micros(200);
        share.use_part(0.1);
        while passed < Duration::from_secs(100) {
            (used, passed) = (used + step, passed + step);
            if let Some(pause) = share.account(step, step) {
                // Longer than it must be, as a thread may well sleep.
                let pause = pause.max(Duration::from_millis(10));
                passed += pause;
                assert_eq!(share.account(pause, Duration::ZERO), None, "what was too much is paid");
            }
        }
        let part = used.as_secs_f64() / passed.as_secs_f64();
        assert!((part - 0.05).abs() < 0.001, "{part}");
    }
}
