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
    for (name, progress) in &ended.guests {
        if let Some(failure) = &progress.failure {
            line(&format!("{name} FAILED: {failure}"));
        }
    }
    let guests = ended.guests.len();
    line(&format!(
        "{guests} guests of {MEMORY} filled {FILLED} each, {} together, in {}: {:.0} s",
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
    let verdict =
        if account.peak_bytes <= BUDGET.bytes { "never seen above the budget" } else { "MORE THAN THE BUDGET" };
    let peak = mebibytes(account.peak_bytes);
    line(&format!("host memory     at most {peak} (PSS, {} looks): {verdict}", account.looks));
    line(&format!("pages           {} bad of {} verified", ended.bad_pages(), ended.verified_pages()));
    text
}

fn rows(ended: &Ended) -> Vec<Row> {
    let (fullest, given) = (&ended.account.fullest, ended.account.given());
    let held = fullest.compressed_held_bytes;
    let swap = if ended.has_swap { "on disk" } else { "there was none: no disk" };
    let mut rows = vec![
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
    ];
    if ended.merges {
        let (most, saved) = (ended.account.most_merged_bytes, ended.account.merging_saved_most_bytes);
        let note = format!("up to {}, {} saved", mebibytes(most), mebibytes(saved));
        rows.push(("  of that, merged", Some(fullest.merged_bytes), None, note));
    }
    rows
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::account::Account;
    use super::super::progress::Progress;
    use super::*;
    use crate::guest_process::held::Held;

    fn ended<'a>(guest: &'a Progress, peak_bytes: u64, has_swap: bool) -> Ended<'a> {
        let fullest = Held {
            merged_bytes: 5 << 20,
            compressed_bytes: 9 << 20,
            compressed_held_bytes: 4 << 20,
            ..Held::default()
        };
        let account = Account {
            most_merged_bytes: 20 << 20,
            merging_saved_most_bytes: 17 << 20,
            looks: 70,
            peak_bytes,
            fullest,
            ..Account::default()
        };
        Ended {
            guests: vec![("web", guest); 8],
            account,
            elapsed: Duration::from_millis(31_400),
            has_swap,
            merges: has_swap,
        }
    }

    #[test]
    fn the_end_says_what_matters_and_fits() {
        let mut guest = Progress::default();
        guest.take_line(r#"{"phase":"verify","pages":24576,"bad":0}"#);
        for has_swap in [true, false] {
            let text = render(&ended(&guest, 367 << 20, has_swap));
            for line in [
                "8 guests of 128M filled 96M each, 768 MiB together, in 384 MiB: 31 s",
                "compressed                    9 MiB      0 MiB  in 4 MiB of memory",
                "host memory     at most 367 MiB (PSS, 70 looks): never seen above the budget",
                "pages           0 bad of 196608 verified",
            ] {
                assert!(text.lines().any(|drawn| drawn == line), "no '{line}' in:\n{text}");
            }
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            let merged = "  of that, merged             5 MiB             up to 20 MiB, 17 MiB saved";
            assert_eq!(text.lines().any(|line| line == merged), has_swap, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut guest = Progress::default();
        guest.end(None);
        let text = render(&ended(&guest, 385 << 20, true));
        assert!(text.starts_with("web FAILED: ended with a signal\n"), "{text}");
        assert!(text.contains("at most 385 MiB (PSS, 70 looks): MORE THAN THE BUDGET"), "{text}");
    }
}
