//! The baselines: what the host is made to do, and that it is put back.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cistern_tests::baseline::host::Host;
use cistern_tests::baseline::reach::Reach;
use cistern_tests::baseline::reclaimer::Reclaimer;
use cistern_tests::baseline::{Baseline, SLOW_OPERATIONS_PER_SECOND, Swap};
use cistern_tests::ksm::Ksm;
use cistern_tests::paged::{MIB, folder_on_disk};
use cistern_tests::process::{LIMIT, Running, cistern, probe, wait_until};
use serde_json::Value;

const SWAP_BYTES: u64 = 256 * MIB;
const BUDGET_BYTES: u64 = 64 * MIB;

/// What there is of swap belongs to one of these tests at a time.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a baseline may change of swap.
fn settings() -> String {
    let files = [
        "/proc/swaps",
        "/proc/sys/vm/page-cluster",
        "/sys/module/zswap/parameters/compressor",
        "/sys/module/zswap/parameters/enabled",
        "/sys/module/zswap/parameters/max_pool_percent",
    ];
    let value = |file: &str| format!("{file}: {}\n", fs::read_to_string(file).unwrap_or_default());
    let devices = ["zram", "loop"].map(|name| used_devices(name).join(" "));
    files.map(value).concat() + &devices.join("\n")
}

/// Cgroups that a process has made, in all hierarchies.
fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    let name = format!("cistern-tests-{pid}");
    let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut found = Vec::new();
    while let Some(folder) = pending.pop() {
        // One that goes away meanwhile holds none.
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for path in folders.map(|entry| entry.path()) {
            if path.ends_with(&name) {
                found.push(path.clone());
            }
            pending.push(path);
        }
    }
    found
}

/// What a baseline may change of KSM, while nobody drives it.
fn ksm_settings() -> String {
    let _ksm = Ksm::hold();
    let value = |file: &str| fs::read_to_string(Path::new("/sys/kernel/mm/ksm").join(file)).expect("KSM");
    ["pages_to_scan", "run", "sleep_millisecs"].map(value).concat()
}

/// Devices of this name that have a size.
fn used_devices(name: &str) -> Vec<String> {
    let folder = fs::read_dir("/sys/block").expect("sysfs");
    let names = folder.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let has_size = |name: &String| {
        fs::read_to_string(Path::new("/sys/block").join(name).join("size")).is_ok_and(|size| size.trim() != "0")
    };
    let mut names: Vec<_> = names.filter(|found| found.starts_with(name)).filter(has_size).collect();
    names.sort();
    names
}

/// What a process has swapped out.
fn swapped_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// A guest with more pages than fit has them all, and the host is as it was.
#[track_caller]
fn holds_a_guest(baseline: &str) {
    let _turn = turn();
    let baseline: Baseline = baseline.parse().expect("it is in the grid");
    let folder = folder_on_disk();
    let before = settings();
    let host = Arc::new(Host::prepare(baseline, BUDGET_BYTES, SWAP_BYTES, folder.path()).expect("this host can"));
    // What does not fit comes at a pace: between two looks of the reclaimer any amount may.
    let program =
        "fill:48M,text=70,random=30;repeat:48,(fill:1M,text=70,random=30;idle:0.04);repeat:100000,(verify;idle:1)";
    let mut guest = Running::start(&[
        "run",
        "--memory",
        "128M",
        "--cmdline",
        &format!("probe=\"{program}\""),
        "--kernel",
        probe().to_str().expect("test paths are plain"),
    ]);
    let pid = guest.pid();
    let reclaimer = Reclaimer::advise(baseline, Arc::clone(&host), BUDGET_BYTES, move || vec![pid]);
    guest.wait_for_phase("fill");
    wait_until("swapping", || swapped_bytes(guest.pid()) >= 16 * MIB);
    // The first may have begun before.
    for _ in 0..2 {
        assert_eq!(guest.wait_for_phase("verify")["bad"], 0);
    }
    let (swapped, stored) = (swapped_bytes(guest.pid()), host.store_bytes().expect("it says"));
    let work = reclaimer.finish().expect("it went on to the end");
    println!("{baseline}: {} MiB swapped, {} MiB of it in memory, {work:?}", swapped / MIB, stored / MIB);
    assert!(work.looks > 0 && work.paged_out_bytes > 0, "{work:?}");
    // What grows between two looks.
    assert!(work.peak_bytes < BUDGET_BYTES * 3 / 2, "{work:?}");
    match baseline.swap {
        Swap::Zram | Swap::Zswap { .. } => assert!(stored > 0, "nothing is compressed"),
        _ => assert_eq!(stored, 0),
    }
    drop(guest);
    Arc::into_inner(host).expect("the reclaimer is done").restore().expect("all of it");
    assert_eq!(settings(), before);
}

#[test]
fn zram_holds_what_does_not_fit() {
    holds_a_guest("zram");
}

#[test]
fn zswap_holds_what_does_not_fit() {
    holds_a_guest("zswap-20-lzo");
}

#[test]
fn a_file_holds_what_does_not_fit() {
    holds_a_guest("file");
}

/// What a process has that is swapped.
const SWAPPED_BYTES: usize = 16 << 20;

/// What is swapped of it at a time: one operation of the disk.
const CLUSTER_BYTES: usize = 64 << 10;

