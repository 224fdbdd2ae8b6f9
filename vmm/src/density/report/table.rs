//! The report as tables for a terminal.

use std::fmt::Write;

use super::{Report, mebibytes};
use crate::density::advice::sentence;
use crate::density::latency::Latency;
use crate::density::verdict::Goodput;
use crate::stats::latency::time;

/// Cells of a program in a heading.
const PROGRAM_CELLS: usize = 68;

/// The report, in at most 80 cells a line where programs and failures are short.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |line: &str| writeln!(text, "{}", line.trim_end()).expect("a string takes all text");
    let verdict = &report.verdict;
    if report.trials.len() > 1 {
        line(&format!(
            "{:>8}{:>8}{:>10}{:>9}{:>10}{:>10}{:>12}",
            "guests", "ok", "median", "worst", "p50", "p99", "host"
        ));
        for trial in &report.trials {
            let (median, worst) = percents(trial.goodput);
            let (p50, p99) = times(trial.latency_ns);
            let (guests, ok, host) = (trial.guests, trial.guests_ok, mebibytes(trial.peak_host_bytes));
            let mark = trial.shortfall().map_or(String::new(), |shortfall| format!("  {shortfall}"));
            line(&format!("{guests:>8}{ok:>8}{median:>10}{worst:>9}{p50:>10}{p99:>10}{host:>12}{mark}"));
        }
        line("");
    }
    if report.is_max {
        let (guests, required) = (verdict.guests, report.required_goodput_percent);
        line(&match report.has_passed {
            true => format!("At most {guests} guests each keep {required} % of their goodput."),
            false => format!("Not even one guest keeps {required} % of its goodput."),
        });
        line("");
    }
    for failure in &verdict.failures {
        line(&format!("FAILED  {failure}"));
    }
    line(&format!(
        "{} of {} guests of {} ok, {} in all, in {}: {:.0} s",
        verdict.guests_ok,
        verdict.guests,
        mebibytes(report.memory_bytes),
        mebibytes(verdict.size_bytes),
        mebibytes(verdict.budget_bytes),
        verdict.seconds
    ));
    line(&format!(
        "pages           {} bad of {} verified ({} times)",
        verdict.bad_pages, verdict.verified_pages, verdict.verify_lines
    ));
    let within = match verdict.peak_host_bytes <= verdict.budget_bytes {
        true => "within the budget",
        false if report.unmanaged => "above the budget, which nobody keeps",
        false => "MORE THAN THE BUDGET",
    };
    line(&format!(
        "host memory     at most {} (PSS, {} looks): {within}",
        mebibytes(verdict.peak_host_bytes),
        verdict.looks
    ));
    let (resident, samples) = (mebibytes(verdict.peak_resident_bytes), verdict.resident_samples);
    line(&format!("  resident      at most {resident} (RSS, {samples} times without stopping them)"));
    let tenths = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    line(&format!(
        "  a guest       {} on average then, {} the most any took",
        tenths(verdict.host_bytes_per_guest),
        tenths(verdict.host_bytes_worst_guest)
    ));
    line("where memory was when most was away");
    let bytes = &verdict.bytes;
    let held = format!("in {} of memory", mebibytes(verdict.compressed_held_bytes));
    for (name, bytes, note) in [
        ("in guest memory", bytes.resident, ""),
        ("shared", bytes.shared, "merged, or stored once"),
        ("zero pages", bytes.zero, "not kept at all"),
        ("compressed", bytes.compressed, held.as_str()),
        ("swapped", bytes.swapped, "on disk"),
        ("in balloons", bytes.ballooned, ""),
        ("never touched", bytes.untouched, "or given back"),
    ] {
        line(&format!("  {name:16}{:>10}  {note}", mebibytes(bytes)));
    }
    line(&format!("reclaimed       {:.1} % of what guests held", verdict.reclaimed_percent));
    let (median, worst) = percents(verdict.goodput);
    line(&format!("goodput         median {median}, worst {worst} of a guest alone"));
    let (p50, p99) = times(verdict.latency_ns);
    line(&format!("touches         half within {p50}, 99 % within {p99}"));
    if verdict.kinds.len() > 1 {
        for (kind, number) in verdict.kinds.iter().zip(1..) {
            let ((median, worst), (p50, p99)) = (percents(kind.goodput), times(kind.latency_ns));
            let guests = kind.guests;
            line(&format!("  {number}: {guests} guests  median {median}, worst {worst}, p50 {p50}, p99 {p99}"));
        }
    }
    let cpu = &verdict.cpu;
    line(&format!(
        "CPU             guests {:.0} %, managers {:.1} %, ksmd {:.1} % of a CPU",
        cpu.guests_percent, cpu.managers_percent, cpu.ksm_percent
    ));
    // Where the host is no guest, or is left alone, there is nothing to tell.
    if cpu.stolen_percent >= 1.0 {
        line(&format!("  stolen        {:.1} % of a CPU by others on the machine below", cpu.stolen_percent));
    }
    line(&format!("overcommit      {:.2}: sizes of all guests / budget", verdict.overcommit));
    if report.unmanaged {
        line("advice          none: no pool has seen what they work with");
    }
    for (number, advice) in (1..).zip(&report.advice) {
        let Some(advice) = advice else { continue };
        let several = verdict.kinds.len() > 1;
        line(&if several {
            format!("advice {number}        {}", sentence(advice))
        } else {
            format!("advice          {}", sentence(advice))
        });
    }
    if verdict.kinds.len() > 1 {
        for (number, kind) in (1..).zip(&verdict.kinds) {
            let program: String = kind.program.chars().take(PROGRAM_CELLS).collect();
            let more = if kind.program.chars().count() > PROGRAM_CELLS { "…" } else { "" };
            line(&format!("  {number}: {program}{more}"));
        }
    }
    text
}

