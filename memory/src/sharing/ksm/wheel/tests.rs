//! The wheel on a folder that looks like the kernel's, where nobody else interferes, and on the kernel's.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::sharing::ksm::turn::await_turn;

/// A file is not cut off when it is written, as sysfs has no need of that: all values have the same number of digits.
const FILES: [(&str, &str); 7] = [
    ("run", "0"),
    ("pages_to_scan", "1000"),
    ("sleep_millisecs", "200"),
    ("advisor_mode", "[none] scan-time"),
    ("smart_scan", "1"),
    ("merge_across_nodes", "1"),
    ("pages_shared", "0"),
];

const PACE: Pace = Pace { pages_to_scan: 5000, sleep_millisecs: 180 };

/// Tells the child where it finds what.
const KSM_VARIABLE: &str = "CISTERN_KSM_FOLDER";
const POOL_VARIABLE: &str = "CISTERN_KSM_POOL";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// KSM's folder and a pool's.
struct Host {
    ksm: tempfile::TempDir,
    pool: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { ksm: tempfile::tempdir().unwrap(), pool: tempfile::tempdir().unwrap() };
        FILES.iter().for_each(|(name, text)| host.write(name, text));
        host
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.ksm.path().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.ksm.path().join(name)).unwrap();
    }

    fn folder(&self) -> KsmFolder {
        KsmFolder::at(self.ksm.path())
    }

    fn take(&self) -> Result<Wheel, KsmError> {
        Wheel::take(self.folder(), self.pool.path())
    }

    /// run, pages_to_scan, sleep_millisecs.
    fn running(&self) -> [u64; 3] {
        [Setting::Run, Setting::PagesToScan, Setting::SleepMillisecs].map(|setting| self.value(setting))
    }

    fn value(&self, setting: Setting) -> u64 {
        self.folder().value(setting).unwrap().unwrap()
    }

    fn is_recorded(&self) -> bool {
        self.pool.path().join("ksm").exists()
    }
}

const AS_FOUND: [u64; 3] = [0, 1000, 200];
const DRIVEN: [u64; 3] = [1, 5000, 180];

#[test]
fn what_was_found_is_put_back() {
    let host = Host::new();
    let mut wheel = host.take().unwrap();
    assert!(!host.is_recorded() && !wheel.has_driven());
    wheel.set_across_nodes(false).unwrap();
    assert!(!wheel.has_driven());
    wheel.drive(PACE).unwrap();
    assert_eq!((host.running(), host.is_recorded()), (DRIVEN, true));
    wheel.drive(Pace { pages_to_scan: 2000, ..PACE }).unwrap();
    assert_eq!(host.running(), [1, 2000, 180]);
    drop(wheel);
    assert_eq!((host.running(), host.is_recorded()), (AS_FOUND, false));
}

#[test]
fn what_needs_no_change_is_none() {
    let host = Host::new();
    host.write("run", "1");
    let mut wheel = host.take().unwrap();
    wheel.drive(PACE).unwrap();
    // It ran already; whoever stops it now does not meet a change of ours.
    host.write("run", "0");
    drop(wheel);
    assert_eq!(host.running(), AS_FOUND);
}

#[test]
fn there_is_one_driver_at_a_time() {
    let host = Host::new();
    let mut first = host.take().unwrap();
    let other_pool = tempfile::tempdir().unwrap();
    let error = Wheel::take(host.folder(), other_pool.path()).unwrap_err();
    assert!(matches!(error, KsmError::Taken { .. }), "{error}");
    first.drive(PACE).unwrap();
    drop(first);
    Wheel::take(host.folder(), other_pool.path()).unwrap();
}

#[test]
fn a_value_of_somebody_elses_is_let_be() {
    let host = Host::new();
    let mut wheel = host.take().unwrap();
    wheel.drive(PACE).unwrap();
    host.write("sleep_millisecs", "500");
    wheel.drive(Pace { pages_to_scan: 9999, sleep_millisecs: 700 }).unwrap();
    // Not half a pace of ours with half a pace of theirs.
    assert_eq!(host.running(), [1, 1000, 500]);
    assert_eq!((wheel.lost(), wheel.is_let_go()), (&[Setting::SleepMillisecs][..], true));
    wheel.drive(PACE).unwrap();
    assert_eq!((host.running(), wheel.lost().len()), ([1, 1000, 500], 1));
    drop(wheel);
    assert_eq!((host.running(), host.is_recorded()), ([0, 1000, 500], false));
}

#[test]
fn who_stops_ksm_has_stopped_it() {
    let host = Host::new();
    let mut wheel = host.take().unwrap();
    wheel.drive(PACE).unwrap();
    host.write("run", "2");
    wheel.drive(PACE).unwrap();
    assert_eq!((host.running(), wheel.lost()), ([2, 1000, 200], &[Setting::Run][..]));
    drop(wheel);
    assert_eq!(host.value(Setting::Run), 2);
    // And nobody starts it again: 2 could not be put back.
    let mut wheel = host.take().unwrap();
    let error = wheel.drive(PACE).unwrap_err();
    assert!(matches!(error, KsmError::Unmerging { .. }), "{error}");
    assert_eq!(host.running(), [2, 1000, 200]);
}

