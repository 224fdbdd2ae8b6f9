//! Who is let into a pool, who is refused and why, and who waits.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use cistern_tests::paged::folder_on_disk;
use cistern_tests::pool::{INTERVAL, TestPool};
use cistern_tests::process::{LIMIT, Running, binary, cistern, probe};

const IDLE: &str = "idle:1000000";

/// Tries to enter and expects this status and these words on the one line of stderr.
#[track_caller]
fn refused(flags: &[&str], status: i32, words: &[&str]) {
    let run = ["run", "--memory", "64M", "--kernel", path(probe())];
    let finished = cistern(&[&run, flags].concat()).expect_status(status);
    assert!(finished.stdout.is_empty() && finished.stderr.lines().count() == 1, "{finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "no '{word}' in: {}", finished.stderr);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are plain")
}

#[test]
fn what_does_not_fit_the_pool_is_refused_with_the_numbers() {
    let mut pool = TestPool::new(&["--memory", "64M", "--budget", "100M", "--idle-tax", "50"]);
    pool.start(IDLE, &["--reservation", "60M"]);
    pool.vms[0].running.wait_for_phase("boot");
    let folder = path(pool.folder()).to_owned();
    let refused = |flags: &[&str], words: &[&str]| refused(&[&["--pool", &folder], flags].concat(), 1, words);
    // 100 MiB, less the 60 and the 6 below the first watermark.
    let numbers =
        ["36700160 bytes", "104857600 bytes", "62914560 are reserved", "6291456 are held back", "leaves 35651584"];
    refused(&["--name", "other", "--reservation", "35M"], &numbers);
    refused(&["--name", "other", "--budget", "101M"], &["budget is 104857600 bytes, not 105906176 bytes"]);
    refused(&["--name", "other", "--idle-tax", "75"], &["idle memory tax is 50 percent, not 75 percent"]);
    refused(&["--name", "other", "--watermarks", "8,4,2,1"], &["6,4,2,1 percent, not 8,4,2,1 percent"]);
    let process = format!("process {}", pool.vms[0].running.pid());
    refused(&["--name", "vm0"], &["a VM named vm0 is in it already", &process]);
    // What fits by a MiB, and asks for what there is.
    pool.start(IDLE, &["--reservation", "34M"]);
    pool.vms[1].running.wait_for_phase("boot");
    assert_eq!(pool.view().members.len(), 2);
    pool.stop();
}

#[test]
fn flags_of_a_pool_need_one() {
    for flags in [
        ["--budget", "1G"],
        ["--shares", "high"],
        ["--reservation", "8M"],
        ["--limit", "32M"],
        ["--idle-tax", "50"],
        ["--watermarks", "6,4,2,1"],
        ["--sample-period", "1s"],
        ["--sample-pages", "50"],
        ["--balloon-max", "50"],
        ["--reclaim", "off"],
    ] {
        refused(&flags, 2, &[flags[0], "--pool DIR"]);
    }
    let folder = folder_on_disk();
    let pool = path(folder.path());
    refused(&["--pool", pool, "--resident", "32M"], 2, &["--resident 32M", "--limit"]);
    refused(&["--pool", pool, "--limit", "65M"], 2, &["--limit 65M", "64M"]);
    refused(&["--pool", pool, "--limit", "32M", "--reservation", "33M"], 2, &["--reservation 33M", "at most 32M"]);
    refused(&["--pool", pool, "--budget", "4M"], 2, &["--budget 4M", "at least 8M"]);
    assert_eq!(fs::read_dir(pool).expect("a folder").count(), 0, "nothing was made of it");
}

#[test]
fn a_vm_without_room_waits_and_says_so() {
    let mut pool = TestPool::new(&["--memory", "128M", "--budget", "112M"]);
    // Nowhere to go: all but nothing is left.
    pool.start("fill:120M,random=100;idle:1000000", &["--balloon", "off"]);
    pool.wait_until_steady("a full pool", |looks| looks[0].cost_bytes > 104 << 20);
    let said = pool.folder().join("said");
    // Its stderr is to be read while it runs.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" 2> \"$0\"", path(&said), path(binary()), "run", "--kernel", path(probe())]);
    command.args(["--cmdline", "probe=\"fill:16M;verify;exit\"", "--memory", "64M", "--name", "late", "--pool"]);
    command.arg(pool.folder()).stdin(Stdio::null());
    let mut late = Running::spawn(command);
    let deadline = Instant::now() + LIMIT;
    let text = loop {
        let text = fs::read_to_string(&said).unwrap_or_default();
        if !text.is_empty() {
            break text;
        }
        assert!(!late.has_ended() && Instant::now() < deadline, "nothing was said");
        thread::sleep(INTERVAL);
    };
    assert!(text.contains("waiting for ") && text.contains(" of 112M is free"), "{text}");
    assert_eq!(pool.view().members.len(), 2, "it is a member that waits");
    pool.vms.remove(0).stop();
    late.finish(LIMIT).expect_status(0).expect_verified(1);
}
