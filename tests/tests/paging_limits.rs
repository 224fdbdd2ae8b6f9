//! What a paged VM costs its host, what it leaves behind, and what it refuses.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::{Command, Stdio};

use cistern_tests::paged::{MIB, PagedVm, counter, expect_homes, files_open_in, folder_on_disk, without_histograms};
use cistern_tests::process::{LIMIT, cistern, probe};
use cistern_tests::smaps::{Footprint, thread_heaps};
use cistern_tests::watch::{Watch, pss_bytes};

/// Churns for as long as it runs.
const ENDLESS: &str = "fill:64M,churn,seed=7;repeat:1000000,(walk:64M,touches=20000,write=100;verify)";

/// Buffers that only eviction uses: pages on their way to and from the swap file, compression tables, lists of slots.
const EVICTION_BYTES: u64 = MIB;

#[test]
fn the_limit_is_kept_to_as_seen_from_outside() {
    for eviction in ["move", "copy"] {
        let mut vm = PagedVm::start(ENDLESS, &["--resident", "1G", "--swap", "SWAP", "--eviction", eviction]);
        vm.wait_for_verifies(1);
        // What the VMM itself costs, with its pager at the ready and nothing out.
        let guest_bytes = Footprint::of(vm.running.pid(), 128 * MIB).guest_bytes;
        assert!(guest_bytes >= 64 * MIB, "{guest_bytes}");
        let vmm_bytes = pss_bytes(vm.running.pid()).expect("it runs") - guest_bytes;
        assert_eq!(counter(&vm.memory(), "evictions.aside"), 0);

        vm.limit(Some(16 * MIB));
        vm.wait_for_memory("room", |memory| counter(memory, "charge_bytes") <= 16 * MIB);
        let watch = Watch::start(vm.running.pid(), &vm.swap_folder());
        vm.wait_for_verifies(4);
        let (peak, memory) = (watch.finish(), without_histograms(vm.memory()));
        let most = (16 * MIB + vmm_bytes + EVICTION_BYTES) * 101 / 100;
        println!("{peak:?} of {most}, {vmm_bytes}");
        assert!(peak.looks >= 10 && peak.looks_at_swap >= 10, "{peak:?}");
        assert!(peak.pss_bytes <= most, "{peak:?} of {most}, {vmm_bytes}: {memory}");
        assert_eq!(peak.cached_pages, 0, "{peak:?}: {memory}");
        assert_eq!(memory["swap"]["caching"], "direct", "{memory}");
        expect_homes(&memory, &["zero", "duplicate", "compressed", "swapped"]);
        vm.stop();
    }
}

#[test]
fn its_threads_share_a_heap() {
    let mut vm = PagedVm::start(ENDLESS, &["--resident", "16M", "--swap", "SWAP"]);
    vm.wait_for_memory("threads at work", |memory| counter(memory, "refaults.swapped.pages") > 100);
    assert_eq!(thread_heaps(vm.running.pid()), 0, "each has one of its own, or several have");
    vm.stop();
}

#[test]
fn nothing_is_left_of_a_vm_that_was_killed() {
    let mut vm = PagedVm::start(ENDLESS, &["--resident", "16M", "--swap", "SWAP"]);
    let (folder, pid) = (vm.swap_folder(), vm.running.pid());
    vm.wait_for_memory("pages in the swap file", |memory| {
        counter(memory, "swap.held_bytes") > 4 * MIB && counter(memory, "refaults.swapped.pages") > 100
    });
    let open = files_open_in(pid, &folder);
    assert_eq!(open.len(), 1, "{open:?}");
    // It never had a name; what it takes goes with the last descriptor.
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
    let file = fs::metadata(&open[0]).expect("an open file");
    assert!(file.nlink() == 0 && file.blocks() * 512 > 4 * MIB, "{file:?}");
    vm.running.signal(libc::SIGKILL);
    assert_eq!(vm.running.finish(LIMIT).status, None);
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
    let processes =
        fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for process in processes {
        let open = files_open_in(process, &folder);
        assert!(open.is_empty(), "{open:?}");
    }
}

#[test]
fn the_swap_file_is_its_owners_alone() {
    let mut vm = PagedVm::start(ENDLESS, &["--resident", "16M", "--swap", "SWAP"]);
    vm.wait_for_memory("pages in the swap file", |memory| counter(memory, "swap.held_bytes") > 0);
    let open = files_open_in(vm.running.pid(), &vm.swap_folder());
    assert_eq!(open.len(), 1, "{open:?}");
    let metadata = fs::metadata(&open[0]).expect("an open file");
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    // Not even by a descriptor that somebody was given who may not read: the file's own mode stands in the way.
    let cat_as = |user: &str, descriptor: Stdio| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        command.args(["head", "-c", "1", "/proc/self/fd/0"]).stdin(descriptor);
        command.output().expect("setpriv starts: package util-linux")
    };
    let descriptor = || OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&open[0]).expect("a path");
    assert!(cat_as("0", descriptor().into()).status.success(), "root may");
    let refused = cat_as("65534", descriptor().into());
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ermission denied"), "{refused:?}");
    let refused = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "head", "-c", "1"])
        .arg(&open[0])
        .output()
        .expect("setpriv starts: package util-linux");
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    vm.stop();
}

#[test]
fn what_cannot_be_swapped_to_is_refused() {
    let folder = folder_on_disk();
    let file = folder.path().join("file");
    fs::write(&file, "no folder").expect("write");
    let text = |path: &std::path::Path| path.to_str().expect("test paths are plain").to_owned();
    let kernel = probe().to_str().expect("test paths are plain");
    let missing = text(&folder.path().join("missing"));
    for (flags, status, words) in [
        (["--swap", "/dev/shm"], 1, "/dev/shm: is on tmpfs, which is memory itself"),
        (["--swap", &missing], 1, "missing: No such file or directory"),
        (["--swap", &text(&file)], 1, "file: Not a directory"),
        (["--swap", "/proc"], 1, "/proc: making a file"),
        (["--resident", "7M"], 2, "--resident 7M: at least 8M"),
    ] {
        let finished = cistern(&[&["run", "--kernel", kernel, "--memory", "64M"], &flags[..]].concat());
        assert_eq!(finished.status, Some(status), "{flags:?}: {finished:?}");
        assert!(finished.stderr.contains(words) && finished.stderr.lines().count() == 1, "{flags:?}: {finished:?}");
        assert_eq!(finished.stdout, "", "the guest never ran");
    }
}

#[test]
fn a_full_swap_file_costs_memory_and_no_page() {
    let program = "fill:48M,random=100,seed=4;verify;walk:48M,touches=20000,write=50;verify;\
                   walk:48M,dist=sequential,touches=20000,write=50;verify;idle:1000000";
    for eviction in ["move", "copy"] {
        let arguments = ["--resident", "16M", "--swap", "SWAP", "--swap-limit", "8M", "--eviction", eviction];
        let mut vm = PagedVm::start(program, &arguments);
        vm.wait_for_verifies(3);
        let memory = without_histograms(vm.memory());
        let held = counter(&memory, "swap.held_bytes");
        assert_eq!(counter(&memory, "swap.limit_bytes"), 8 * MIB, "{memory}");
        assert!((MIB..=8 * MIB).contains(&held), "{memory}");
        assert!(counter(&memory, "failures.over_limit_pages") > 0, "{memory}");
        // It is what had to stay that is over.
        assert!(counter(&memory, "charge_bytes") > 32 * MIB, "{memory}");
        expect_homes(&memory, &["swapped"]);
        vm.stop();
    }
}
