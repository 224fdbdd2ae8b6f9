//! The probe on a real VM: what it finds, what it refuses, and its balloon seen from both sides.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cistern::config::{BalloonMode, ConsoleTarget, MachineConfig};
use cistern::machine::Machine;
use cistern::outcome::Outcome;
use cistern::size::Size;
use cistern::supervisor::Controls;
use cistern_memory::pager::PagerConfig;
use cistern_memory::{Balloon, GuestRam, PAGE_SIZE};
use cistern_tests::paged::PagedVm;
use cistern_tests::process::{Finished, Running, cistern, probe};
use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;

fn run(program: &str, arguments: &[&str]) -> Finished {
    let kernel = probe().to_str().expect("test paths are plain");
    let cmdline = format!("probe=\"{program}\"");
    cistern(&[&["run", "--kernel", kernel, "--cmdline", &cmdline], arguments].concat())
}

fn phases<'a>(reports: &'a [Value], phase: &str) -> Vec<&'a Value> {
    reports.iter().filter(|report| report["phase"] == phase).collect()
}

#[test]
fn every_phase_is_split_over_the_processors_and_verified() {
    for cpus in ["1", "2", "3"] {
        let program = "fill:24M,zero=20,dup=20,text=40,random=20,seed=7;verify;walk:16M,secs=0.3,dist=zipf,write=30;\
                       verify;walk:16M,secs=0.3,dist=sequential,write=100;idle:0.2,touch=1M,every=0.1;free:8M;\
                       repeat:3,(fill:3M,text=100;verify;walk:1M,secs=0.1);exit";
        let reports = run(program, &["--memory", "64M", "--cpus", cpus]).expect_status(0).reports();
        assert_eq!(reports[0]["cpus"].to_string(), cpus, "{reports:?}");
        let verified: Vec<u64> = phases(&reports, "verify").iter().filter_map(|line| line["pages"].as_u64()).collect();
        assert_eq!(verified, [6144, 6144, 4096 + 768, 4096 + 2 * 768, 4096 + 3 * 768]);
        for line in reports.iter().filter(|line| !line["bad"].is_null()) {
            assert_eq!(line["bad"], 0, "{line}");
        }
        for walk in phases(&reports, "walk") {
            let value = |key: &str| walk[key].as_u64().unwrap_or_else(|| panic!("no {key} in {walk}"));
            assert!(value("touches") > 0 && value("touches_per_s") > 0, "{walk}");
            assert!(value("p50_ns") <= value("p99_ns") && value("p99_ns") <= value("p999_ns"), "{walk}");
            assert!(value("p999_ns") <= value("max_ns"), "{walk}");
        }
        assert_eq!(reports.last().expect("reports")["phase"], "exit");
    }
}

#[test]
fn damaged_pages_are_found_and_named() {
    let program = "fill:4M,zero=20,dup=20,text=40,random=20;verify;damage:flip,page=5;damage:foreign,page=6;\
                   damage:stale,page=1023;verify;exit:7";
    let reports = run(program, &["--memory", "64M", "--cpus", "2"]).expect_status(64 + 7).reports();
    let base = reports[0]["fill_base"].as_u64().expect("the boot line has it");
    let mut found: Vec<_> = phases(&reports, "bad");
    found.sort_by_key(|line| line["page"].as_u64());
    let expected = [(5, "corrupt"), (6, "foreign"), (1023, "stale")];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (line, (page, what)) in found.iter().zip(expected) {
        assert_eq!((line["page"].as_u64(), line["what"].as_str()), (Some(page), Some(what)), "{line}");
        assert_eq!(line["gpa"], format!("{:#x}", base + page * PAGE_SIZE), "{line}");
        assert_ne!(line["expected"], line["found"], "{line}");
    }
    let bad: Vec<_> = phases(&reports, "verify").iter().map(|line| line["bad"].as_u64()).collect();
    assert_eq!(bad, [Some(0), Some(3)]);
    // Without a status of its own the guest says that pages were bad.
    run("fill:1M,text=100;damage:flip;verify", &["--memory", "64M"]).expect_status(64 + 1);
}

#[test]
fn what_cannot_be_run_is_said_and_the_guest_ends() {
    for (program, error) in [
        ("fill:64X", "program: not a size (bytes, or a number and K, M or G) at \"64X\""),
        ("dance", "program: unknown step at \"dance\""),
        ("fill:1G", "fill: 262144 pages asked, 15872 are left"),
        ("fill:1M;walk:2M", "walk: 512 pages asked, 256 are filled"),
        ("verify;free:4K", "free: 1 pages asked, 0 are filled"),
    ] {
        let reports = run(program, &["--memory", "64M"]).expect_status(64 + 2).reports();
        assert_eq!(reports.last().expect("reports")["error"], error, "{program}");
    }
}

