//! CPU time of a guest's process, the guest itself apart.

use std::fs;
use std::time::Duration;

/// `USER_HZ`: on x86-64 it is 100 whatever the kernel ticks at.
pub const TICK: Duration = Duration::from_millis(10);

/// CPU time since the start of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Of threads that run the guest.
    pub guest: Duration,
    /// Of all others: pager, manager, scanner, devices.
    pub vmm: Duration,
}

/// CPU time of a process that is not waited for yet; `None` for one that has ended.
pub fn cpu_time(pid: u32) -> Option<CpuTime> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let mut time = None;
    for (is_guest, ticks) in stats.filter_map(|stat| thread(&stat)) {
        let time = time.get_or_insert_with(CpuTime::default);
        let of = if is_guest { &mut time.guest } else { &mut time.vmm };
        *of += TICK * ticks;
    }
    time
}

/// Whether a thread is a virtual CPU, and its ticks (proc_pid_stat(5)); `None` for one that has ended.
fn thread(stat: &str) -> Option<(bool, u32)> {
    let (name, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // What follows the name begins with field 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u32>().ok();
    let is_running = !matches!(fields.first(), Some(&("Z" | "X")));
    is_running.then_some((name.contains("(vcpu"), field(14)?.saturating_add(field(15)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_vmm_are_told_apart() {
        let stat = |name: &str, state: &str| format!("7 ({name}) {state} 1 7 7 0 -1 4194304 9 0 0 0 25 17 0 0 20 0 9");
        assert_eq!(thread(&stat("vcpu0", "R")), Some((true, 42)));
        assert_eq!(thread(&stat("a) b", "S")), Some((false, 42)));
        assert_eq!(thread(&stat("cistern", "Z")), None);
        assert_eq!(thread("7 (vcpu0) R 1"), None);
    }

    #[test]
    fn this_process_has_had_some_and_no_process_none() {
        assert_eq!(cpu_time(std::process::id()).map(|time| time.guest), Some(Duration::ZERO));
        assert_eq!(cpu_time(u32::MAX), None);
    }
}
