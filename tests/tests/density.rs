//! `cistern density`: what it reports adds up, what goes wrong is its status, and it leaves nothing behind however it ends.

use std::fs;
use std::process::{Command, Stdio};

use cistern_tests::leftovers::{expect_nothing_left, processes_with};
use cistern_tests::paged::{MIB, counter, folder_on_disk};
use cistern_tests::process::{Finished, LIMIT, Running, binary, cistern};
use cistern_tests::terminal::Session;
use serde_json::Value;
use tempfile::TempDir;

/// Fills most of a guest of 32 MiB, with something for every mechanism.
const FILL: &str = "fill:24M,zero=15,dup=20,text=45,random=20,seed={n}";

/// Pages of that.
const PAGES: u64 = 24 << 8;

/// Off a terminal, with its files in this folder.
fn start(folder: &TempDir, arguments: &[&str]) -> Running {
    let mut command = Command::new(binary());
    command.arg("density").args(arguments).env("TMPDIR", folder.path()).stdin(Stdio::null());
    Running::spawn(command)
}

#[track_caller]
fn report(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

fn number(report: &Value, path: &str) -> f64 {
    let value = path.split('.').fold(report, |value, name| &value[name]);
    value.as_f64().unwrap_or_else(|| panic!("{path}: {report}"))
}

#[test]
fn four_guests_in_half_of_what_they_have() {
    let (folder, out, swap) = (folder_on_disk(), folder_on_disk(), folder_on_disk());
    let program = format!("{FILL};walk:24M,secs=10,write=30;verify");
    let (out_path, swap_path) = (out.path().join("new"), swap.path().to_str().expect("a plain path"));
    let arguments = ["--guests", "4", "--memory", "32M", "--budget", "64M", "--swap", swap_path, "--json"];
    let out_argument = format!("--out={}", out_path.display());
    let finished = start(&folder, &[&arguments[..], &["--probe", &program, &out_argument]].concat())
        .finish(LIMIT)
        .expect_status(0);
    assert_eq!(finished.stderr, "");
    let report = report(&finished);
    println!("{report}");

    for (name, expected) in [
        ("guests", 4),
        ("guests_ok", 4),
        ("verify_lines", 4),
        ("verified_pages", 4 * PAGES),
        ("bad_pages", 0),
        ("budget_bytes", 64 * MIB),
        ("size_bytes", 128 * MIB),
        ("memory_bytes", 32 * MIB),
    ] {
        assert_eq!(counter(&report, name), expected, "{name}: {report}");
    }
    assert_eq!((number(&report, "overcommit"), &report["is_max"]), (2.0, &false.into()), "{report}");

    // Each page is in one place; guests are asked one after the other while pages move.
    let names = ["resident", "shared", "zero", "ballooned", "compressed", "swapped", "untouched"];
    let bytes = |name: &str| counter(&report, &format!("bytes.{name}"));
    let sum: u64 = names.into_iter().map(bytes).sum();
    assert!(sum.abs_diff(128 * MIB) <= 128 * MIB / 20, "{sum}: {report}");
    let away = bytes("shared") + bytes("zero") + bytes("compressed") + bytes("swapped");
    assert!(away >= 24 * MIB && bytes("compressed") > MIB && bytes("swapped") > MIB, "{report}");
    assert!(counter(&report, "compressed_held_bytes") < bytes("compressed"), "{report}");

    let (peak, budget) = (counter(&report, "peak_host_bytes"), 64 * MIB);
    assert!(peak > budget / 4 && peak <= budget / 100 * 101, "{report}");
    let resident = counter(&report, "peak_resident_bytes");
    assert!(resident > budget / 4 && counter(&report, "resident_samples") > 5, "{report}");
    assert!(counter(&report, "looks") > 1 && counter(&report, "host_bytes_worst_guest") <= peak, "{report}");
    // What is held then and does not fit into what was taken costs nothing.
    let held = (away + bytes("resident")) as f64;
    let reclaimed = number(&report, "reclaimed_percent");
    assert!(reclaimed >= (1.0 - peak as f64 / held) * 100.0 - 1.0 && reclaimed < 100.0, "{report}");

    let (median, worst) = (number(&report, "goodput.median_percent"), number(&report, "goodput.worst_percent"));
    assert!(0.0 < worst && worst <= median, "{report}");
    let [p50, p99, max] = ["p50", "p99", "max"].map(|name| counter(&report, &format!("latency_ns.{name}")));
    assert!(0 < p50 && p50 <= p99 && p99 <= max, "{report}");
    assert!(number(&report, "cpu.guests_percent") > 0.0 && number(&report, "cpu.managers_percent") > 0.0, "{report}");
    let kind = &report["kinds"][0];
    assert_eq!((counter(kind, "guests"), &kind["program"]), (4, &program.as_str().into()), "{report}");
    assert!(number(kind, "alone.touches_per_s") > 0.0, "{report}");
    let advice = &report["advice"][0];
    assert!(counter(advice, "memory_bytes") >= counter(advice, "peak_active_bytes"), "{report}");
    assert!(4 * counter(advice, "reservation_bytes") <= budget, "{report}");

    let moments = report["moments"].as_array().expect("moments");
    assert_eq!(moments.len() as u64, counter(&report, "looks"));
    assert!(moments.iter().any(|moment| counter(moment, "host_bytes") == peak), "{report}");
    assert!(report["pool"].as_array().is_some_and(|pool| pool.iter().any(|moment| moment["level"].is_string())));
    assert_eq!((report["trials"].as_array().map(Vec::len), &report["failures"]), (Some(1), &Value::Array(Vec::new())));

    let written = fs::read_to_string(out_path.join("report.json")).expect("report.json");
    assert_eq!(serde_json::from_str::<Value>(&written).expect("JSON"), report);
    let page = fs::read_to_string(out_path.join("report.html")).expect("report.html");
    assert_eq!(page.matches("<svg").count(), 3, "{page}");
    for word in ["compressed", "swapped", "Goodput", "Time of a touch", "budget", "4 of 4 guests"] {
        assert!(page.contains(word), "{word}");
    }
    for word in ["http:", "https:", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(word), "{word}");
    }
    expect_nothing_left(folder.path());
    expect_nothing_left(swap.path());
}