#[test]
fn a_large_guest_costs_what_it_fills() {
    let kernel = probe().to_str().expect("test paths are plain");
    let cmdline = "probe=\"fill:64M,random=100;verify;idle:600\"";
    let mut guest = Running::start(&["run", "--kernel", kernel, "--memory", "4G", "--cpus", "2", "--cmdline", cmdline]);
    guest.wait_for_phase("verify");
    let pss_kib = pss_kib(&guest);
    assert!((64 * 1024..=72 * 1024).contains(&pss_kib), "{pss_kib} KiB");
}

/// What the host has spent on a guest, all of its process counted.
fn pss_kib(guest: &Running) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", guest.pid())).expect("smaps_rollup");
    let pss =
        rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    pss.expect("smaps_rollup has Pss")
}

#[test]
fn freed_memory_is_paid_for_until_the_host_is_told() {
    const SILENT: &str = "free:24M,silent";
    for (free, balloon, expected_mib) in [
        ("free:24M", "on", 8..16),
        (SILENT, "on", 32..40),
        ("free:24M", "noreporting", 32..40),
        (SILENT, "off", 32..40),
    ] {
        let kernel = probe().to_str().expect("test paths are plain");
        let cmdline = format!("probe=\"fill:32M,random=100;{free};verify;idle:600\"");
        let mut guest = Running::start(&[
            "run",
            "--kernel",
            kernel,
            "--memory",
            "256M",
            "--balloon",
            balloon,
            "--cmdline",
            &cmdline,
        ]);
        let verify = guest.wait_for_phase("verify");
        assert_eq!((verify["pages"].as_u64(), verify["bad"].as_u64()), (Some(2048), Some(0)), "{verify}");
        let pss_mib = pss_kib(&guest) >> 10;
        assert!(expected_mib.contains(&pss_mib), "{free}, balloon {balloon}: {pss_mib} MiB");
    }
}

/// A machine that runs on a thread of its own until it is stopped.
struct Guest {
    ram: Arc<GuestRam>,
    balloon: Arc<dyn Balloon>,
    folder: tempfile::TempDir,
    stop: Box<dyn Fn()>,
    thread: thread::JoinHandle<Outcome>,
}

