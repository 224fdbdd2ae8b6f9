//! What a guest of the demo has told so far.

use serde_json::Value;

/// The state of one guest, from the lines it printed.
#[derive(Debug, Default)]
pub struct Progress {
    /// The step it finished last.
    pub phase: String,
    /// Pages its last `verify` looked at.
    pub verified_pages: u64,
    /// Touches a second of its last walk.
    pub touches_per_second: Option<f64>,
    /// Median time of a touch in the last walk.
    pub p50_ns: Option<u64>,
    /// Memory it cost the host when last looked at, and at most.
    pub memory_bytes: u64,
    /// The most it ever cost.
    pub peak_bytes: u64,
    /// Exit status, once it ended; `None` inside for a signal.
    pub status: Option<Option<i32>>,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
    verifies: usize,
}

impl Progress {
    /// Takes a line of the guest's console.
    pub fn take_line(&mut self, line: &str) {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            return self.fail(line);
        };
        if let Some(error) = value["error"].as_str() {
            return self.fail(error);
        }
        let phase = value["phase"].as_str().unwrap_or_default();
        match phase {
            "verify" => match (value["pages"].as_u64(), value["bad"].as_u64()) {
                (Some(pages), Some(0)) if pages > 0 => {
                    self.verifies += 1;
                    self.verified_pages = pages;
                }
                _ => self.fail(line),
            },
            "bad" => self.fail(line),
            "walk" => {
                self.touches_per_second = value["touches_per_s"].as_f64();
                self.p50_ns = value["p50_ns"].as_u64();
            }
            _ => {}
        }
        self.phase = phase.to_owned();
    }

    /// Takes a measurement of the guest's memory.
    pub fn take_memory(&mut self, bytes: u64) {
        self.memory_bytes = bytes;
        self.peak_bytes = self.peak_bytes.max(bytes);
    }

    /// The guest has ended.
    pub fn end(&mut self, status: Option<i32>) {
        self.status = Some(status);
        if status != Some(0) {
            self.fail(&format!("ended with {}", status.map_or("a signal".to_owned(), |code| format!("status {code}"))));
        }
    }

    /// True when the guest ended well and verified its pages as often as its program says, with no bad one.
    pub fn is_good(&self, verifies: usize) -> bool {
        self.status == Some(Some(0)) && self.failure.is_none() && self.verifies == verifies
    }

    /// The first failure is the one that explains the others.
    fn fail(&mut self, what: &str) {
        self.failure.get_or_insert_with(|| what.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str], status: Option<i32>) -> Progress {
        let mut progress = Progress::default();
        lines.iter().for_each(|line| progress.take_line(line));
        progress.end(status);
        progress
    }

    const VERIFIED: &str = r#"{"phase":"verify","pages":16,"bad":0}"#;

    #[test]
    fn every_verify_counts() {
        assert!(after(&[VERIFIED, VERIFIED], Some(0)).is_good(2));
        assert!(!after(&[VERIFIED], Some(0)).is_good(2), "one is missing");
    }

    #[test]
    fn any_failure_is_one() {
        for line in [
            r#"{"phase":"verify","pages":16,"bad":1}"#,
            r#"{"phase":"verify","pages":0,"bad":0}"#,
            r#"{"phase":"verify"}"#,
            r#"{"phase":"bad","page":3}"#,
            r#"{"error":"exception 14"}"#,
            "garbage",
        ] {
            assert!(!after(&[VERIFIED, line], Some(0)).is_good(1), "{line}");
        }
        assert!(!after(&[VERIFIED], Some(3)).is_good(1));
        assert!(!after(&[VERIFIED], None).is_good(1));
    }
}
