//! What a pool takes, sampled often and without stopping anybody: excesses too short for [slow looks](crate::watch) to meet.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;

/// How often a sample is taken.
const INTERVAL: Duration = Duration::from_millis(10);

/// A sample that takes longer is of several moments: what one process gives up and another takes meanwhile counts twice.
const MOMENT: Duration = Duration::from_millis(1);

/// By how many pages a CPU's part of a counter may be off (kernel lib/percpu_counter.c: twice the CPUs, at least 32).
fn batch_pages(cpus: u64) -> u64 {
    32.max(2 * cpus)
}

/// Samples of what some processes take together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Samples {
    taken_bytes: Vec<u64>,
    processes_most: u64,
    cpus: u64,
}

impl Samples {
    /// The largest.
    pub fn peak_bytes(&self) -> u64 {
        self.taken_bytes.iter().copied().max().unwrap_or(0)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.taken_bytes.len()
    }

    /// The part of them above so many bytes, in percent.
    pub fn percent_above(&self, bytes: u64) -> f64 {
        let above = self.taken_bytes.iter().filter(|&&taken_bytes| taken_bytes > bytes).count();
        above as f64 * 100.0 / self.count().max(1) as f64
    }

    /// What they show beside a budget.
    pub fn summary(&self, budget_bytes: u64) -> String {
        format!(
            "peak {} KiB of {} KiB ({:.1} %, +- {} KiB) in {} samples, {:.2} % above",
            self.peak_bytes() >> 10,
            budget_bytes >> 10,
            self.peak_bytes() as f64 * 100.0 / budget_bytes as f64,
            self.error_bytes() >> 10,
            self.count(),
            self.percent_above(budget_bytes),
        )
    }

    /// Fails unless a budget was exceeded by no more than 1 %, and what they may be off, in any, of which there are some.
    #[track_caller]
    pub fn expect_within(&self, budget_bytes: u64) {
        let summary = self.summary(budget_bytes);
        assert!(self.count() >= 10, "{summary}");
        assert!(self.peak_bytes() <= budget_bytes / 100 * 101 + self.error_bytes(), "{summary}");
    }

    /// By how much a sample may be off: each CPU keeps a part of each process's count to itself.
    pub fn error_bytes(&self) -> u64 {
        self.processes_most * self.cpus * batch_pages(self.cpus) * PAGE_SIZE
    }
}

/// Samples processes until it is finished.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Samples>,
}

impl Sampler {
    /// Of these processes. Whoever reaps one takes it out first.
    pub fn start(processes: Arc<Mutex<Vec<u32>>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
            let mut samples = Samples { cpus, ..Samples::default() };
            while !stopped.load(Ordering::Relaxed) {
                let processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
                let looked = Instant::now();
                let taken_bytes = processes.iter().filter_map(|&pid| private_bytes(pid)).sum();
                if looked.elapsed() <= MOMENT {
                    samples.taken_bytes.push(taken_bytes);
                    samples.processes_most = samples.processes_most.max(processes.len() as u64);
                }
                drop(processes);
                thread::sleep(INTERVAL);
            }
            samples
        });
        Self { stop, thread }
    }

    /// The samples.
    #[track_caller]
    pub fn finish(self) -> Samples {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler is well")
    }
}

/// Resident memory of a process that is no file's (proc_pid_statm(5)); `None` when it is gone.
pub fn private_bytes(pid: u32) -> Option<u64> {
    private_bytes_of(&fs::read_to_string(format!("/proc/{pid}/statm")).ok()?)
}

fn private_bytes_of(statm: &str) -> Option<u64> {
    let mut pages = statm.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_do_not_count() {
        assert_eq!(private_bytes_of("40000 1000 300 900 0 5000 0\n"), Some(700 * PAGE_SIZE));
        assert_eq!(private_bytes_of("0 0 0 0 0 0 0\n"), Some(0), "ended, and not reaped");
        assert_eq!(private_bytes_of(""), None);
    }

    #[test]
    fn samples_tell_their_peak_and_how_often_they_are_above() {
        let samples = Samples { taken_bytes: vec![1, 5, 3, 4], processes_most: 3, cpus: 2 };
        assert_eq!((samples.count(), samples.peak_bytes()), (4, 5));
        assert!((samples.percent_above(3) - 50.0).abs() < 1e-9);
        assert_eq!(samples.error_bytes(), 3 * 2 * 32 * PAGE_SIZE);
        assert_eq!(Samples::default().percent_above(0), 0.0);
    }

    #[test]
    fn memory_that_is_written_counts_at_once() {
        let processes = Arc::new(Mutex::new(vec![std::process::id()]));
        let before_bytes = private_bytes(std::process::id()).expect("it is this one");
        let sampler = Sampler::start(processes);
        let memory = vec![1u8; 32 << 20];
        thread::sleep(10 * INTERVAL);
        let samples = sampler.finish();
        assert!(samples.count() > 0, "{samples:?}");
        // Other tests of this process free what they had meanwhile.
        let slack_bytes = 4 << 20;
        let wanted_bytes = before_bytes + memory.len() as u64;
        assert!(samples.peak_bytes() + slack_bytes > wanted_bytes, "{before_bytes} {samples:?}");
    }
}