impl Guest {
    fn start(program: &str, memory: Size, target_bytes: u64) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = MachineConfig {
            kernel: probe().to_owned(),
            initrd: None,
            cmdline: format!("probe=\"{program}\""),
            bare_cmdline: false,
            memory,
            cpus: 2,
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            rng: true,
            balloon: BalloonMode::On,
            resident: None,
            sharing: Default::default(),
            mergeable: false,
            pool: None,
            pager: PagerConfig::default(),
            console: ConsoleTarget::File(folder.path().join("console")),
            name: "probe".to_owned(),
            api_socket: None,
            timeout: None,
            boot_times: false,
        };
        let machine = Machine::build(&config).expect("the machine is right");
        let balloon = Arc::clone(machine.balloon().expect("it has a balloon"));
        balloon.set_target_bytes(target_bytes);
        let verdict = Arc::clone(machine.verdict());
        let ram = Arc::clone(machine.ram());
        let thread = thread::spawn(move || machine.run(Controls::default()).expect("the host is well"));
        Self { ram, balloon, folder, stop: Box::new(move || verdict.reach(Ok(Outcome::Stopped))), thread }
    }

    fn reports(&self) -> Vec<Value> {
        reports(&self.folder.path().join("console"))
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut true_now: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !true_now() {
            let inflated = self.balloon.inflated_bytes();
            assert!(Instant::now() < deadline, "{what}: {inflated} inflated\n{:#?}", self.reports());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_for_phases(&self, phase: &str, count: usize) {
        self.wait_until(phase, || phases(&self.reports(), phase).len() >= count);
    }

    /// Pages of the range the host has memory for.
    fn resident(&self, guest_address: u64, bytes: u64) -> usize {
        let host = self.ram.regions()[0].host_address + guest_address;
        let mut present = vec![0u8; (bytes / PAGE_SIZE) as usize];
        // SAFETY: inside RAM's first region; `present` has a byte for each page.
        let result = unsafe { libc::mincore(host as *mut _, bytes as usize, present.as_mut_ptr()) };
        assert_eq!(result, 0);
        present.iter().filter(|&&page| page & 1 != 0).count()
    }

    fn finish(self) -> Vec<Value> {
        (self.stop)();
        self.thread.join().expect("the machine's thread is well");
        reports(&self.folder.path().join("console"))
    }
}

/// The whole lines there are so far.
fn reports(console: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(console).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

#[test]
fn the_balloon_takes_freed_pages_first_and_never_filled_ones() {
    let program = "fill:32M,text=50,random=50;free:16M,silent;repeat:100000,(idle:0.05;verify)";
    let guest = Guest::start(program, Size::mebibytes(128), 0);
    guest.wait_for_phases("idle", 1);
    let boot = guest.reports()[0].clone();
    let base = boot["fill_base"].as_u64().expect("the boot line has it");
    let pool_bytes = boot["pages"].as_u64().expect("the boot line has it") * PAGE_SIZE;
    // Freed without a word: the host cannot know.
    assert_eq!(guest.resident(base + 16 * MIB, 16 * MIB), 4096);

    guest.balloon.set_target_bytes(4 * MIB);
    guest.wait_until("4 MiB in", || guest.balloon.inflated_bytes() == 4 * MIB);
    assert_eq!(guest.resident(base + 16 * MIB, 16 * MIB), 3072, "freed pages go first");
    assert_eq!(guest.resident(base + 28 * MIB, 4 * MIB), 0, "from the top");

    guest.balloon.set_target_bytes(1 << 30);
    let free_bytes = pool_bytes - 16 * MIB;
    guest.wait_until("everything in", || guest.balloon.inflated_bytes() == free_bytes);
    let verified = phases(&guest.reports(), "verify").len();
    guest.wait_for_phases("verify", verified + 2);
    assert_eq!(guest.balloon.inflated_bytes(), free_bytes, "it stops short of what is filled");
    assert_eq!(guest.resident(base, 16 * MIB), 4096);
    assert_eq!(guest.resident(base + 16 * MIB, 16 * MIB), 0);

    guest.balloon.request_statistics();
    let total = boot["ram_bytes"].as_u64();
    guest.wait_until("statistics without free memory", || {
        guest.balloon.request_statistics();
        guest.balloon.statistics().is_some_and(|values| (values.free_bytes, values.total_bytes) == (Some(0), total))
    });

    guest.balloon.set_target_bytes(3 * MIB);
    guest.wait_until("3 MiB left", || guest.balloon.inflated_bytes() == 3 * MIB);
    guest.wait_until("statistics with free memory", || {
        guest.balloon.request_statistics();
        guest.balloon.statistics().is_some_and(|values| values.free_bytes == Some(free_bytes - 3 * MIB))
    });
    let verified = phases(&guest.reports(), "verify").len();
    guest.wait_for_phases("verify", verified + 1);
    let reports = guest.finish();
    assert!(phases(&reports, "verify").iter().all(|line| line["bad"] == 0), "{reports:?}");
}

#[test]
fn a_slow_balloon_gives_so_much_a_step() {
    let guest = Guest::start("fill:4M;balloon:256K;repeat:100000,(idle:0.01)", Size::mebibytes(64), 0);
    guest.wait_for_phases("idle", 1);
    guest.balloon.set_target_bytes(4 * MIB);
    guest.wait_until("4 MiB in", || guest.balloon.inflated_bytes() == 4 * MIB);
    let reports = guest.finish();
    let inflated = phases(&reports, "balloon").into_iter().map(|line| line["inflated_pages"].as_u64());
    let inflated: Vec<_> = inflated.map(|pages| pages.expect("a number")).collect();
    let allowed = (1..).map(|steps| 64 * steps);
    assert!(inflated.iter().zip(allowed).all(|(&pages, allowed)| pages <= allowed), "{inflated:?}");
}

#[test]
fn a_fill_takes_back_from_the_balloon_what_it_needs() {
    // The target was there before the guest was.
    let program = "fill:16M,random=100;idle:1;fill:64M,text=100;verify;repeat:100000,(idle:0.1;verify)";
    let guest = Guest::start(program, Size::mebibytes(128), 1 << 30);
    guest.wait_for_phases("verify", 3);
    let pool_bytes = guest.reports()[0]["pages"].as_u64().expect("the boot line has it") * PAGE_SIZE;
    guest.wait_until("the rest in", || guest.balloon.inflated_bytes() == pool_bytes - 80 * MIB);
    let reports = guest.finish();
    let inflated: Vec<_> = phases(&reports, "balloon").iter().map(|line| line["inflated_pages"].as_u64()).collect();
    assert!(inflated.first() > inflated.last(), "{inflated:?}");
    assert!(phases(&reports, "verify").iter().all(|line| line["bad"] == 0), "{reports:?}");
}

#[test]
fn freed_pages_are_reported() {
    let program = "fill:32M,random=100;free:16M;verify;idle:600";
    let guest = Guest::start(program, Size::mebibytes(64), 0);
    guest.wait_for_phases("verify", 1);
    assert_eq!(guest.balloon.reported_bytes(), 16 * MIB);
    let base = guest.reports()[0]["fill_base"].as_u64().expect("the boot line has it");
    assert_eq!((guest.resident(base, 16 * MIB), guest.resident(base + 16 * MIB, 16 * MIB)), (4096, 0));
    let reports = guest.finish();
    assert_eq!(phases(&reports, "free")[0]["reported_pages"], 4096);
}

#[test]
fn damage_from_outside_is_found_and_named() {
    // The guest's memory is changed while it idles; a host too slow for that gets more time.
    let reports = [1, 4, 16, 64].into_iter().find_map(spoil).expect("a host that is quicker than a minute");
    let base = reports[0]["fill_base"].as_u64().expect("the boot line has it");
    let mut found: Vec<_> = phases(&reports, "bad");
    found.sort_by_key(|line| line["page"].as_u64());
    let expected = [(FLIPPED, "corrupt"), (FOREIGN, "foreign"), (STALE, "stale")];
    assert_eq!(found.len(), expected.len(), "{reports:#?}");
    for (line, (page, what)) in found.iter().zip(expected) {
        assert_eq!((line["page"].as_u64(), line["what"].as_str()), (Some(page), Some(what)), "{line}");
        assert_eq!(line["gpa"], format!("{:#x}", base + page * PAGE_SIZE), "{line}");
    }
    assert_eq!(found[0]["offset"], 2000, "{}", found[0]);
    assert_eq!(phases(&reports, "verify")[0]["bad"], 3);
}

const FLIPPED: u64 = 100;
const FOREIGN: u64 = 101;
const STALE: u64 = 102;

/// Flips a bit of a filled page, puts another one's content into a second, and into a third what it held before it was
/// last written. `None` when the guest did not idle for as long as that took.
fn spoil(idle_seconds: u32) -> Option<Vec<Value>> {
    let program = format!(
        "fill:4M,dup=25,text=50,random=25,seed=3;idle:{idle_seconds};\
         walk:4M,secs=0.2,dist=sequential,write=100;idle:{idle_seconds};verify;idle:600"
    );
    let guest = Guest::start(&program, Size::mebibytes(64), 0);
    let memory = guest.ram.memory();
    guest.wait_for_phases("fill", 1);
    let base = guest.reports()[0]["fill_base"].as_u64().expect("the boot line has it");
    let read = |page: u64| {
        let mut content = vec![0; PAGE_SIZE as usize];
        memory.read_slice(&mut content, GuestAddress(base + page * PAGE_SIZE)).expect("inside RAM");
        content
    };
    let write = |page: u64, content: &[u8]| {
        memory.write_slice(content, GuestAddress(base + page * PAGE_SIZE)).expect("inside RAM");
    };
    let before = read(STALE);
    if !phases(&guest.reports(), "idle").is_empty() {
        guest.finish();
        return None;
    }
    guest.wait_for_phases("walk", 1);
    assert_ne!(before, read(STALE), "the walk has written it");
    let mut flipped = read(FLIPPED);
    flipped[2000] ^= 0x10;
    write(FLIPPED, &flipped);
    write(FOREIGN, &read(700));
    write(STALE, &before);
    if phases(&guest.reports(), "idle").len() > 1 {
        guest.finish();
        return None;
    }
    guest.wait_for_phases("verify", 1);
    Some(guest.finish())
}

#[test]
fn a_loop_goes_on_until_it_is_told() {
    let mut vm = PagedVm::start("fill:4M;repeat:told,(idle:0.05);repeat:told,(verify)", &[]);
    (0..3).for_each(|_| drop(vm.running.wait_for_phase("idle")));
    vm.tell();
    vm.wait_for_verifies(2);
    vm.tell();
    let reports = vm.finish().reports();
    let last_idle = reports.iter().rposition(|report| report["phase"] == "idle").expect("it has idled");
    let first_verify = reports.iter().position(|report| report["phase"] == "verify").expect("it has verified");
    assert!(last_idle < first_verify, "{reports:?}");
}
