//! A Linux guest with a swap disk of its own in a pool: a balloon that makes it page is noticed, and asks for less.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::ledger::{Ledger, MemberView, Report};
use cistern_tests::control::ask;
use cistern_tests::guests::Guest;
use cistern_tests::initramfs::Initramfs;
use cistern_tests::paged::{MIB, counter, folder_on_disk, without_histograms};
use cistern_tests::process::{LIMIT, Running, binary, probe};
use serde_json::Value;

/// Holds memory without using it until it is told to. What it held is compared in the end.
const SCRIPT: &str = r#"
swapon /dev/vda && echo swap is on
hog 100M 10 &
hog=$!
read line < /dev/ttyS0
kill -STOP $hog
echo held
read line < /dev/ttyS0
grep pswp /proc/vmstat
kill -CONT $hog
wait $hog
echo status $?
"#;

/// The guest's swap disk.
const SWAP_BYTES: usize = 64 << 20;

/// What the hog fills, and the kernel beside it.
const HELD_BYTES: u64 = 110 * MIB;

/// A swap area as mkswap makes it: a first page that says how many there are (Linux, include/linux/swap.h, `union
/// swap_header`).
fn swap_area(bytes: usize) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut area = vec![0; bytes];
    let (version, last_page) = (1_u32, (bytes / PAGE - 1) as u32);
    area[1024..1028].copy_from_slice(&version.to_le_bytes());
    area[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    area[PAGE - 10..PAGE].copy_from_slice(b"SWAPSPACE2");
    area
}

/// A VM of this pool.
fn member(folder: &Path, name: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(binary());
    command.args(["run", "--name", name, "--memory", "192M", "--pool"]).arg(folder.join("pool"));
    command.args(["--budget", "240M", "--sample-period", "1s", "--api-sock"]).arg(folder.join(name)).args(arguments);
    command.stdin(Stdio::piped());
    Running::spawn(command)
}

/// What the manager of a VM says.
fn manager(folder: &Path, name: &str) -> Value {
    without_histograms(ask(&folder.join(name), "GET", "/memory", "").json())["pool"].take()
}

/// What the pool knows of a VM.
fn view(folder: &Path, name: &str) -> MemberView {
    let pool = Ledger::read(&folder.join("pool")).expect("the pool can be read");
    let member = pool.members.into_iter().find(|member| member.identity.name == name);
    member.unwrap_or_else(|| panic!("{name} is no member"))
}

/// Looks at a VM in the pool until it is as wanted; `look` sees each.
#[track_caller]
fn wait_for(folder: &Path, name: &str, what: &str, mut wanted: impl FnMut(&MemberView) -> bool) -> MemberView {
    let deadline = Instant::now() + LIMIT;
    loop {
        let member = view(folder, name);
        if wanted(&member) {
            return member;
        }
        assert!(Instant::now() < deadline, "no {what}: {member:?}, {}", manager(folder, name));
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_balloon_that_makes_its_guest_page_asks_for_less() {
    let folder = folder_on_disk();
    let folder = folder.path();
    let mut initramfs = Initramfs::new().expect("the initramfs");
    initramfs.add_bytes("/test.sh", SCRIPT);
    initramfs.write(&folder.join("initramfs")).expect("an initramfs is written");
    fs::write(folder.join("disk"), swap_area(SWAP_BYTES)).expect("a disk");
    let text = |path: &Path| path.to_str().expect("test paths are plain").to_owned();
    let (kernel, initrd) = (text(&Guest::Vmlinux.build().expect("the kernel")), text(&folder.join("initramfs")));
    let disk = text(&folder.join("disk"));
    // Nothing but its balloon may take from it, and it is the poorer.
    let arguments = ["--reclaim", "off", "--shares", "100", "--kernel", &kernel, "--initrd", &initrd, "--disk", &disk];
    let run = ["--cmdline", "init.run=\"sh /test.sh\"", "--balloon-max", "90"];
    let mut linux = member(folder, "linux", &[&arguments[..], &run].concat());
    linux.wait_for("the swap", |line| line.starts_with("swap is on"));
    wait_for(folder, "linux", "hog", |linux| linux.report.charge_bytes - linux.report.own_bytes > HELD_BYTES);
    linux.stdin().write_all(b"go\n").expect("the guest's console");
    linux.wait_for("the hog held", |line| line.starts_with("held"));
    assert_eq!(counter(&manager(folder, "linux"), "balloon_cost_bytes"), 0);

    // Another comes, and wants most of the budget.
    let program = "fill:120M,random=100,seed=3;repeat:10,(fill:4M,random=100,seed=3;idle:1);\
                   repeat:1000000,(walk:160M,dist=sequential,touches=40000)";
    let cmdline = format!("probe=\"{program}\"");
    let other = member(folder, "probe", &["--kernel", &text(probe()), "--cmdline", &cmdline]);

    // The guest pages to its own disk; that is counted as what the balloon costs, and it is asked for less than it gave.
    let mut most_bytes = 0;
    let paged = wait_for(folder, "linux", "cost of the balloon", |linux| {
        most_bytes = most_bytes.max(linux.report.ballooned_bytes);
        counter(&manager(folder, "linux"), "balloon_cost_bytes") > 0
    });
    println!(
        "paged at {} MiB, asked for {} MiB",
        paged.report.ballooned_bytes / MIB,
        paged.report.balloon_target_bytes / MIB
    );
    let spared = wait_for(folder, "linux", "step back", |linux| {
        most_bytes = most_bytes.max(linux.report.ballooned_bytes);
        let Report { balloon_most_bytes, ballooned_bytes, balloon_target_bytes, .. } = linux.report;
        balloon_most_bytes < most_bytes && balloon_target_bytes < most_bytes && ballooned_bytes < most_bytes
    });
    println!(
        "at most {} MiB, then {} of {} allowed, {} KiB paged",
        most_bytes / MIB,
        spared.report.ballooned_bytes / MIB,
        spared.report.balloon_most_bytes / MIB,
        counter(&manager(folder, "linux"), "balloon_cost_bytes") >> 10
    );

    other.signal(libc::SIGKILL);
    let finished = other.finish(LIMIT);
    assert!(finished.reports().iter().all(|report| report["bad"].is_null() || report["bad"] == 0), "{finished:?}");
    linux.stdin().write_all(b"go\n").expect("the guest's console");
    let finished = linux.finish(LIMIT).expect_status(0);
    let output = finished.stdout.replace('\r', "");
    let paged_out = output.lines().find_map(|line| line.strip_prefix("pswpout ")?.parse::<u64>().ok());
    assert!(paged_out > Some(0) && output.contains("\nhog: sum OK, 25600 pages"), "{output}");
    assert!(output.contains("\nstatus 0\n"), "{output}");
}
