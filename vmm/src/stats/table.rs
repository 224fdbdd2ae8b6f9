//! The statistics as a table.
//!
//! It is drawn from the JSON a VM answered, which may be of another version: a value that is not there is zero.

use std::fmt::Write;

use cistern::size::Size;
use cistern_memory::PAGE_SIZE;
use serde_json::Value;

use super::latency::{bars, time};
use crate::sharing;

/// States of pages, in the order of what they cost, as JSON and people call them.
const STATES: [(&str, &str); 9] = [
    ("resident", "resident"),
    ("aside", "aside"),
    ("compressed", "compressed"),
    ("duplicate", "duplicate"),
    ("zero", "zero"),
    ("swapped", "swapped"),
    ("untouched", "untouched"),
    ("in_flight", "in flight"),
    ("unknown", "not known"),
];

/// Where pages come back from.
const SOURCES: [(&str, &str); 6] = [
    ("first_touch", "first touch"),
    ("aside", "aside"),
    ("zero", "zero"),
    ("duplicate", "duplicate"),
    ("compressed", "compressed"),
    ("swapped", "swapped"),
];

/// What becomes of pages that leave.
const EVICTIONS: [&str; 12] = [
    "aside",
    "unmerged",
    "zero",
    "duplicate",
    "compressed",
    "swapped",
    "written_back",
    "incompressible",
    "overtaken",
    "freed",
    "zero_freed",
    "broken",
];

const FAILURES: [&str; 8] =
    ["busy", "eviction", "retried", "store_full", "swap_write", "swap_full", "over_limit_pages", "device_pages"];

/// Answers of `GET /vm` and `GET /memory` as lines for people.
pub fn render(vm: &Value, memory: &Value) -> String {
    let mut table = Table::default();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let pages = |value: &Value| size(number(value).saturating_mul(PAGE_SIZE));

    let id = vm["id"].as_str().unwrap_or("?");
    let state = vm["state"].as_str().unwrap_or("?");
    table.row("vm", format!("{id}, pid {}, {}", number(&vm["pid"]), state.to_lowercase()));
    let paging = match (memory["armed"].as_bool(), memory["eviction"].as_str()) {
        (Some(true), Some(method)) => format!("paged, pages leave by {method}"),
        (Some(true), None) => "paged".to_owned(),
        _ => "not paged".to_owned(),
    };
    table.row("guest", format!("{}, {paging}", pages(&memory["ram_pages"])));
    let charge = number(&memory["charge_bytes"]);
    let limit = match memory["resident_limit_bytes"].as_u64() {
        Some(limit) if limit > 0 => {
            format!("{}, {} used ({:.0}%)", size(limit), size(charge), 100.0 * charge as f64 / limit as f64)
        }
        _ => format!("none, {} used", size(charge)),
    };
    table.row("limit", limit);
    let (inflated, reported) = (number(&memory["balloon_inflated_bytes"]), number(&memory["reported_bytes"]));
    table.row("balloon", format!("{} inflated, {} reported free since boot", size(inflated), size(reported)));

    table.section("pages");
    for (key, name) in STATES {
        let incompressible = number(&memory["pages"]["incompressible"]);
        let note = match key {
            "resident" if incompressible > 0 => {
                format!(", {} of it does not compress", size(incompressible * PAGE_SIZE))
            }
            _ => String::new(),
        };
        table.row(name, pages(&memory["pages"][key]) + &note);
    }

    table.section("stores");
    let compressed = &memory["compressed"];
    let (input, held) = (number(&compressed["bytes_in"]), number(&compressed["held_bytes"]));
    let ratio = if input > 0 { format!(", ratio {:.2}", held as f64 / input as f64) } else { String::new() };
    let limit = limit_of(&compressed["limit_bytes"]);
    table.row("compressed", format!("{} held in {}{ratio}{limit}", size(input), size(held)));
    let duplicates = &memory["duplicates"];
    let (contents, references) = (number(&duplicates["contents"]), number(&duplicates["references"]));
    let index = size(number(&duplicates["held_bytes"]));
    table.row("contents", format!("{contents} for {references} pages, index {index}"));
    let swap = &memory["swap"];
    if swap.is_null() {
        table.row("swap", "none".to_owned());
    } else {
        let bytes = |key: &str| size(number(&swap[key]));
        let state = if swap["unavailable"].as_bool() == Some(true) { ", unavailable: a write failed" } else { "" };
        let (held, written, read) = (bytes("held_bytes"), bytes("written_bytes"), bytes("read_bytes"));
        let limit = limit_of(&swap["limit_bytes"]);
        table.row("swap", format!("{held}{limit}, {written} written, {read} read since boot{state}"));
    }

    if !memory["sharing"].is_null() {
        table.section("sharing");
        sharing::rows(&memory["sharing"]).into_iter().for_each(|(name, value)| table.row(name, value));
    }

    let refaults = &memory["refaults"];
    table.line(format!("\n{:14}{:>10} {:>10} {:>8} {:>8}  times", "refaults", "pages", "around", "p50", "p99"));
    for (key, name) in SOURCES {
        let source = &refaults[key];
        let (asked, around) = (number(&source["pages"]), number(&source["around_pages"]));
        let latency = &source["latency"];
        let quantile = |key: &str| if asked > 0 { time(number(&latency[key])) } else { "-".to_owned() };
        let (p50, p99) = (quantile("p50_ns"), quantile("p99_ns"));
        let line = format!("  {name:12}{asked:>10} {around:>10} {p50:>8} {p99:>8}  {}", bars(&latency["histogram"]));
        table.line(line.trim_end().to_owned());
    }
    let (joined, waited) = (number(&refaults["joined"]), number(&refaults["waited"]));
    let stall = time(number(&refaults["stall_ns"]));
    table.line(format!("  {joined} faults joined another, {waited} waited for the limit, {stall} stalled in all"));

    table.counts("evictions", &EVICTIONS, &memory["evictions"]);
    table.counts("failures", &FAILURES, &memory["failures"]);
    table.text
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        bytes => Size { bytes }.to_string(),
    }
}

