//! What each mechanism gave, as a table.

use std::fmt::Write;

use super::acts::{BUDGET, FILLED, MEMORY};
use super::stage::Ended;

/// A row: what gave, how much at the fullest moment, how much in all, and what is to be said of it.
type Row = (&'static str, Option<u64>, Option<u64>, String);

/// The end of the demo in at most 80 cells a line.
pub fn render(ended: &Ended) -> String {
    let mut text = String::new();
    let mut line = |line: &str| writeln!(text, "{}", line.trim_end()).expect("a string takes all text");
    for guest in ended.guests {
        if let Some(failure) = &guest.progress.failure {
            line(&format!("{} FAILED: {failure}", guest.act.name));
        }
    }
    let guests = ended.guests.len();
    line(&format!(
        "{guests} guests of {MEMORY} that filled {FILLED} each, {} together, in {} for all: {:.0} s",
        mebibytes(FILLED.bytes * guests as u64),
        mebibytes(BUDGET.bytes),
        ended.elapsed.as_secs_f64()
    ));
    line("");
    line(&format!("{:24}{:>11}{:>11}", "what gave memory", "at fullest", "in all"));
    for (name, fullest, all, note) in rows(ended) {
        let cell = |bytes: Option<u64>| bytes.map_or(String::new(), mebibytes);
        line(&format!("{name:24}{:>11}{:>11}  {note}", cell(fullest), cell(all)));
    }
    line("");
    let account = &ended.account;
    let percent = account.peak_bytes as f64 * 100.0 / BUDGET.bytes as f64;
    let verdict = if account.peak_bytes <= BUDGET.bytes { "never above" } else { "ABOVE" };
    line(&format!(
        "host memory (PSS)  {verdict} the budget: at most {} of {} ({percent:.0} %) in {} looks",
        mebibytes(account.peak_bytes),
        mebibytes(BUDGET.bytes),
        account.looks
    ));
    line(&format!("pages              {} bad of {} verified", ended.bad_pages(), ended.verified_pages()));
    text
}

fn rows(ended: &Ended) -> Vec<Row> {
    let (fullest, given) = (&ended.account.fullest, ended.account.given());
    let held = fullest.compressed_held_bytes;
    let swap = if ended.has_swap { "on disk" } else { "there was none: no disk" };
    vec![
        ("never touched, or free", Some(fullest.untouched_bytes), None, "costs nothing".to_owned()),
        ("  reported by guests", None, Some(given.reported_bytes), "gone at once".to_owned()),
        (
            "  balloons",
            Some(fullest.ballooned_bytes),
            Some(given.balloon_bytes),
            "in all: what the host had there".to_owned(),
        ),
        ("zero pages", Some(fullest.zero_bytes), Some(given.zero_bytes), "not kept at all".to_owned()),
        ("duplicates", Some(fullest.duplicate_bytes), Some(given.duplicate_bytes), "kept once".to_owned()),
        (
            "compressed",
            Some(fullest.compressed_bytes),
            Some(given.compressed_bytes),
            format!("in {} of memory", mebibytes(held)),
        ),
        ("swap file", Some(fullest.swapped_bytes), Some(given.swapped_bytes), swap.to_owned()),
        ("left in guest memory", Some(fullest.resident_bytes), None, String::new()),
    ]
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