/// The kernel's own folder, as found when the test ends.
struct Kernel {
    folder: KsmFolder,
    pages_to_scan: u64,
    lock: File,
}

impl Kernel {
    /// With the advisor on; `None` on a kernel without, or with it or KSM in use.
    fn advised() -> Option<Self> {
        let folder = KsmFolder::default();
        let lock = await_turn();
        if folder.value(Setting::AdvisorMode).unwrap() != Some(0) {
            return None;
        }
        let pages_to_scan = folder.value(Setting::PagesToScan).unwrap().unwrap();
        folder.set(Setting::AdvisorMode, 1).unwrap();
        Some(Self { folder, pages_to_scan, lock })
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = self.folder.set(Setting::AdvisorMode, 0);
        let _ = self.folder.set(Setting::PagesToScan, self.pages_to_scan);
    }
}

#[test]
fn the_advisor_is_switched_off_and_on_again() {
    let Some(kernel) = Kernel::advised() else { return };
    let refused = kernel.folder.set(Setting::PagesToScan, 777).unwrap_err();
    assert!(matches!(refused, KsmError::Io { .. }), "the kernel has pages_to_scan while the advisor is on");
    let pool = tempfile::tempdir().unwrap();
    let mut wheel = Wheel::with_lock(kernel.lock.try_clone().unwrap(), kernel.folder.clone(), pool.path()).unwrap();
    let value = |setting| kernel.folder.value(setting).unwrap().unwrap();
    let modes = [Setting::AdvisorMode, Setting::SleepMillisecs];
    let found = modes.map(value);
    // What it takes of a host that has something advised is next to nothing.
    wheel.drive(Pace { pages_to_scan: 3, sleep_millisecs: 1777 }).unwrap();
    assert_eq!((modes.map(value), value(Setting::PagesToScan)), ([0, 1777], 3));
    assert_eq!(wheel.put_back().failures.len(), 0);
    assert_eq!((modes.map(value), wheel.lost()), (found, &[][..]));
    // Before the wheel lets others have the lock.
    drop(kernel);
}

#[test]
fn an_advisor_that_somebody_switches_on_has_pages_to_scan() {
    let host = Host::new();
    let mut wheel = host.take().unwrap();
    wheel.drive(PACE).unwrap();
    host.write("advisor_mode", "none [scan-time]");
    wheel.drive(PACE).unwrap();
    assert_eq!((host.running(), wheel.lost()), ([1, 5000, 200], &[Setting::PagesToScan][..]));
    drop(wheel);
    assert_eq!((host.running(), host.value(Setting::AdvisorMode)), ([0, 5000, 200], 1));
}

#[test]
fn an_advisor_that_is_not_known_is_not_switched_off() {
    let host = Host::new();
    host.write("advisor_mode", "none scan-time [clever]");
    let mut wheel = host.take().unwrap();
    assert!(matches!(wheel.drive(PACE), Err(KsmError::Odd { .. })));
    assert_eq!(host.running(), AS_FOUND);
    // Kernels before 6.8 have none.
    host.remove("advisor_mode");
    wheel.drive(PACE).unwrap();
    assert_eq!(host.running(), DRIVEN);
}

#[test]
fn no_page_is_passed_over_while_it_drives() {
    let host = Host::new();
    let mut wheel = host.take().unwrap();
    wheel.drive(PACE).unwrap();
    assert_eq!((host.running(), host.value(Setting::SmartScan)), (DRIVEN, 0));
    drop(wheel);
    assert_eq!((host.running(), host.value(Setting::SmartScan)), (AS_FOUND, 1));
    // Kernels before 6.7 pass over none.
    host.remove("smart_scan");
    host.take().unwrap().drive(PACE).unwrap();
    assert_eq!(host.running(), AS_FOUND);
}

#[test]
fn nodes_are_changed_while_nothing_is_merged() {
    let host = Host::new();
    host.write("pages_shared", "3");
    let mut wheel = host.take().unwrap();
    let error = wheel.set_across_nodes(false).unwrap_err().to_string();
    assert!(error.contains("/merge_across_nodes: cannot become 0 while pages are merged (3 now)"), "{error}");
    wheel.set_across_nodes(true).unwrap();
    host.write("pages_shared", "0");
    wheel.set_across_nodes(false).unwrap();
    assert_eq!((host.value(Setting::MergeAcrossNodes), host.is_recorded()), (0, true));
    // Who changes them has not taken over the pace.
    host.write("merge_across_nodes", "1");
    wheel.drive(PACE).unwrap();
    assert_eq!((host.running(), wheel.lost()), (DRIVEN, &[Setting::MergeAcrossNodes][..]));
    drop(wheel);
    host.remove("merge_across_nodes");
    assert!(matches!(host.take().unwrap().set_across_nodes(false), Err(KsmError::NoSetting { .. })));
}