/// Swap waits for it too, which the kernel would let pass.
#[test]
fn a_slow_disk_is_slow() {
    let _turn = turn();
    let before = settings();
    let folder = folder_on_disk();
    let slow = "slow-file".parse().expect("it is in the grid");
    let mut host = Host::prepare(slow, BUDGET_BYTES, SWAP_BYTES, folder.path()).expect("this host can");
    let mut child = Command::new(std::env::current_exe().expect("a test knows its path"));
    child.args(["--ignored", "--exact", "memory_that_is_swapped", "--nocapture"]);
    if host.expect_slow_for_everybody().is_err() {
        host.cgroup().and_then(|cgroup| cgroup.enter(&mut child)).expect("this host can");
    }
    let device = used_devices("loop").into_iter().map(|name| Path::new("/sys/block").join(name));
    let backing_file = |path: &PathBuf| fs::read_to_string(path.join("loop/backing_file")).unwrap_or_default();
    let is_below = |path: &PathBuf| Path::new(backing_file(path).trim()).starts_with(folder.path());
    let device = device.into_iter().find(is_below).expect("a device over the file");
    let written_bytes = || {
        let counts = fs::read_to_string(device.join("stat")).expect("sysfs");
        // Sectors (kernel Documentation/block/stat.rst).
        counts.split_whitespace().nth(6).and_then(|count| count.parse::<usize>().ok()).expect("a number") * 512
    };
    let (started, first_bytes) = (Instant::now(), written_bytes());
    let mut child = child.stdin(Stdio::piped()).spawn().expect("the same binary");
    wait_until("swapping", || written_bytes() - first_bytes >= SWAPPED_BYTES - CLUSTER_BYTES);
    let most = SWAPPED_BYTES / CLUSTER_BYTES / SLOW_OPERATIONS_PER_SECOND as usize;
    assert!(started.elapsed().as_secs() >= most as u64, "{:?} for more than {most} seconds", started.elapsed());
    drop(child.stdin.take());
    assert!(child.wait().expect("it is a child").success());
    host.restore().expect("all of it");
    assert_eq!(settings(), before);
}

#[test]
#[ignore = "started by a_slow_disk_is_slow"]
fn memory_that_is_swapped() {
    let mut memory = vec![0u8; SWAPPED_BYTES];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut memory)).expect("the kernel has it");
    let start = memory.as_ptr().align_offset(CLUSTER_BYTES);
    for cluster in memory[start..].chunks_exact(CLUSTER_BYTES) {
        // SAFETY: the range is this process's own, and its content stays as it is.
        let result = unsafe { libc::madvise(cluster.as_ptr() as *mut _, CLUSTER_BYTES, libc::MADV_PAGEOUT) };
        assert_eq!(result, 0);
    }
    // Until it is told to end.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// Also after kill -9, and after Ctrl-C, which a whole process group gets.
#[test]
fn the_host_is_put_back_whatever_happens() {
    let _turn = turn();
    let (before, ksm_before) = (settings(), ksm_settings());
    for (signal, is_of_group) in [(libc::SIGKILL, false), (libc::SIGINT, true)] {
        let mut child = Command::new(std::env::current_exe().expect("a test knows its path"));
        child.args(["--ignored", "--exact", "a_host_that_is_held", "--nocapture"]).stdout(Stdio::piped());
        // Whoever is started in the background of a shell inherits a signal that is ignored (signal(7)).
        // SAFETY: signal is async-signal-safe.
        unsafe {
            child.pre_exec(move || match libc::signal(signal, libc::SIG_DFL) {
                libc::SIG_ERR if signal != libc::SIGKILL => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let mut child = child.process_group(0).spawn().expect("the same binary");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let is_ready = |line: Result<String, _>| line.is_ok_and(|line| line.ends_with("it is held"));
        assert!(lines.any(is_ready), "it ended");
        assert!(fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.contains("/dev/loop")));
        let pid = child.id();
        assert_eq!(cgroups_of(pid).len(), 1);
        let target = if is_of_group { -(pid as i32) } else { pid as i32 };
        // SAFETY: a plain system call; the child is not waited for yet, so that its number is its own.
        assert_eq!(unsafe { libc::kill(target, signal) }, 0);
        assert_eq!(child.wait().expect("it was killed").signal(), Some(signal));
        // Whoever comes next waits for the same.
        wait_until("restoration", || {
            settings() == before && ksm_settings() == ksm_before && cgroups_of(pid).is_empty()
        });
    }
}

#[test]
#[ignore = "started by the_host_is_put_back_whatever_happens"]
fn a_host_that_is_held() {
    let folder = folder_on_disk();
    let baseline = Baseline { swap: Swap::SlowFile, merges: true };
    let mut host = Host::prepare(baseline, BUDGET_BYTES, SWAP_BYTES, folder.path()).expect("this host can");
    let cgroup = host.cgroup().expect("this host can");
    let mut guest = Command::new("sleep");
    cgroup.enter(&mut guest).expect("it is there");
    let mut guest = guest.arg(LIMIT.as_secs().to_string()).spawn().expect("sleep");
    println!("it is held");
    guest.wait().expect("it is a child");
}

/// What it does is found out, and no guest is left in it.
#[test]
fn a_limit_is_tried_before_it_is_relied_on() {
    let _turn = turn();
    let before = settings();
    let reach = Reach::find(folder_on_disk().path()).expect("this host swaps");
    println!("{reach}");
    let host: Value = serde_json::from_str(&cistern(&["host", "--json"]).expect_status(0).stdout).expect("JSON");
    assert!(cgroups_of(std::process::id()).is_empty());
    assert!(host["kvm"] == "hardware" || matches!(reach, Reach::Nothing(_)), "{reach}");
    assert_eq!(settings(), before);
}

#[test]
fn what_a_host_lacks_is_named() {
    let _turn = turn();
    let before = settings();
    let file = "file".parse().expect("it is in the grid");
    let error = Host::prepare(file, BUDGET_BYTES, SWAP_BYTES, Path::new("/nowhere"));
    let error = format!("{:#}", error.expect_err("there is no such folder"));
    assert!(error.starts_with("baseline file: fallocate ") && error.contains("No such file"), "{error}");
    assert_eq!(settings(), before);
}
