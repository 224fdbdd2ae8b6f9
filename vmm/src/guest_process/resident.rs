//! What processes have resident, read quickly and without stopping them: excesses too short for looks to meet.

use std::fs;
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;

/// How often it is read.
const INTERVAL: Duration = Duration::from_millis(250);

/// The largest sum of several processes' resident memory. A page that is merged counts in each that has it, and each CPU
/// keeps some pages of each process's count to itself (kernel lib/percpu_counter.c), so that a sum is off by some, up or
/// down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResidentPeak {
    /// The largest.
    pub bytes: u64,
    /// Times it was read.
    pub samples: u64,
    last: Option<(Instant, u64)>,
}

impl ResidentPeak {
    /// Reads it, if it is time.
    pub fn sample(&mut self, now: Instant, pids: impl Iterator<Item = u32>) {
        if self.last.is_some_and(|(at, _)| now.saturating_duration_since(at) < INTERVAL) {
            return;
        }
        let bytes = pids.filter_map(resident_bytes).sum();
        self.last = Some((now, bytes));
        self.bytes = self.bytes.max(bytes);
        self.samples += 1;
    }

    /// What was read last.
    pub fn last_bytes(&self) -> u64 {
        self.last.map_or(0, |(_, bytes)| bytes)
    }
}

/// Resident memory of a process that is no file's (proc_pid_statm(5)); `None` when it is gone.
fn resident_bytes(pid: u32) -> Option<u64> {
    resident_bytes_of(&fs::read_to_string(format!("/proc/{pid}/statm")).ok()?)
}

fn resident_bytes_of(statm: &str) -> Option<u64> {
    let mut pages = statm.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, of_files) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(of_files) * PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_do_not_count() {
        assert_eq!(resident_bytes_of("40000 1000 300 900 0 5000 0\n"), Some(700 * PAGE_SIZE));
        assert_eq!(resident_bytes_of("0 0 0 0 0 0 0\n"), Some(0), "ended, and not reaped");
        assert_eq!(resident_bytes_of(""), None);
    }

    #[test]
    fn the_largest_stays() {
        let (mut peak, start, own) = (ResidentPeak::default(), Instant::now(), std::process::id());
        peak.sample(start, [own, own].into_iter());
        let first = peak;
        assert!(first.bytes > 0 && first.last_bytes() == first.bytes);
        peak.sample(start + INTERVAL / 2, [own].into_iter());
        assert_eq!(peak, first, "it is not time yet");
        peak.sample(start + INTERVAL, [u32::MAX].into_iter());
        assert_eq!((peak.bytes, peak.samples, peak.last_bytes()), (first.bytes, 2, 0));
    }
}
