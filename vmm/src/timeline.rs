//! Where the time between process start and the guest's first instruction goes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

/// Moments of a start, in the order they came. Marks cost a clock reading each.
#[derive(Debug, Default)]
pub struct Timeline {
    // Marked by the main thread and, at the end, by the first vCPU's; read when both are done.
    marks: Mutex<Vec<(&'static str, Duration)>>,
}

impl Timeline {
    /// Notes that `step` is done.
    pub fn mark(&self, step: &'static str) {
        let now = monotonic_now();
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).push((step, now));
    }

    /// The absolute time of the first mark (`CLOCK_MONOTONIC`, nanoseconds) and how long each further step took
    /// (microseconds).
    pub fn to_json(&self) -> Value {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let steps: Map<_, _> = marks
            .windows(2)
            .map(|pair| (pair[1].0.to_owned(), json!(pair[1].1.saturating_sub(pair[0].1).as_micros() as u64)))
            .collect();
        let start_ns = marks.first().map(|(_, time)| time.as_nanos() as u64);
        let total_us = match (marks.first(), marks.last()) {
            (Some(first), Some(last)) => Some((last.1 - first.1).as_micros() as u64),
            _ => None,
        };
        json!({ "start_monotonic_ns": start_ns, "steps_us": steps, "total_us": total_us })
    }
}

/// `CLOCK_MONOTONIC`, which other processes of this host share; `Instant` does not show its value.
fn monotonic_now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_up_to_the_total() {
        let timeline = Timeline::default();
        assert_eq!(timeline.to_json()["total_us"], Value::Null);
        for step in ["start", "a", "b"] {
            timeline.mark(step);
        }
        let report = timeline.to_json();
        let step = |name: &str| report["steps_us"][name].as_u64().expect("a step");
        assert!(report["total_us"].as_u64().expect("a total").abs_diff(step("a") + step("b")) <= 1, "{report}");
        assert!(report["steps_us"]["start"].is_null());
    }
}
