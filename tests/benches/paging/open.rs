//! What a pager costs that has nothing to do: throughput without pressure, and memory touched for the first time.

use std::path::{Path, PathBuf};
use std::process::Command;

use cistern_tests::process::{LIMIT, Running, binary, probe};
use serde_json::Value;

use super::table::{heading, median, note, row};

/// More than the guest has: armed, and never short.
const ARMED: [&str; 2] = ["--resident", "1G"];

/// A walk over resident memory: open beside a build without a pager, armed beside open.
pub fn throughput(rounds: usize) {
    heading("walk without pressure, touches/s; median of turns");
    let older = std::env::var_os("BASELINE").map(PathBuf::from);
    let program = "fill:64M,text=100;walk:64M,secs=0.5;walk:64M,secs=1.5";
    let mut results = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        let mut walk = |at: usize, binary: &Path, flags: &[&str]| {
            let reports = run(binary, flags, program);
            let last = reports.iter().rfind(|report| report["phase"] == "walk").expect("a walk");
            results[at].push(last["touches_per_s"].as_f64().expect("a number"));
        };
        walk(0, binary(), &[]);
        walk(1, binary(), &ARMED);
        if let Some(older) = &older {
            walk(2, older, &[]);
        }
    }
    let [open, armed, without] = results;
    let open = median(open);
    match older {
        Some(_) => row("open, beside BASELINE", open, median(without), ">= 0.99"),
        None => note("BASELINE=path names no build without a pager: open is compared with armed only"),
    }
    row("armed with room, beside open", median(armed), open, ">= 0.99");
}

/// Filling fresh memory, less what filling the same memory again takes.
pub fn first_touch(rounds: usize) {
    heading("first touch by the guest, us a page; best of turns; baseline: an open VM, 4 KiB pages");
    let program = "fill:96M,zero=100;free:96M,silent;fill:96M,zero=100";
    let (mut armed, mut open) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        armed = armed.min(touch_us(&ARMED, program));
        open = open.min(touch_us(&[], program));
    }
    row("armed", armed, open, "<= 0.5");
}

fn touch_us(flags: &[&str], program: &str) -> f64 {
    let reports = run(binary(), flags, program);
    let fills: Vec<f64> = reports
        .iter()
        .filter(|report| report["phase"] == "fill")
        .map(|fill| fill["ns"].as_f64().expect("a number") / fill["pages"].as_f64().expect("a number"))
        .collect();
    (fills[0] - fills[1]) / 1000.0
}

fn run(binary: &Path, flags: &[&str], program: &str) -> Vec<Value> {
    let mut command = Command::new(binary);
    command.args(["run", "--memory", "128M", "--cmdline"]).arg(format!("probe=\"{program}\"")).arg("--kernel");
    command.arg(probe()).args(flags);
    Running::spawn(command).finish(LIMIT).expect_status(0).reports()
}