/// Each needs more to begin with than it can have for long: parts of that in the hands of all would leave nobody enough.
#[test]
fn guests_begin_one_after_the_other_where_memory_is_short() {
    let (folder, swap) = (folder_on_disk(), folder_on_disk());
    let program = "fill:8M,zero=15,dup=20,text=45,random=20,seed={n};idle:5;verify";
    let swap_path = swap.path().to_str().expect("a plain path");
    let arguments = ["--guests", "24", "--memory", "32M", "--budget", "96M", "--swap", swap_path, "--json"];
    let finished = start(&folder, &[&arguments[..], &["--probe", program]].concat()).finish(LIMIT).expect_status(0);
    let report = report(&finished);
    for (name, expected) in [("guests_ok", 24), ("verified_pages", 24 * (8 << 8)), ("bad_pages", 0)] {
        assert_eq!(counter(&report, name), expected, "{name}: {report}");
    }
    expect_nothing_left(folder.path());
}

#[test]
fn the_most_guests_are_as_many_as_are_admitted() {
    let folder = folder_on_disk();
    // Two reservations fit, three do not; every goodput will do.
    let finished = start(
        &folder,
        &[
            "--guests",
            "max",
            "--memory",
            "32M",
            "--budget",
            "64M",
            "--reservation",
            "24M",
            "--goodput",
            "0.1",
            "--json",
            "--warmup",
            "0.5",
            "--secs",
            "2",
            "--stagger",
            "500",
            "--probe",
            "fill:4M,seed={n};repeat:forever,(idle:3600,touch=1M,every=0.2)",
            "--probe",
            "fill:4M,seed={n};repeat:forever,(walk:4M,touches=1000,write=30;idle:0.1;verify)",
        ],
    )
    .finish(LIMIT)
    .expect_status(0);
    let report = report(&finished);
    println!("{report}");
    assert_eq!((counter(&report, "guests"), counter(&report, "guests_ok")), (2, 2), "{report}");
    assert_eq!((&report["is_max"], &report["is_timed"]), (&true.into(), &true.into()), "{report}");
    assert!(counter(&report, "verify_lines") > 0, "{report}");
    let trials = report["trials"].as_array().expect("trials");
    let tried: Vec<_> = trials.iter().map(|trial| (counter(trial, "guests"), trial["has_passed"] == true)).collect();
    assert_eq!(tried, [(2, true), (4, false), (3, false)], "{report}");
    let kinds = report["kinds"].as_array().expect("kinds");
    assert_eq!(kinds.iter().map(|kind| counter(kind, "guests")).collect::<Vec<_>>(), [1, 1], "{report}");
    assert!(counter(&kinds[0], "alone.in_time_ns") >= 2_000_000, "a hundredth of 200 ms: {report}");
    expect_nothing_left(folder.path());
}

