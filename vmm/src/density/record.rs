//! What a guest has told on its console.

use std::time::{Duration, Instant};

use serde_json::Value;

/// Which step of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseKind {
    /// A walk.
    Walk,
    /// A touch now and then of an idle guest.
    Touch,
}

/// A step that touched pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// Which.
    pub kind: PhaseKind,
    /// When it was told: its end.
    pub at: Instant,
    /// How long it took.
    pub length: Duration,
    /// Touches.
    pub touches: u64,
    /// Of a touch, in ns: median, 99th and 99.9th percentile, longest.
    pub latency_ns: [u64; 4],
}

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this status; `None` for a signal that was not ours.
    Status(Option<i32>),
    /// It was stopped when all was measured.
    Stopped,
}

/// The state of a guest, from the lines it printed.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// What it touched.
    pub phases: Vec<Phase>,
    /// When it said that it had booted.
    pub booted: Option<Instant>,
    /// Fills it has done.
    pub fills: usize,
    /// Times it looked at all its pages.
    pub verify_lines: u64,
    /// Pages these looks compared.
    pub verified_pages: u64,
    /// Pages that were not what they must be.
    pub bad_pages: u64,
    /// When its console was closed.
    pub closed: Option<Instant>,
    /// How it ended.
    pub ending: Option<Ending>,
    /// What went wrong first, if anything did.
    pub failure: Option<String>,
    complaint: Option<String>,
}

/// What a probe, or whoever prints as it does, tells that counts here.
const PHASES: [&str; 7] = ["boot", "fill", "verify", "walk", "touch", "bad", "exit"];

impl Record {
    /// Takes a line of the guest's console. A probe prints nothing but JSON; what others print is theirs, as long as it is
    /// none of a probe's [`PHASES`].
    pub fn take_line(&mut self, at: Instant, line: &str, is_probe: bool) {
        let Some(value) = serde_json::from_str::<Value>(line).ok().filter(Value::is_object) else {
            if is_probe {
                self.fail(line);
            }
            return;
        };
        let number = |name: &str| value[name].as_u64().unwrap_or(0);
        let phase = value["phase"].as_str().unwrap_or_default();
        if !is_probe && !PHASES.contains(&phase) {
            return;
        }
        if let Some(error) = value["error"].as_str() {
            return self.fail(error);
        }
        match phase {
            "boot" => self.booted = Some(at),
            "fill" => self.fills += 1,
            "verify" => {
                self.verify_lines += 1;
                self.verified_pages += number("pages");
            }
            "walk" | "touch" => self.phases.push(Phase {
                kind: if phase == "walk" { PhaseKind::Walk } else { PhaseKind::Touch },
                at,
                length: Duration::from_nanos(number("ns")),
                touches: number("touches"),
                latency_ns: ["p50_ns", "p99_ns", "p999_ns", "max_ns"].map(number),
            }),
            _ => {}
        }
        // Each bad page has a line of its own, too, up to a number.
        if matches!(phase, "verify" | "walk" | "touch") {
            self.bad_pages += number("bad");
        }
        if phase == "bad" || (phase != "exit" && number("bad") > 0) {
            self.fail(line);
        }
    }

    /// Takes a line the VMM has written on stderr: it may be why the guest ends.
    pub fn take_complaint(&mut self, line: &str) {
        self.complaint = Some(line.to_owned());
    }

    /// The guest has ended.
    pub fn end(&mut self, ending: Ending) {
        self.ending = Some(ending);
        let Ending::Status(status) = ending else { return };
        if status != Some(0) {
            let status = status.map_or("a signal".to_owned(), |code| format!("status {code}"));
            let cause = self.complaint.as_deref().map_or(String::new(), |complaint| format!(": {complaint}"));
            self.fail(&format!("ended with {status}{cause}"));
        }
    }

    /// Whether nothing went wrong.
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && self.bad_pages == 0
    }

    /// The first failure is the one that explains the others.
    fn fail(&mut self, what: &str) {
        self.failure.get_or_insert_with(|| what.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> Record {
        let mut record = Record::default();
        lines.iter().for_each(|line| record.take_line(Instant::now(), line, true));
        record
    }

    #[test]
    fn lines_are_counted() {
        let record = after(&[
            r#"{"phase":"boot","cpus":1}"#,
            r#"{"phase":"fill","pages":16}"#,
            r#"{"phase":"walk","touches":70,"p50_ns":1,"p99_ns":2,"p999_ns":3,"max_ns":4,"ns":5000,"bad":0}"#,
            r#"{"phase":"touch","touches":2,"ns":9}"#,
            r#"{"phase":"verify","pages":16,"bad":0}"#,
            r#"{"phase":"verify","pages":16,"bad":0}"#,
            r#"{"phase":"exit","bad":0}"#,
        ]);
        assert!(record.booted.is_some() && record.is_good());
        assert_eq!((record.fills, record.verify_lines, record.verified_pages), (1, 2, 32));
        let walk = record.phases[0];
        assert_eq!((walk.kind, walk.touches, walk.latency_ns), (PhaseKind::Walk, 70, [1, 2, 3, 4]));
        assert_eq!((walk.length, record.phases[1].kind), (Duration::from_micros(5), PhaseKind::Touch));
    }

    #[test]
    fn any_failure_is_one_and_bad_pages_count_once() {
        for line in [
            r#"{"phase":"verify","pages":16,"bad":1}"#,
            r#"{"phase":"bad","page":3}"#,
            r#"{"error":"exception 14"}"#,
            "garbage",
            "7",
        ] {
            assert!(!after(&[line]).is_good(), "{line}");
        }
        let bad = r#"{"phase":"bad","page":3}"#;
        let record = after(&[
            r#"{"phase":"walk","bad":2}"#,
            bad,
            r#"{"phase":"verify","bad":1}"#,
            r#"{"phase":"exit","bad":3}"#,
        ]);
        assert_eq!(record.bad_pages, 3);
    }

    #[test]
    fn another_kernel_may_print_what_it_likes() {
        let mut record = Record::default();
        for line in ["Linux version 6.1", r#"{"error":"no route to host"}"#, r#"{"phase":"request","bad":1}"#] {
            record.take_line(Instant::now(), line, false);
            assert!(record.is_good(), "{line}");
        }
        record.take_line(Instant::now(), r#"{"phase":"verify","pages":16,"bad":1}"#, false);
        assert!(!record.is_good());
    }

    #[test]
    fn who_is_stopped_has_not_failed() {
        let ended = |ending| {
            let mut record = Record::default();
            record.take_complaint("cistern g1: no room");
            record.end(ending);
            record.failure
        };
        assert_eq!(ended(Ending::Stopped), None);
        assert_eq!(ended(Ending::Status(Some(0))), None);
        assert_eq!(ended(Ending::Status(Some(1))).as_deref(), Some("ended with status 1: cistern g1: no room"));
        assert_eq!(ended(Ending::Status(None)).as_deref(), Some("ended with a signal: cistern g1: no room"));
    }
}
