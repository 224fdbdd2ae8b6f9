//! A Linux guest with a swap disk of its own in a pool: a balloon that makes it page is noticed, and may ask for less.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::ledger::{Ledger, Report};
use cistern_tests::control::ask;
use cistern_tests::guests::Guest;
use cistern_tests::initramfs::Initramfs;
use cistern_tests::paged::{MIB, counter, folder_on_disk};
use cistern_tests::process::{LIMIT, Running, binary};
use cistern_tests::swap_area::swap_area;
use serde_json::{Value, json};

/// Holds memory without using it until it is told to. What it held is compared in the end.
const SCRIPT: &str = r#"
swapon /dev/vda && echo swap is on
hog 32M 600 &
hog=$!
read line < /dev/ttyS0
kill -STOP $hog
echo held
read line < /dev/ttyS0
grep pswp /proc/vmstat
kill -KILL $hog
hog 8M
"#;

/// The guest's swap disk.
const SWAP_BYTES: usize = 32 << 20;

/// What the hog has filled when all of it is there, with the kernel beside it, and what the balloon is to take of the 96 MiB:
/// more than is free.
const HELD_BYTES: u64 = 50 * MIB;
const BALLOON_MIB: u64 = 60;

/// What the pool knows of its only member.
fn report(folder: &Path) -> Report {
    let pool = Ledger::read(&folder.join("pool")).expect("the pool can be read");
    pool.members.into_iter().next().expect("it has a member").report
}

/// What the manager of the VM says.
fn manager(folder: &Path) -> Value {
    ask(&folder.join("socket"), "GET", "/memory", "").json()["pool"].take()
}

/// Looks at the VM in the pool until it is as wanted.
#[track_caller]
fn wait_for(folder: &Path, what: &str, mut wanted: impl FnMut(&Report) -> bool) -> Report {
    let deadline = Instant::now() + LIMIT;
    loop {
        let report = report(folder);
        if wanted(&report) {
            return report;
        }
        assert!(Instant::now() < deadline, "no {what}: {report:?}, {}", manager(folder));
        thread::sleep(Duration::from_millis(100));
    }
}

/// Holds the balloon at a size, whatever the pool wants.
fn inflate(folder: &Path, mib: u64) {
    let answer = ask(&folder.join("socket"), "PATCH", "/balloon", &json!({"amount_mib": mib}).to_string());
    assert_eq!(answer.status, 204, "{answer:?}");
}

#[test]
fn a_balloon_that_makes_its_guest_page_is_noticed() {
    let folder = folder_on_disk();
    let folder = folder.path();
    let file = |name: &str| folder.join(name);
    let mut initramfs = Initramfs::new().expect("the initramfs");
    initramfs.add_bytes("/test.sh", SCRIPT);
    initramfs.write(&file("initramfs")).expect("an initramfs is written");
    fs::write(file("disk"), swap_area(SWAP_BYTES)).expect("a disk");
    let mut command = Command::new(binary());
    command.args(["run", "--memory", "96M", "--balloon-max", "90", "--cmdline", "init.run=\"sh /test.sh\"", "--pool"]);
    command.arg(file("pool")).args(["--budget", "1G", "--kernel"]).arg(Guest::Vmlinux.build().expect("the kernel"));
    command.arg("--initrd").arg(file("initramfs")).arg("--disk").arg(file("disk")).arg("--api-sock");
    command.arg(file("socket")).stdin(Stdio::piped());
    let mut linux = Running::spawn(command);
    linux.wait_for("the swap", |line| line.starts_with("swap is on"));
    wait_for(folder, "hog", |report| report.charge_bytes - report.own_bytes > HELD_BYTES);
    linux.stdin().write_all(b"go\n").expect("the guest's console");
    linux.wait_for("the hog held", |line| line.starts_with("held"));
    assert_eq!(counter(&manager(folder), "balloon_cost_bytes"), 0);

    // The guest pages to its own disk. That is counted as what the balloon costs, and the pool may ask for less than it held.
    inflate(folder, BALLOON_MIB);
    let mut held_bytes = 0;
    let spared = wait_for(folder, "cost of the balloon", |report| {
        held_bytes = held_bytes.max(report.ballooned_bytes);
        let cost_bytes = counter(&manager(folder), "balloon_cost_bytes");
        cost_bytes > 0 && report.balloon_most_bytes < held_bytes
    });
    let cost_bytes = counter(&manager(folder), "balloon_cost_bytes");
    println!(
        "it held {} MiB, may be asked for {}; {} KiB paged",
        held_bytes / MIB,
        spared.balloon_most_bytes / MIB,
        cost_bytes >> 10
    );

    // Given back, it has its memory for what comes next.
    inflate(folder, 0);
    wait_for(folder, "empty balloon", |report| report.ballooned_bytes == 0);
    linux.stdin().write_all(b"go\n").expect("the guest's console");
    let output = linux.finish(LIMIT).expect_status(0).stdout.replace('\r', "");
    let paged_out = output.lines().find_map(|line| line.strip_prefix("pswpout ")?.parse::<u64>().ok());
    assert!(paged_out > Some(0) && output.contains("\nhog: sum OK, 2048 pages"), "{output}");
}
