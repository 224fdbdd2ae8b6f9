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
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let pages = |value: &Value| Size { bytes: number(value).saturating_mul(PAGE_SIZE) };
    let state = match report["is_scanning"].as_bool() {
        Some(true) => "scanning",
        _ => "not scanning",
    };
    let mut lines = vec![
        format!("sharing     {}, {state}", report["mechanisms"].as_str().unwrap_or("?")),
        format!(
            "scanner     {} looked at, {:.1} s of CPU, {} rounds",
            pages(&report["scanned_pages"]),
            number(&report["cpu_ns"]) as f64 / 1e9,
            number(&report["rounds"])
        ),
        format!("zero        {} given back", pages(&report["freed_pages"])),
        format!("store       {} stored once for several", pages(&report["stored_once_pages"])),
    ];
    let merging = &report["merging"];
    if !merging.is_null() {
        lines.push(format!(
            "ksm         {} merged, {} saved; {} have copies of {} stable, {} advised",
            pages(&merging["merged_pages"]),
            Size { bytes: number(&merging["saved_bytes"]) },
            pages(&merging["duplicate_pages"]),
            pages(&merging["stable_pages"]),
            pages(&merging["advised_pages"]),
        ));
    }
    if let Some(failure) = report["last_failure"].as_str() {
        lines.push(format!("failures    {}, the last: {failure}", number(&report["failures"])));
    }
    lines.join("\n")
}
