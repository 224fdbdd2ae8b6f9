//! `cistern sharing`: what a VM shares, and what that saves.

use std::io::{self, Write};

use anyhow::Result;
use cistern::size::Size;
use cistern_memory::PAGE_SIZE;
use cistern_memory::sharing::Mechanisms;
use serde_json::{Value, json};

use crate::running;

/// Switches the ways of sharing, if any are named, and says what is shared.
pub fn run(vm: &str, ways: Option<Mechanisms>, as_json: bool) -> Result<u8> {
    let mut client = running::find(vm)?;
    if let Some(mechanisms) = ways {
        client.patch("/sharing", &json!({ "mechanisms": mechanisms }))?;
    }
    let report = client.get("/sharing")?;
    let text = if as_json { report.to_string() } else { render(&report) };
    // With stdout closed there is nobody to tell.
    let _ = writeln!(io::stdout(), "{text}");
    Ok(0)
}

/// The answer of `GET /sharing` as lines for people.
pub fn render(report: &Value) -> String {
    let lines: Vec<String> = rows(report).into_iter().map(|(name, value)| format!("{name:12}{value}")).collect();
    lines.join("\n")
}

/// What is said of each part of sharing, by its name. What is not there is zero: the answer may be another version's.
pub fn rows(report: &Value) -> Vec<(&'static str, String)> {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let size = |bytes: u64| if bytes == 0 { "0".to_owned() } else { Size { bytes }.to_string() };
    let pages = |value: &Value| size(number(value).saturating_mul(PAGE_SIZE));
    let state = match report["is_scanning"].as_bool() {
        Some(true) => "scanning",
        _ => "not scanning",
    };
    let mut rows = vec![
        ("sharing", format!("{}, {state}", report["mechanisms"].as_str().unwrap_or("?"))),
        (
            "scanner",
            format!(
                "{} looked at in {} rounds, {:.1} s of CPU, at most {}%",
                pages(&report["scanned_pages"]),
                number(&report["rounds"]),
                number(&report["cpu_ns"]) as f64 / 1e9,
                number(&report["cpu_percent"]),
            ),
        ),
        ("zero", format!("{} given back", pages(&report["freed_pages"]))),
        ("store", format!("{} stored once for several", pages(&report["stored_once_pages"]))),
    ];
    let merging = &report["merging"];
    if !merging.is_null() {
        rows.push((
            "ksm",
            format!(
                "{} merged, {} saved, {} written to since; {}",
                pages(&merging["merged_pages"]),
                size(number(&merging["saved_bytes"])),
                pages(&merging["broken_pages"]),
                match merging["waits_for_room"].as_bool() {
                    Some(true) => "off, stays merged until there is room".to_owned(),
                    _ => format!("{} waiting", pages(&merging["waiting_pages"])),
                },
            ),
        ));
        rows.push((
            "advice",
            format!(
                "{} of {} stable have copies, {} advised",
                pages(&merging["duplicate_pages"]),
                pages(&merging["stable_pages"]),
                pages(&merging["advised_pages"]),
            ),
        ));
        rows.push(("host", host(&report["ksm"]["host"])));
    }
    if let Some(failure) = report["last_failure"].as_str() {
        rows.push(("failures", format!("{}, the last: {failure}", number(&report["failures"]))));
    }
    rows
}

/// What the kernel says of all its merging.
fn host(ksm: &Value) -> String {
    let number = |name: &str| ksm[name].as_u64().unwrap_or(0);
    let state = match ksm["run"].as_u64() {
        None => return "no KSM".to_owned(),
        Some(1) => format!("ksmd looks at {} pages every {} ms", number("pages_to_scan"), number("sleep_millisecs")),
        Some(_) => "ksmd is stopped".to_owned(),
    };
    format!(
        "{state}, {} pages shared by {} more, {} full scans",
        number("pages_shared"),
        number("pages_sharing"),
        number("full_scans")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_finds_its_place() {
        let report = json!({
            "mechanisms": "zero,ksm", "is_scanning": true, "cpu_percent": 5, "cpu_ns": 1_500_000_000, "rounds": 3,
            "scanned_pages": 512, "freed_pages": 256, "stored_once_pages": 0,
            "failures": 2, "last_failure": "pool: it is full",
            "merging": {"merged_pages": 1024, "saved_bytes": 3 << 20, "broken_pages": 1, "waiting_pages": 2,
                        "duplicate_pages": 1026, "stable_pages": 2048, "advised_pages": 4096},
            "ksm": {"host": {"run": 1, "pages_to_scan": 100, "sleep_millisecs": 20, "pages_shared": 7,
                             "pages_sharing": 63, "full_scans": 9}},
        });
        assert_eq!(
            render(&report),
            "sharing     zero,ksm, scanning\n\
             scanner     2M looked at in 3 rounds, 1.5 s of CPU, at most 5%\n\
             zero        1M given back\n\
             store       0 stored once for several\n\
             ksm         4M merged, 3M saved, 4K written to since; 8K waiting\n\
             advice      4.0M of 8M stable have copies, 16M advised\n\
             host        ksmd looks at 100 pages every 20 ms, 7 pages shared by 63 more, 9 full scans\n\
             failures    2, the last: pool: it is full"
        );
    }

    #[test]
    fn what_cannot_be_unmerged_is_said() {
        let merging = json!({"merged_pages": 1024, "saved_bytes": 3 << 20, "waits_for_room": true});
        let text = render(&json!({"mechanisms": "zero", "merging": merging}));
        let line = "ksm         4M merged, 3M saved, 0 written to since; off, stays merged until there is room";
        assert_eq!(text.lines().nth(4), Some(line), "{text}");
    }

    #[test]
    fn what_is_not_there_is_zero() {
        let text = render(&json!({}));
        assert!(text.starts_with("sharing     ?, not scanning\n") && text.lines().count() == 4, "{text}");
        assert_eq!(host(&json!({"run": 0})), "ksmd is stopped, 0 pages shared by 0 more, 0 full scans");
        assert_eq!(host(&Value::Null), "no KSM");
    }
}