fn percents(goodput: Option<Goodput>) -> (String, String) {
    let percent = |percent: f64| format!("{percent:.1} %");
    goodput.map_or(("-".to_owned(), "-".to_owned()), |goodput| {
        (percent(goodput.median_percent), percent(goodput.worst_percent))
    })
}

fn times(latency: Option<Latency>) -> (String, String) {
    latency.map_or(("-".to_owned(), "-".to_owned()), |latency| (time(latency.p50), time(latency.p99)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn the_end_says_what_matters_and_fits() {
        let text = render(&report());
        for line in [
            "At most 2 guests each keep 95 % of their goodput.",
            "FAILED  guest 2: ended with a signal",
            "1 of 2 guests of 32 MiB ok, 64 MiB in all, in 40 MiB: 42 s",
            "pages           0 bad of 28672 verified (7 times)",
            "host memory     at most 38 MiB (PSS, 30 looks): within the budget",
            "  resident      at most 39 MiB (RSS, 160 times without stopping them)",
            "  compressed          12 MiB  in 6 MiB of memory",
            "goodput         median 99.4 %, worst 96.1 % of a guest alone",
            "touches         half within 120ns, 99 % within 65.0us",
            "CPU             guests 30 %, managers 4.5 %, ksmd 0.5 % of a CPU",
            "overcommit      1.60: sizes of all guests / budget",
            "advice          --memory 14M --reservation 9M  (works with 10 MiB at most, holds 16 MiB)",
        ] {
            assert!(text.lines().any(|drawn| drawn == line), "no '{line}' in:\n{text}");
        }
        assert!(text.lines().any(|line| line.ends_with("too many")), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 88), "{text}");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let mut report = report();
        report.verdict.goodput = None;
        report.verdict.latency_ns = None;
        report.verdict.peak_host_bytes = 41 << 20;
        let text = render(&report);
        assert!(text.contains("median -, worst -") && text.contains("MORE THAN THE BUDGET"), "{text}");
        report.has_passed = false;
        assert!(render(&report).contains("Not even one guest keeps 95 % of its goodput."), "{text}");
        report.unmanaged = true;
        let text = render(&report);
        assert!(text.contains("which nobody keeps") && text.contains("advice          none: no pool"), "{text}");
    }

    #[test]
    fn stolen_time_is_told_where_it_matters() {
        let mut report = report();
        assert!(!render(&report).contains("stolen"));
        report.verdict.cpu.stolen_percent = 12.5;
        assert!(render(&report).contains("  stolen        12.5 % of a CPU by others on the machine below"));
    }
}