#[test]
fn nothing_is_changed_that_cannot_be_recorded() {
    let host = Host::new();
    let mut wheel = host.take().unwrap();
    let gone = host.pool.path().to_owned();
    fs::remove_dir(&gone).unwrap();
    assert!(wheel.drive(PACE).unwrap_err().to_string().starts_with(&gone.display().to_string()));
    assert_eq!(host.running(), AS_FOUND);
    fs::create_dir(&gone).unwrap();
    wheel.drive(PACE).unwrap();
    // What was changed is put back without it.
    fs::remove_dir_all(&gone).unwrap();
    drop(wheel);
    assert_eq!(host.running(), AS_FOUND);
    fs::create_dir(&gone).unwrap();
}

#[test]
fn what_cannot_be_put_back_stays_recorded() {
    let host = Host::new();
    let mut wheel = host.take().unwrap();
    wheel.drive(PACE).unwrap();
    host.remove("sleep_millisecs");
    fs::create_dir(host.ksm.path().join("sleep_millisecs")).unwrap();
    drop(wheel);
    fs::remove_dir(host.ksm.path().join("sleep_millisecs")).unwrap();
    host.write("sleep_millisecs", "180");
    assert_eq!((host.running(), host.is_recorded()), ([0, 1000, 180], true));
    let result = put_back_left_behind(host.folder(), host.pool.path()).unwrap().unwrap();
    assert_eq!((result.put_back, result.failures.len()), (vec![Setting::SleepMillisecs], 0));
    assert_eq!((host.running(), host.is_recorded()), (AS_FOUND, false));
    assert!(put_back_left_behind(host.folder(), host.pool.path()).unwrap().is_none());
}

#[test]
fn a_record_that_cannot_be_read_stops_everything() {
    let host = Host::new();
    fs::write(host.pool.path().join("ksm"), "run 0").unwrap();
    assert!(matches!(host.take(), Err(KsmError::Damaged { .. })));
    assert!(matches!(put_back_left_behind(host.folder(), host.pool.path()), Err(KsmError::Damaged { .. })));
    assert!(host.is_recorded());
}

#[test]
fn a_kernel_without_ksm_is_told_from_others() {
    let host = Host::new();
    let folder = KsmFolder::at(&host.ksm.path().join("none"));
    assert!(matches!(Wheel::take(folder, host.pool.path()), Err(KsmError::Absent { .. })));
}

/// A leader that is killed while it drives.
fn kill_a_leader(host: &Host) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "sharing::ksm::wheel::tests::drives_until_it_is_killed"])
        .env(KSM_VARIABLE, host.ksm.path())
        .env(POOL_VARIABLE, host.pool.path())
        .stdout(Stdio::null())
        .spawn();
    /// Ends with the test.
    struct Leader(Child);
    impl Drop for Leader {
        fn drop(&mut self) {
            // SIGKILL.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let _leader = Leader(child.unwrap());
    let started = Instant::now();
    while host.value(Setting::Run) != 1 {
        assert!(started.elapsed() < PATIENCE, "it drives");
        thread::sleep(Duration::from_millis(2));
    }
    assert!(matches!(host.take(), Err(KsmError::Taken { .. })));
}

#[test]
fn the_next_leader_puts_back_what_a_killed_one_found() {
    let host = Host::new();
    for _ in 0..3 {
        kill_a_leader(&host);
        assert_ne!(host.running(), AS_FOUND);
        let result = put_back_left_behind(host.folder(), host.pool.path()).unwrap().unwrap();
        assert_eq!((result.put_back.len(), result.failures.len()), (4, 0));
        assert_eq!((host.running(), host.is_recorded()), (AS_FOUND, false));
    }
}

#[test]
fn the_next_leader_drives_on_and_knows_what_the_killed_one_found() {
    let host = Host::new();
    kill_a_leader(&host);
    // Changed by somebody before there was another leader.
    host.write("sleep_millisecs", "333");
    let mut wheel = host.take().unwrap();
    assert_eq!((host.value(Setting::Run), wheel.has_driven()), (1, true), "it is not stopped in between");
    wheel.drive(PACE).unwrap();
    assert_eq!((host.running(), wheel.lost().len()), (DRIVEN, 0));
    drop(wheel);
    assert_eq!((host.running(), host.is_recorded()), ([0, 1000, 333], false));
}

#[test]
#[ignore = "the child of those that kill a leader"]
fn drives_until_it_is_killed() {
    let folder = |name| std::env::var_os(name).expect("started by its parent");
    let ksm = KsmFolder::at(folder(KSM_VARIABLE).as_ref());
    let mut wheel = Wheel::take(ksm, folder(POOL_VARIABLE).as_ref()).unwrap();
    let started = Instant::now();
    // Nobody is left if the parent is killed, which kills it at any point. Never as found: that would be no change.
    for pages_to_scan in (1001..2000).cycle() {
        assert!(started.elapsed() < 2 * PATIENCE);
        wheel.drive(Pace { pages_to_scan, ..PACE }).unwrap();
    }
}
