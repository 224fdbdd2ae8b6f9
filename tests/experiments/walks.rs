//! Probes that work until they are told to verify what they hold, and how fast they were.

use cistern_tests::process::Running;

/// Does a step over and over until the probe is told to verify, and stays.
pub fn working(step: &str) -> String {
    format!("repeat:told,({step});verify;repeat:told,(idle:1)")
}

/// Touches a second of walks that followed each other.
pub struct Rates {
    /// In order.
    pub all: Vec<f64>,
    /// The one in the middle.
    pub median: f64,
}

impl Rates {
    /// Of the next walks of a probe, of which there is at least one; the one it is at is not among them.
    pub fn of(probe: &mut Running, count: usize) -> Self {
        probe.catch_up();
        probe.wait_for_phase("walk");
        let rate = |_| probe.wait_for_phase("walk")["touches_per_s"].as_f64().expect("a walk has a rate");
        let all: Vec<f64> = (0..count).map(rate).collect();
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        Self { median: sorted[count / 2], all }
    }
}
