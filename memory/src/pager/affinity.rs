//! The fault handler runs where the guest runs: a fault is answered a third sooner on the same CPU.

use std::fs;
use std::time::{Duration, Instant};

/// How often it is looked where the guest runs.
const INTERVAL: Duration = Duration::from_millis(100);

/// The place of `processor` in `/proc/PID/stat` behind the command's closing parenthesis (proc_pid_stat(5): field 39).
const PROCESSOR_FIELD: usize = 39 - 3;

/// Keeps the calling thread on the CPU of others.
#[derive(Debug)]
pub(super) struct Affinity {
    looked: Instant,
    cpu: Option<usize>,
}

impl Affinity {
    pub fn new() -> Self {
        Self { looked: Instant::now(), cpu: None }
    }

    /// Moves the calling thread to the CPU that most of `threads` last ran on, if it is time to look.
    pub fn follow(&mut self, threads: &[i32]) {
        if threads.is_empty() || self.looked.elapsed() < INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let cpus: Vec<usize> = threads.iter().filter_map(|thread| last_cpu(*thread)).collect();
        let votes = |cpu: &usize| cpus.iter().filter(|other| *other == cpu).count();
        // Among equals the one where it is: moving costs something.
        let best = cpus.iter().copied().max_by_key(|cpu| (votes(cpu), self.cpu == Some(*cpu)));
        if best.is_some() && best != self.cpu && best.is_some_and(stay_on) {
            self.cpu = best;
        }
    }
}

fn last_cpu(thread: i32) -> Option<usize> {
    parse_cpu(&fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?)
}

fn parse_cpu(stat: &str) -> Option<usize> {
    // A command may hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split_ascii_whitespace().nth(PROCESSOR_FIELD)?.parse().ok()
}

/// Whether the kernel lets the calling thread run on this CPU alone.
fn stay_on(cpu: usize) -> bool {
    if cpu >= libc::CPU_SETSIZE as usize {
        return false;
    }
    // SAFETY: a CPU set is plain bits; all zeroes is the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number was checked to be inside the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads a set of the size given; 0 is the calling thread.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_found_behind_any_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 \
                    33 34 35 5 37 38 39";
        assert_eq!(parse_cpu(stat), Some(5));
        assert_eq!(parse_cpu("7 (a) S 1 2"), None);
        // SAFETY: the call takes nothing and cannot fail.
        assert!(last_cpu(unsafe { libc::gettid() }).is_some());
    }
}
