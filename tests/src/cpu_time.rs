//! CPU time of parts of VMs, and of ksmd.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// How busy the machine is, and which part of its CPU time others have taken of it since it booted.
pub fn load() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let stolen = stolen_percent(&read("/proc/stat")).map(|percent| format!(", {percent:.2} % stolen since boot"));
    read("/proc/loadavg").trim().to_owned() + &stolen.unwrap_or_default()
}

/// Of all processors, by the eighth of the times that are disjoint (proc_stat(5): guests' are part of user's).
fn stolen_percent(stat: &str) -> Option<f64> {
    let times = stat.lines().next()?.strip_prefix("cpu")?.split_ascii_whitespace().take(8);
    let times: Vec<f64> = times.map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(100.0 * times.get(7)? / times.iter().sum::<f64>())
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
    fn what_was_stolen_is_told() {
        let stat = "cpu  10 10 10 50 5 5 5 5 99 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!((stolen_percent(stat), stolen_percent("cpu  1 2\n")), (Some(5.0), None));
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "77 (a ) b) S 1 77 77 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 5 0 900 1000 200";
        assert_eq!(ticks_of(stat), Some(281));
        assert!(of_process(std::process::id()).is_some() && of_process(u32::MAX).is_none());
    }
}
