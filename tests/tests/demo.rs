//! `cistern demo`: it gets to its end with every page verified, and leaves nothing behind however it ends.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::ksm::Ksm;
use cistern_tests::leftovers::{expect_nothing_left, processes_with};
use cistern_tests::paged::{MIB, counter, folder_on_disk};
use cistern_tests::process::{Finished, LIMIT, Running, binary, children, wait_until};
use cistern_tests::terminal::Session;
use cistern_tests::watch::pss_bytes;
use serde_json::Value;
use tempfile::TempDir;

const GUESTS: usize = 8;
const BUDGET_BYTES: u64 = 384 * MIB;

/// Pages of the 96 MiB that each guest fills.
const PAGES: u64 = 96 << 8;

/// How often is looked at the guests from outside.
const INTERVAL: Duration = Duration::from_millis(100);

/// Off a terminal, with its files in this folder.
fn start(folder: &TempDir, arguments: &[&str]) -> Running {
    let mut command = Command::new(binary());
    command.arg("demo").args(arguments).env("TMPDIR", folder.path()).stdin(Stdio::null());
    Running::spawn(command)
}

/// The objects of the guests, and that of the pool.
#[track_caller]
fn reports(finished: &Finished) -> (Vec<Value>, Value) {
    let mut reports = finished.reports();
    let pool = reports.pop().expect("an object for the pool");
    assert_eq!((reports.len(), counter(&pool, "guests")), (GUESTS, GUESTS as u64), "{finished:?}");
    (reports, pool)
}

/// Whether the demo may have pages merged here.
fn may_merge() -> bool {
    fs::OpenOptions::new().write(true).open("/sys/kernel/mm/ksm/run").is_ok()
}

/// What KSM is set to, if nobody drives it now.
fn undriven_ksm() -> Option<Vec<String>> {
    let lock = fs::File::open("/sys/kernel/mm/ksm/run").ok()?;
    lock.try_lock().ok()?;
    let names = ["run", "pages_to_scan", "sleep_millisecs", "smart_scan"];
    Some(
        names.iter().map(|name| fs::read_to_string(format!("/sys/kernel/mm/ksm/{name}")).unwrap_or_default()).collect(),
    )
}

