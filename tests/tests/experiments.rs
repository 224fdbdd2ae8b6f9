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
    let differs = said.lines().find_map(|line| line.strip_prefix("  differs: "));
    assert!(differs.is_some_and(|words| !words.is_empty()), "{said}");
    assert!(!PUBLISHED.contains(&name) || has_published(&said), "{name} has no published figure beside ours\n{said}");
    assert!(claims > 0 && !drawings.is_empty() && drawings.iter().all(is_drawn), "{drawings:?}\n{said}");
}

/// Those of the literature.
const PUBLISHED: [&str; 9] = [
    "tps-scaling",
    "balloon-fidelity",
    "active-tracking",
    "idle-tax",
    "shares",
    "watermarks",
    "compression-vs-swap",
    "scan-efficiency",
    "proactive",
];

/// Whether a row of the table has a published figure.
fn has_published(said: &str) -> bool {
    let mut rows = said.lines().skip_while(|line| !line.trim_start().starts_with("published"));
    let Some(heading) = rows.next() else { return false };
    let column = heading.find("published").expect("it begins with that");
    let published = |row: &str| row.chars().skip(column).collect::<String>();
    let rows = rows.take_while(|line| !line.starts_with("  holds: "));
    rows.map(published).any(|text| !text.trim().is_empty() && !text.starts_with("not published"))
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
    small_guests_are_many: "many-small",
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

/// Nothing is measured for an hour first.
#[test]
fn what_makes_no_sense_is_refused_at_once() {
    for (arguments, words) in [
        (&["shares", "--ways", "ours"][..], "shares has no use for --ways"),
        (&["packing", "--mixes", "larger"], "packing has no use for --mixes"),
        (&["watermarks", "--scale", "2"], "watermarks has no use for --scale"),
        (&["memcached", "--guests", "3"], "memcached has no use for --guests"),
        (&["packing", "--ways", "ours,zrm"], "zrm: no such baseline"),
        (&["packing", "--ways", "ours,none"], "packing does not measure none"),
        (&["file-io", "--ways", "zram+ksm"], "file-io does not measure zram+ksm"),
        (&["packing-mixes", "--mixes", "odd"], "all-idle"),
        (&["packing", "--guests", "0"], "--guests"),
        (&["packing", "--guests", "257"], "--guests"),
        (&["packing", "--scale", "0"], "--scale"),
        (&["packing", "--out", "/dev/null/x"], "/dev/null/x"),
    ] {
        let output = experiments(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn what_takes_root_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).expect("root may");
    // A copy that another user may read, wherever this one lies.
    let program = folder.path().join("experiments");
    // By another process: one that has it open for writing could still have it when this starts it.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_experiments")).arg(&program).status();
    assert!(copied.expect("cp").success());
    for (name, names) in [("packing", "packing: "), ("all", "tps-scaling, scan-efficiency, packing, ")] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg(name);
        let output =
            command.args(["--short", "--out"]).arg(folder.path()).output().expect("setpriv: package util-linux");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(names) && said.contains("run it as root, please"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
