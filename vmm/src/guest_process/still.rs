//! What processes take of the host, counted while they stand still.

use std::fs;
use std::thread;

/// Processes that are made to pause. The kernel counts one mapping after the other: pages that move between two of them,
/// or from one process to another, would be counted twice or not at all.
struct Still<'a>(&'a [u32]);

impl<'a> Still<'a> {
    fn new(pids: &'a [u32]) -> Self {
        let still = Self(pids);
        still.signal(libc::SIGSTOP);
        // One that sleeps in the kernel goes on sleeping, and does nothing else.
        while pids.iter().any(|pid| is_running(*pid)) {
            thread::yield_now();
        }
        still
    }

    fn signal(&self, signal: i32) {
        for pid in self.0 {
            // SAFETY: kill takes two numbers; the process is a child that is not waited for yet.
            unsafe { libc::kill(*pid as libc::pid_t, signal) };
        }
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.signal(libc::SIGCONT);
    }
}

fn is_running(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // A virtual CPU may turn round and round in the kernel, in a fault that nobody answers now: it cannot bring in a page,
        // nor move one.
        let (name, state) = stat.rsplit_once(") ").unwrap_or_default();
        state.starts_with('R') && !name.contains("(vcpu")
    })
}

/// What a process takes of the host, shared pages divided among their users and the files it maps apart (kernel
/// Documentation/filesystems/proc.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Memory: PSS.
    pub pss_bytes: u64,
    /// What the kernel has swapped out.
    pub swap_bytes: u64,
}

/// What child processes that are not waited for yet take, all at one moment; `None` for one that has ended.
pub fn taken(pids: &[u32]) -> Vec<Option<Taken>> {
    let still = Still::new(pids);
    let taken = pids.iter().map(|pid| taken_by(*pid)).collect();
    drop(still);
    taken
}

fn taken_by(pid: u32) -> Option<Taken> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let bytes = |field| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(field))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    // SwapPss is not there in kernels without swap.
    let swap_bytes = bytes("SwapPss:").unwrap_or(0);
    Some(Taken { pss_bytes: bytes("Pss_Anon:")? + bytes("Pss_Shmem:")?, swap_bytes })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_takes_something_goes_on_and_is_gone_after_its_end() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat starts");
        assert!(taken(&[child.id()])[0].is_some_and(|taken| taken.pss_bytes > 0));
        // It would not see the end of its input if it stood still.
        drop(child.stdin.take());
        while is_running(child.id())
            || !fs::read_to_string(format!("/proc/{}/stat", child.id())).is_ok_and(|stat| stat.contains(") Z"))
        {
            thread::yield_now();
        }
        assert_eq!(taken(&[child.id()]), [None]);
        assert!(child.wait().expect("it has ended").success());
    }
}