#[test]
fn eight_guests_verify_every_page_in_half_of_what_they_fill() {
    let _ksm = Ksm::hold();
    let folder = folder_on_disk();
    let mut demo = start(&folder, &["--json"]);
    // Guests go on while they are counted here, and a page that moves may be counted twice; not in most looks.
    let mut taken = Vec::new();
    while !demo.has_ended() {
        let children = children(demo.pid());
        if children.len() == GUESTS {
            taken.push(children.iter().filter_map(|&pid| pss_bytes(pid)).sum::<u64>());
        }
        thread::sleep(INTERVAL);
    }
    let finished = demo.finish(LIMIT).expect_status(0);
    assert_eq!(finished.stderr, "");
    let (guests, pool) = reports(&finished);
    for guest in &guests {
        assert_eq!((counter(guest, "verified_pages"), counter(guest, "bad_pages")), (PAGES, 0), "{guest}");
        assert_eq!((&guest["status"], &guest["failure"]), (&0.into(), &Value::Null), "{guest}");
        assert!(guest["touches_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{guest}");
        assert!(counter(guest, "peak_pss_bytes") > 0, "{guest}");
    }
    println!("{pool}");
    assert_eq!((counter(&pool, "verified_pages"), counter(&pool, "bad_pages")), (PAGES * GUESTS as u64, 0), "{pool}");
    assert_eq!((counter(&pool, "budget_bytes"), &pool["swap"]), (BUDGET_BYTES, &true.into()), "{pool}");

    let peak = counter(&pool, "peak_pss_bytes");
    assert!(peak <= BUDGET_BYTES / 100 * 101, "{pool}");
    // It is what the kernel counts, and not anything else.
    taken.sort_unstable();
    let usual = *taken.get(taken.len() / 2).expect("all guests were seen");
    println!("peak {peak}, usually {usual} in {} looks", taken.len());
    assert!(usual <= peak / 100 * 105, "{usual} {pool}");
    assert!(peak > BUDGET_BYTES / 2 && counter(&pool, "looks") > 10, "{pool}");

    for mechanism in ["reported", "balloon", "zero", "duplicate", "compressed", "swapped"] {
        assert!(counter(&pool, &format!("given.{mechanism}_bytes")) > MIB, "{mechanism}: {pool}");
    }
    let held = |name: &str| counter(&pool, &format!("fullest.{name}_bytes"));
    for state in ["untouched", "zero", "duplicate", "compressed", "compressed_held", "swapped", "resident"] {
        assert!(held(state) > MIB, "{state}: {pool}");
    }
    assert_eq!(pool["merging"], may_merge(), "{pool}");
    if may_merge() {
        let (most, saved) = (counter(&pool, "most_merged_bytes"), counter(&pool, "merging_saved_most_bytes"));
        assert!(most > MIB && saved > 0 && saved < most, "{pool}");
    }
    // Guests were asked one after the other, while pages moved.
    let all: u64 = ["untouched", "zero", "duplicate", "compressed", "swapped", "resident"].into_iter().map(held).sum();
    let size = counter(&pool, "size_bytes");
    assert!(all.abs_diff(size) < size / 20, "{all} of {size}: {pool}");
    expect_nothing_left(folder.path());
}

/// A demo with some guests, whose pool's leader has changed how KSM runs where it may: it records that before.
#[track_caller]
fn start_to_the_second_guest(folder: &TempDir) -> Running {
    let mut demo = start(folder, &[]);
    demo.wait_for("second guest", |line| line.starts_with("web") && line.contains("has booted"));
    let has_record = || {
        let places = fs::read_dir(folder.path()).expect("the folder").flatten();
        places.into_iter().any(|place| place.path().join("pool/ksm").exists())
    };
    if may_merge() {
        wait_until("a driver of KSM", has_record);
    }
    demo
}

/// Fails unless KSM is set as it was found, or driven by somebody else by now.
#[track_caller]
fn expect_ksm_as(found: Option<Vec<String>>) {
    if let (Some(found), Some(left)) = (found, undriven_ksm()) {
        assert_eq!(left, found);
    }
}

#[test]
fn a_guest_that_dies_is_a_failure_and_the_others_go_on() {
    let _ksm = Ksm::hold();
    let folder = folder_on_disk();
    let demo = start(&folder, &["--json"]);
    let deadline = Instant::now() + LIMIT;
    let victim = loop {
        // The leader of the pool, by then.
        match children(demo.pid())[..] {
            [first, _, _, ..] => break first,
            _ => assert!(Instant::now() < deadline, "no three guests"),
        }
        thread::sleep(INTERVAL);
    };
    // SAFETY: kill takes two numbers; the demo has not waited for its guest yet.
    assert_eq!(unsafe { libc::kill(victim as i32, libc::SIGKILL) }, 0);
    let finished = demo.finish(LIMIT).expect_status(1);
    let (guests, pool) = reports(&finished);
    let (died, others): (Vec<_>, Vec<_>) = guests.iter().partition(|guest| guest["status"].is_null());
    assert_eq!((died.len(), others.len()), (1, GUESTS - 1), "{finished:?}");
    assert!(died[0]["failure"].as_str().is_some_and(|failure| failure.contains("signal")), "{}", died[0]);
    for guest in others {
        assert_eq!((counter(guest, "verified_pages"), &guest["failure"]), (PAGES, &Value::Null), "{guest}");
    }
    assert_eq!(counter(&pool, "bad_pages"), 0, "{pool}");
    expect_nothing_left(folder.path());
}

/// Its guests see to themselves, and to KSM.
#[test]
fn a_demo_that_is_killed_leaves_no_guests() {
    let _ksm = Ksm::hold();
    let folder = folder_on_disk();
    let found = undriven_ksm();
    let demo = start_to_the_second_guest(&folder);
    demo.signal(libc::SIGKILL);
    assert_eq!(demo.finish(LIMIT).status, None);
    wait_until("the end of all guests", || processes_with(folder.path()).is_empty());
    expect_ksm_as(found);
}

#[test]
fn a_demo_that_is_stopped_takes_everything_along() {
    let _ksm = Ksm::hold();
    let folder = folder_on_disk();
    let found = undriven_ksm();
    let demo = start_to_the_second_guest(&folder);
    demo.signal(libc::SIGTERM);
    let finished = demo.finish(LIMIT).expect_status(1);
    assert!(finished.stderr.contains("stopped before its end"), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    expect_nothing_left(folder.path());
    expect_ksm_as(found);

    for keys in [b"q", b"\x03"] {
        let mut session = Session::start_with(&["demo"], &[("TMPDIR", folder.path())]);
        session.wait_for(b"\x1b[?1049h");
        session.wait_for(b"web");
        assert!(session.settings().is_raw() && !processes_with(folder.path()).is_empty());
        session.type_keys(keys);
        session.wait_for(b"\x1b[?1049l");
        session.wait_for(b"stopped before its end");
        assert_eq!(session.wait().code(), Some(1));
        assert_eq!(session.settings(), session.before);
        expect_nothing_left(folder.path());
    }
}
