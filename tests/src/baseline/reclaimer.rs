//! Who takes memory from guests when they have a budget's worth, at work: a cgroup's limit where that reaches guests
//! ([`super::reach`]), [advice](super::advice) from outside where it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use super::Baseline;
use super::advice::Advice;
use super::cgroup::Cgroup;
use super::host::Host;
use super::ksmtuned::Daemon;
use super::limit::Limit;
use crate::cpu_time;

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(10);

/// What was seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The most that guests, zram and zswap took together at a look, less what KSM saves.
    pub peak_bytes: u64,
    /// Looks.
    pub looks: u64,
    /// Bytes that the kernel was asked to page out, or the most that the cgroup had swapped at a look.
    pub paged_out_bytes: u64,
    /// How often the cgroup's limit was met.
    pub limit_hits: u64,
    /// Processes that were killed because of it.
    pub killed: u64,
}

/// What a look has found.
pub(super) struct Look {
    /// What is taken, as in [`Work::peak_bytes`].
    pub taken_bytes: u64,
    /// The same with merged pages as often as guests have them, without zram's and zswap's.
    pub resident_bytes: u64,
    /// There is more to do at once.
    pub is_busy: bool,
}

/// A way to keep guests within a budget.
pub(super) trait Reclaim: Send {
    /// Looks at all guests, and does what there is to do.
    fn look(&mut self, work: &mut Work) -> Result<Look>;
}

/// Keeps guests within a budget.
pub struct Reclaimer {
    stop: Arc<AtomicBool>,
    taken_bytes: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Work>>>,
}

impl Reclaimer {
    /// From outside, of the guests that `processes` tells of; one that has ended may be among them. The host is set up for the
    /// baseline.
    pub fn advise(
        baseline: Baseline,
        host: Arc<Host>,
        budget_bytes: u64,
        processes: impl Fn() -> Vec<u32> + Send + 'static,
    ) -> Self {
        let advice = Advice::new(baseline, Arc::clone(&host), budget_bytes, processes);
        Self::start(baseline, host, budget_bytes, advice)
    }

    /// By the limit of the cgroup that all guests are in, or will be. It is in force when this returns.
    ///
    /// # Errors
    /// The kernel does not take the limit.
    pub fn limit(baseline: Baseline, host: Arc<Host>, budget_bytes: u64, cgroup: Cgroup) -> Result<Self> {
        let limit = Limit::new(baseline, Arc::clone(&host), budget_bytes, cgroup)?;
        Ok(Self::start(baseline, host, budget_bytes, limit))
    }

    fn start(baseline: Baseline, host: Arc<Host>, budget_bytes: u64, mut way: impl Reclaim + 'static) -> Self {
        let (stop, taken_bytes) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, taken) = (Arc::clone(&stop), Arc::clone(&taken_bytes));
        let thread = thread::Builder::new().name(cpu_time::RECLAIMER.to_owned()).spawn(move || {
            let mut work = Work::default();
            let mut ksmtuned = baseline.merges.then(|| Daemon::new(budget_bytes));
            // Nothing but these two numbers passes between the threads.
            while !stopped.load(Ordering::Relaxed) {
                let Look { taken_bytes, resident_bytes, is_busy } = way.look(&mut work)?;
                taken.store(taken_bytes, Ordering::Relaxed);
                work.peak_bytes = work.peak_bytes.max(taken_bytes);
                work.looks += 1;
                if let Some(ksmtuned) = &mut ksmtuned
                    && let Some(setting) = ksmtuned.look(resident_bytes, budget_bytes.saturating_sub(taken_bytes))
                {
                    host.set_ksm(setting)?;
                }
                if !is_busy {
                    thread::sleep(INTERVAL);
                }
            }
            Ok(work)
        });
        let thread = thread.expect("a thread");
        Self { stop, taken_bytes, thread: Some(thread) }
    }

    /// What was taken at the last look.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It had ended before, because the host's counters could not be read.
    #[track_caller]
    pub fn finish(mut self) -> Result<Work> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it is joined once").join().expect("the reclaimer is well")
    }
}

impl Drop for Reclaimer {
    /// A host is put back once nobody works on it.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
