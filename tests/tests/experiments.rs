//! The published experiments in their short versions: what must hold holds. How fast it was is not looked at.

use std::fs;
use std::process::{Command, Output};

fn experiments(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_experiments")).args(arguments).output().expect("it starts")
}

/// Runs one. All it claims must hold, and it draws something.
#[track_caller]
fn expect_to_hold(name: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("test paths are plain");
    let output = experiments(&[name, "--short", "--out", out]);
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{name}: {}\n{said}\n{failed}", output.status);
    let claims = said.lines().filter(|line| line.starts_with("  holds: ")).count();
    let drawings: Vec<_> = fs::read_dir(out).expect("the folder").flatten().map(|entry| entry.path()).collect();
    let is_drawn =
        |path: &std::path::PathBuf| fs::read_to_string(path).is_ok_and(|svg| svg.contains("<polyline points='"));
    assert!(claims > 0 && !drawings.is_empty() && drawings.iter().all(is_drawn), "{drawings:?}\n{said}");
}

/// One test a scenario.
macro_rules! scenarios {
    ($($test:ident: $name:literal,)*) => {
        const NAMES: &[&str] = &[$($name),*];
        $(
            #[test]
            fn $test() {
                expect_to_hold($name);
            }
        )*
    };
}

scenarios! {
    memory_goes_from_one_of_two_tanks_to_the_other: "two-tanks",
    the_tax_takes_from_who_idles: "idle-tax",
    shares_divide_what_is_too_little: "shares",
    each_level_begins_below_its_line: "watermarks",
    compressed_pages_come_back_without_a_disk: "compression-vs-swap",
    the_more_guests_are_identical_the_more_is_saved: "tps-scaling",
    the_estimate_follows_the_guest: "active-tracking",
    a_ballooned_guest_works_like_a_small_one: "balloon-fidelity",
    cold_pages_leave_slowly: "proactive",
    advice_spares_ksmd_most_of_memory: "scan-efficiency",
    idle_linux_guests_are_small_and_answer: "idle-linux",
    guests_are_whole_under_every_baseline: "packing",
    other_guests_are_whole_too: "packing-mixes",
    a_cache_is_whole_where_memory_is_short: "memcached",
    a_network_is_whole_where_memory_is_short: "network",
    a_disk_is_whole_where_memory_is_short: "file-io",
}

#[test]
fn all_are_listed_and_all_are_tested() {
    let listed = experiments(&[]);
    let text = String::from_utf8_lossy(&listed.stdout);
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!((listed.status.code(), names), (Some(0), NAMES.to_vec()), "{text}");
    let unknown = experiments(&["three-tanks"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", String::from_utf8_lossy(&unknown.stderr));
}