#[test]
fn guests_without_a_pool_are_the_hosts() {
    let folder = folder_on_disk();
    let finished = start(
        &folder,
        &["--guests", "2", "--memory", "32M", "--budget", "16M", "--unmanaged", "--probe", "fill:16M;idle:3;verify"],
    )
    .finish(LIMIT)
    .expect_status(0);
    assert!(finished.stdout.contains("above the budget, which nobody keeps"), "{finished:?}");
    assert!(finished.stdout.contains("pages           0 bad of 8192 verified"), "{finished:?}");
    expect_nothing_left(folder.path());
}

#[test]
fn what_goes_wrong_is_its_status() {
    let folder = folder_on_disk();
    for (program, bad_pages, words) in [
        ("fill:4M;idle:1;damage:flip;verify", 2, r#""bad""#),
        ("fill:4M;verify;exit:3", 0, "ended with status 67"),
        ("fill:64M;verify", 0, "pages asked"),
    ] {
        let arguments = ["--guests", "2", "--memory", "32M", "--budget", "128M", "--json", "--probe", program];
        let finished = start(&folder, &arguments).finish(LIMIT).expect_status(1);
        let report = report(&finished);
        assert_eq!((counter(&report, "guests_ok"), counter(&report, "bad_pages")), (0, bad_pages), "{report}");
        assert!(report["failures"][1].as_str().is_some_and(|failure| failure.contains(words)), "{report}");
    }
    expect_nothing_left(folder.path());
}

/// The second of two guests finds a bad page, whose program is this.
const SECOND_IS_BAD: &str = "fill:4M;repeat:{n},(verify;walk:4M,touches=1000;damage:flip)";

#[test]
fn a_bad_page_is_told_though_fewer_guests_are_good() {
    let folder = folder_on_disk();
    let of_two = ["--memory", "32M", "--budget", "64M"];
    let max = ["density", "--guests", "max", "--goodput", "0.1", "--json", "--probe", SECOND_IS_BAD];
    let report = report(&cistern(&[&max[..], &of_two].concat()).expect_status(1));
    assert_eq!((counter(&report, "guests"), counter(&report, "bad_pages")), (1, 0), "{report}");
    let trials = report["trials"].as_array().expect("trials");
    let tried: Vec<_> = trials.iter().map(|trial| (counter(trial, "guests"), counter(trial, "bad_pages"))).collect();
    assert_eq!((tried, &report["has_passed"]), (vec![(2, 1), (1, 0)], &true.into()), "{report}");

    // Stopped after it, too.
    let program = "fill:4M;repeat:{n},(verify;damage:flip);idle:3600";
    let mut density = start(&folder, &[&["--guests", "2", "--probe", program], &of_two[..]].concat());
    density.wait_for("two guests at work", |line| line.contains("at work"));
    density.wait_for("10 s more", |line| line.contains("at work"));
    density.signal(libc::SIGINT);
    let finished = density.finish(LIMIT).expect_status(1);
    assert!(finished.stderr.contains("there is no report, and 1 pages were bad"), "{finished:?}");
    expect_nothing_left(folder.path());
}

#[test]
fn where_not_even_one_guest_passes_there_is_a_report() {
    let (out, swap) = (folder_on_disk(), folder_on_disk());
    let program = "fill:24M,random=100,seed={n};repeat:forever,(walk:24M,touches=2000,write=30)";
    let flags = ["--memory=32M", "--budget=16M", "--warmup=0.5", "--secs=2", "--probe", program];
    let folders = [format!("--out={}", out.path().display()), format!("--swap={}", swap.path().display())];
    let arguments = [&["density", "--guests=max"], &flags[..], &folders.each_ref().map(String::as_str)].concat();
    let finished = cistern(&arguments).expect_status(1);
    assert!(finished.stdout.contains("\nNot even one guest keeps 95 % of its goodput.\n"), "{finished:?}");
    let written = fs::read_to_string(out.path().join("report.json")).expect("report.json");
    let report: Value = serde_json::from_str(&written).expect("JSON");
    assert_eq!((counter(&report, "guests"), &report["has_passed"]), (1, &false.into()), "{report}");
    assert_eq!((counter(&report, "guests_ok"), counter(&report, "bad_pages")), (1, 0), "{report}");
    expect_nothing_left(swap.path());
}

#[test]
fn stopped_it_takes_everything_along() {
    let folder = folder_on_disk();
    let program = format!("{FILL};repeat:forever,(walk:8M,touches=1000;idle:0.2)");
    let arguments = ["--guests", "3", "--memory", "32M", "--budget", "64M", "--warmup", "0.1", "--probe", &program];
    let mut density = start(&folder, &[&arguments[..], &["--secs", "0.5"]].concat());
    density.wait_for("three guests", |line| line.starts_with("3 guests"));
    density.signal(libc::SIGINT);
    let finished = density.finish(LIMIT).expect_status(0);
    assert!(finished.stderr.contains("there is no report") && finished.stderr.lines().count() == 1, "{finished:?}");
    expect_nothing_left(folder.path());

    let arguments = [&["density"], &arguments[..], &["--secs", "600"]].concat();
    for keys in [b"q", b"\x03"] {
        let mut session = Session::start_with(&arguments, &[("TMPDIR", folder.path())]);
        session.wait_for(b"\x1b[?1049h");
        session.wait_for(b"measuring");
        assert!(session.settings().is_raw() && !processes_with(folder.path()).is_empty());
        session.type_keys(keys);
        session.wait_for(b"\x1b[?1049l");
        session.wait_for(b"there is no report");
        assert_eq!(session.wait().code(), Some(0));
        assert_eq!(session.settings(), session.before);
        expect_nothing_left(folder.path());
    }
}

#[test]
fn flags_that_make_no_sense_are_one_line() {
    let common = ["density", "--memory", "32M", "--budget", "64M"];
    for (arguments, words) in [
        (&["--guests", "0", "--probe", "verify"][..], "1 to 256 guests"),
        (&["--guests", "4"], "--probe PROGRAM"),
        (&["--probe", "verify"], "--guests"),
        (&["--guests", "4", "--probe", "dance"], "unknown step"),
        (&["--guests", "4", "--probe", "verify", "--secs", "0"], "--secs 0"),
        (&["--guests", "max", "--probe", "verify"], "every --probe"),
        (&["--guests", "4", "--probe", "verify", "--limit", "1G"], "--limit 1G"),
        (&["--guests", "4", "--probe", "verify", "--pool", "/tmp/p"], "--pool"),
        (&["--guests", "4", "--probe", "verify", "--ksm-across-nodes", "1"], "--ksm-tune"),
    ] {
        let finished = cistern(&[&common[..], arguments].concat()).expect_status(2);
        assert!(finished.stderr.contains(words), "'{words}': {finished:?}");
        assert_eq!((finished.stderr.lines().count(), finished.stdout.as_str()), (1, ""), "{finished:?}");
    }
    let little = ["density", "--guests", "4", "--probe", "verify", "--memory", "32M", "--budget", "4M"];
    let finished = cistern(&little).expect_status(2);
    assert!(finished.stderr.contains("--budget 4M: at least 8M"), "{finished:?}");
    let nowhere = ["density", "--guests", "1", "--probe", "verify", "--memory", "32M", "--out", "/proc/nowhere"];
    let finished = cistern(&nowhere).expect_status(1);
    assert!(finished.stderr.contains("--out /proc/nowhere") && finished.stdout.is_empty(), "{finished:?}");
    // What a screen shows, with a line to spare.
    let help = cistern(&["density", "--help"]).expect_status(0);
    assert!(help.stdout.lines().count() <= 28, "{}", help.stdout);
}
