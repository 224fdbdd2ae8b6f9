//! What a guest of the demo has told so far.

use serde_json::Value;

/// The state of one guest, from the lines it printed.
#[derive(Debug, Default)]
pub struct Progress {
    /// The step it finished last.
    pub phase: String,
    /// Steps of its program that are done; `None` before it has booted.
    pub steps: Option<usize>,
    /// Pages of its last fill.
    pub filled_pages: u64,
    /// Pages its last `verify` looked at.
    pub verified_pages: u64,
    /// Bad pages that all looks at its pages have found.
    pub bad_pages: u64,
    /// Touches a second of its last walk.
    pub touches_per_second: Option<f64>,
    /// Median time of a touch in the last walk.
    pub p50_ns: Option<u64>,
    /// Exit status, once it ended; `None` inside for a signal.
    pub status: Option<Option<i32>>,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
    has_verified: bool,
    complaint: Option<String>,
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
            "boot" => self.steps = Some(0),
            "fill" | "verify" | "walk" | "idle" | "free" => self.steps = self.steps.map(|steps| steps + 1),
            // What else is told is no step.
            _ => {}
        }
        if matches!(phase, "verify" | "walk") {
            self.bad_pages += value["bad"].as_u64().unwrap_or(0);
        }
        match phase {
            "verify" => {
                self.verified_pages = value["pages"].as_u64().unwrap_or(0);
                match value["bad"].as_u64() {
                    Some(0) if self.verified_pages > 0 => self.has_verified = true,
                    _ => self.fail(line),
                }
            }
            "bad" => self.fail(line),
            "fill" => self.filled_pages = value["pages"].as_u64().unwrap_or(0),
            "walk" => {
                self.touches_per_second = value["touches_per_s"].as_f64();
                self.p50_ns = value["p50_ns"].as_u64();
            }
            _ => {}
        }
        self.phase = phase.to_owned();
    }

    /// Takes a line the VMM has written on stderr: it may be why the guest ends.
    pub fn take_complaint(&mut self, line: &str) {
        self.complaint = Some(line.to_owned());
    }

    /// The guest has ended.
    pub fn end(&mut self, status: Option<i32>) {
        self.status = Some(status);
        if status != Some(0) {
            let status = status.map_or("a signal".to_owned(), |code| format!("status {code}"));
            let cause = self.complaint.as_deref().map_or(String::new(), |complaint| format!(": {complaint}"));
            self.fail(&format!("ended with {status}{cause}"));
        } else if !self.has_verified {
            self.fail("ended before it had verified its pages");
        }
    }

    /// True when the guest ended well and had verified its pages before, with no bad one.
    pub fn is_good(&self) -> bool {
        self.status == Some(Some(0)) && self.failure.is_none()
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
    fn who_has_verified_and_ended_is_good() {
        assert!(after(&[VERIFIED], Some(0)).is_good());
        assert!(!after(&[], Some(0)).is_good(), "nothing was looked at");
        let mut running = Progress::default();
        running.take_line(VERIFIED);
        assert!(!running.is_good(), "it may still fail");
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
            assert!(!after(&[VERIFIED, line], Some(0)).is_good(), "{line}");
        }
        assert!(!after(&[VERIFIED], Some(3)).is_good());
        assert!(!after(&[VERIFIED], None).is_good());
    }

    #[test]
    fn bad_pages_are_counted_once() {
        let walked = r#"{"phase":"walk","pages":16,"bad":2,"touches_per_s":5}"#;
        let verified = r#"{"phase":"verify","pages":16,"bad":1}"#;
        let progress = after(&[walked, r#"{"phase":"bad","page":3}"#, verified], Some(65));
        assert_eq!((progress.bad_pages, progress.verified_pages), (3, 16));
    }

    #[test]
    fn a_complaint_explains_the_end() {
        let mut progress = Progress::default();
        progress.take_complaint("cistern: no room");
        progress.end(Some(1));
        assert_eq!(progress.failure.as_deref(), Some("ended with status 1: cistern: no room"));
    }

    #[test]
    fn steps_are_those_of_the_program() {
        let lines = [r#"{"phase":"boot"}"#, r#"{"phase":"fill"}"#, r#"{"phase":"idle"}"#, r#"{"phase":"balloon"}"#];
        assert_eq!(after(&lines, Some(0)).steps, Some(2));
        assert_eq!(Progress::default().steps, None);
    }
}