/// What may be held, where there is a limit to it.
fn limit_of(bytes: &Value) -> String {
    match bytes.as_u64() {
        Some(u64::MAX) | None => String::new(),
        Some(limit) => format!(" of at most {}", size(limit)),
    }
}

#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn line(&mut self, line: String) {
        writeln!(self.text, "{line}").expect("a string takes all text");
    }

    fn section(&mut self, name: &str) {
        self.line(format!("\n{name}"));
    }

    fn row(&mut self, name: &str, value: String) {
        self.line(format!("  {name:12}{value}"));
    }

    /// Counts that are not zero, in one line.
    fn counts(&mut self, name: &str, keys: &[&str], counts: &Value) {
        let count = |key: &&str| match counts[*key].as_u64() {
            Some(0) | None => None,
            Some(count) => Some(format!("{count} {}", key.replace('_', " "))),
        };
        let counts: Vec<_> = keys.iter().filter_map(count).collect();
        let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        self.line(format!("\n{name:14}{counts}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_number_finds_its_place() {
        let latency = json!({"p50_ns": 85_000, "p99_ns": 2_100_000, "histogram": [{"up_to_ns": 85_000, "count": 7}]});
        let memory = json!({
            "armed": true, "eviction": "move", "resident_limit_bytes": 256 << 20, "charge_bytes": 192 << 20,
            "ram_pages": 262_144,
            "pages": {"resident": 256, "incompressible": 2, "compressed": 1024, "swapped": 512},
            "compressed": {"bytes_in": 4 << 20, "held_bytes": 1 << 20, "limit_bytes": 512 << 20},
            "duplicates": {"contents": 5, "references": 9, "held_bytes": 65536},
            "swap": {"held_bytes": 2 << 20, "limit_bytes": u64::MAX, "written_bytes": 3 << 20, "unavailable": true},
            "refaults": {"compressed": {"pages": 7, "around_pages": 21, "latency": latency}, "joined": 3, "waited": 4,
                         "stall_ns": 1_500_000_000u64},
            "evictions": {"aside": 11, "written_back": 12, "freed": 0, "zero_freed": 14, "broken": 15},
            "sharing": {"mechanisms": "zero,store", "is_scanning": true, "freed_pages": 256},
            "failures": {"busy": 13},
            "balloon_inflated_bytes": 8 << 20, "reported_bytes": 0,
        });
        let text = render(&json!({"id": "web", "state": "Running", "pid": 77}), &memory);
        for line in [
            "  vm          web, pid 77, running",
            "  guest       1G, paged, pages leave by move",
            "  limit       256M, 192M used (75%)",
            "  balloon     8M inflated, 0 reported free since boot",
            "  resident    1M, 8K of it does not compress",
            "  swapped     2M",
            "  compressed  4M held in 1M, ratio 0.25 of at most 512M",
            "  contents    5 for 9 pages, index 64K",
            "  swap        2M, 3M written, 0 read since boot, unavailable: a write failed",
            "  compressed           7         21   85.0us    2.1ms  131us █ 131us",
            "  swapped              0          0        -        -",
            "  3 faults joined another, 4 waited for the limit, 1.5s stalled in all",
            "  sharing     zero,store, scanning",
            "  zero        1M given back",
            "evictions     11 aside, 12 written back, 14 zero freed, 15 broken",
            "failures      13 busy",
        ] {
            assert!(text.lines().any(|drawn| drawn == line), "no '{line}' in:\n{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_zero() {
        let text = render(&Value::Null, &json!({}));
        for line in ["  limit       none, 0 used", "  guest       0, not paged", "  swap        none"] {
            assert!(text.lines().any(|drawn| drawn == line), "no '{line}' in:\n{text}");
        }
        assert!(!text.contains("sharing"), "{text}");
        assert!(text.ends_with("evictions     none\n\nfailures      none\n"), "{text}");
    }
}
