//! How the demo shows itself off a terminal: lines while it goes on, JSON on request. With stdout gone there is nobody to
//! show anything: errors are ignored.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use cistern::size::Size;
use cistern_memory::PAGE_SIZE;
use cistern_memory::ledger::Ledger;
use serde_json::json;

use super::acts::{ACTS, BUDGET, FILLED, MEMORY};
use super::guest::Guest;
use super::progress::Progress;
use super::stage::{Ended, Stage};

/// How often the pool is worth a line.
const POOL_INTERVAL: Duration = Duration::from_secs(4);

/// Lines of progress.
pub struct Lines {
    next: Instant,
    /// Whose failure has been told.
    failed: Vec<&'static str>,
}

impl Lines {
    /// Before the first guest speaks.
    pub fn begin(has_swap: bool) -> Self {
        let (guests, all) = (ACTS.len(), Size { bytes: FILLED.bytes * ACTS.len() as u64 });
        print(&format!(
            "{guests} microVMs of {MEMORY} share {BUDGET} of this host's memory; each fills {FILLED}, {all} in all, works with it\n\
             in its turn, and in the end compares every page with what must be there.\n"
        ));
        if !has_swap {
            print("There is no swap file: $TMPDIR and /var/tmp are in memory or take none.\n");
        }
        Self { next: Instant::now() + POOL_INTERVAL, failed: Vec::new() }
    }

    /// A guest has told something.
    pub fn told(&mut self, guest: &Guest) {
        let name = guest.act.name;
        if self.failed.contains(&name) {
            return;
        }
        if guest.progress.failure.is_some() {
            self.failed.push(name);
        }
        if let Some(sentence) = sentence(&guest.progress) {
            print(&format!("{name:8} {sentence}\n"));
        }
    }

    /// Says now and then how the pool is.
    pub fn look(&mut self, stage: &Stage) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + POOL_INTERVAL;
        let Ok(pool) = Ledger::read(&stage.place().pool()) else { return };
        let level = pool.level.map_or("no round yet", |level| level.name());
        let taken = stage.account().taken_bytes >> 20;
        print(&format!("{:8} {taken}M of {BUDGET} taken by {} guests, level {level}\n", "pool", pool.members.len()));
    }
}

/// One object a guest, one for the pool.
pub fn print_json(ended: &Ended) {
    let mut text = String::new();
    for ((name, progress), seen) in ended.guests.iter().zip(&ended.account.guests) {
        let report = json!({
            "guest": name,
            "cpus": 1,
            "size_bytes": MEMORY.bytes,
            "peak_pss_bytes": seen.peak_bytes,
            "verified_pages": progress.verified_pages,
            "bad_pages": progress.bad_pages,
            "touches_per_s": progress.touches_per_second,
            "given": seen.given,
            "status": progress.status.flatten(),
            "failure": progress.failure,
        });
        text += &format!("{report}\n");
    }
    let report = json!({
        "guests": ended.guests.len(),
        "budget_bytes": BUDGET.bytes,
        "size_bytes": MEMORY.bytes * ended.guests.len() as u64,
        "filled_bytes": FILLED.bytes * ended.guests.len() as u64,
        "peak_pss_bytes": ended.account.peak_bytes,
        "looks": ended.account.looks,
        "verified_pages": ended.verified_pages(),
        "bad_pages": ended.bad_pages(),
        "swap": ended.has_swap,
        "merging": ended.merges,
        "most_merged_bytes": ended.account.most_merged_bytes,
        "merging_saved_most_bytes": ended.account.merging_saved_most_bytes,
        "given": ended.account.given(),
        "fullest": ended.account.fullest,
        "seconds": ended.elapsed.as_secs_f64(),
    });
    print(&(text + &format!("{report}\n")));
}

/// Prints it.
pub fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// What a guest has just done, in a few words, if it is worth any.
fn sentence(progress: &Progress) -> Option<String> {
    if let Some(failure) = &progress.failure {
        return Some(format!("FAILED: {failure}"));
    }
    let sentence = match progress.phase.as_str() {
        "boot" => "has booted".to_owned(),
        "fill" => format!("has filled {}", Size { bytes: progress.filled_pages * PAGE_SIZE }),
        "free" => "needs half of its memory no more for now".to_owned(),
        "walk" => match (progress.touches_per_second, progress.p50_ns) {
            (Some(rate), Some(p50)) => format!("has worked: {:.1} thousand touches/s, median {p50} ns", rate / 1e3),
            _ => "has worked".to_owned(),
        },
        "verify" => format!("has verified {} pages, 0 bad", progress.verified_pages),
        _ => return None,
    };
    Some(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_happened() {
        let after = |line| {
            let mut progress = Progress::default();
            progress.take_line(line);
            sentence(&progress)
        };
        let walk = r#"{"phase":"walk","bad":0,"touches_per_s":21000,"p50_ns":467}"#;
        assert_eq!(after(walk).as_deref(), Some("has worked: 21.0 thousand touches/s, median 467 ns"));
        let fill = r#"{"phase":"fill","pages":12288}"#;
        assert_eq!(after(fill).as_deref(), Some("has filled 48M"));
        let verify = r#"{"phase":"verify","pages":24576,"bad":0}"#;
        assert_eq!(after(verify).as_deref(), Some("has verified 24576 pages, 0 bad"));
        assert_eq!(after(r#"{"phase":"balloon"}"#), None);
        assert!(after("garbage").is_some_and(|sentence| sentence.starts_with("FAILED")));
    }
}
