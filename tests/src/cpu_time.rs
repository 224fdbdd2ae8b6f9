//! CPU time of parts of VMs, and of ksmd.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// How busy the machine is.
pub fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

/// CPU time of a VM's scanner.
pub fn of_scanner(pid: u32) -> Duration {
    of_thread(pid, |name| name == "scanner")
}

/// CPU time of a VM's guest on its first virtual CPU, what KVM does for it included.
pub fn of_vcpu(pid: u32) -> Duration {
    of_thread(pid, |name| name.starts_with("vcpu"))
}

/// Of the first thread with such a name.
fn of_thread(pid: u32, is_wanted: impl Fn(&str) -> bool) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the VM runs");
    let has_name = |folder: &Path| fs::read_to_string(folder.join("comm")).is_ok_and(|name| is_wanted(name.trim()));
    let thread = tasks.flatten().map(|task| task.path()).find(|folder| has_name(folder));
    thread.map(|folder| of(&folder)).unwrap_or_default()
}

/// CPU time of ksmd since the host started.
pub fn of_ksmd() -> Duration {
    let is_ksmd = |folder: &Path| fs::read_to_string(folder.join("comm")).is_ok_and(|name| name == "ksmd\n");
    let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    processes.into_iter().find(|folder| is_ksmd(folder)).map(|folder| of(&folder)).expect("a kernel with KSM")
}

/// Of a task, by its folder (kernel Documentation/scheduler/sched-stats.rst).
fn of(folder: &Path) -> Duration {
    let text = fs::read_to_string(folder.join("schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0))
}
