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

/// CPU time of the thread of this process that drives Linux's reclaim ([`crate::baseline::reclaimer`]); zero where there is
/// none.
pub fn of_reclaimer() -> Duration {
    of_thread(std::process::id(), |name| name == RECLAIMER)
}

/// What that thread is called.
pub(crate) const RECLAIMER: &str = "reclaimer";

/// CPU time of a process, threads that have ended included (proc_pid_stat(5)); `None` when it is gone.
pub fn of_process(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // SAFETY: a plain library call.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some(Duration::from_secs_f64(ticks_of(&stat)? as f64 / ticks_per_second as f64))
}

/// User's and kernel's, behind the name, which may have anything in it.
fn ticks_of(stat: &str) -> Option<u64> {
    let mut times = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "77 (a ) b) S 1 77 77 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 5 0 900 1000 200";
        assert_eq!(ticks_of(stat), Some(281));
        assert!(of_process(std::process::id()).is_some() && of_process(u32::MAX).is_none());
    }
}
