//! Linux's reclaim, driven from outside: where no limit makes the kernel take memory from its guests, this does, and where it goes
//! is up to the kernel's swap.
//!
//! Between the watermarks of [`super::threshold`] it pages out clusters of 64 KiB of all guests (`MADV_PAGEOUT`), chosen at random, in
//! proportion to what each has resident. The kernel's own choice would know ages, as far as it sees a guest's accesses; a host
//! without accessed bits for its guests sees none. While more is taken than the budget, whoever grows is stopped, as it would
//! have to reclaim for itself.

use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Baseline;
use super::host::Host;
use super::ksmtuned::{self, Ksmtuned};
use super::threshold::Threshold;
use crate::cpu_time;
use crate::guest_memory;
use crate::samples::private_bytes;

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(10);

/// Reclaimed at a time, so that a touch beside it waits no longer than for one.
const CLUSTER_BYTES: u64 = 64 << 10;

/// Clusters asked for at once.
const BATCH_CLUSTERS: usize = 16;

/// What was seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The most that guests, zram and zswap took together at a look, less what KSM saves.
    pub peak_bytes: u64,
    /// Looks.
    pub looks: u64,
    /// Bytes that the kernel was asked to page out.
    pub asked_bytes: u64,
}

/// Keeps guests within a budget.
pub struct Reclaimer {
    stop: Arc<AtomicBool>,
    taken_bytes: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Work>>>,
}

impl Reclaimer {
    /// Of the guests that `processes` tells of; one that has ended may be among them. The host is set up for the baseline.
    pub fn start(
        baseline: Baseline,
        host: Arc<Host>,
        budget_bytes: u64,
        processes: impl Fn() -> Vec<u32> + Send + 'static,
    ) -> Self {
        let (stop, taken_bytes) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, taken) = (Arc::clone(&stop), Arc::clone(&taken_bytes));
        let thread = thread::Builder::new().name(cpu_time::RECLAIMER.to_owned()).spawn(move || {
            let mut guests = Guests { known: Vec::new(), random: Random(1) };
            let (mut work, mut threshold) = (Work::default(), Threshold::default());
            let mut ksmtuned = baseline.merges.then(|| (Ksmtuned::new(budget_bytes), Instant::now()));
            // Nothing but these two numbers passes between the threads.
            while !stopped.load(Ordering::Relaxed) {
                let resident_bytes = guests.look(&processes());
                let merged_bytes = if baseline.merges { host.merged_bytes()? } else { 0 };
                let bytes = resident_bytes.saturating_sub(merged_bytes) + host.store_bytes()?;
                taken.store(bytes, Ordering::Relaxed);
                work.peak_bytes = work.peak_bytes.max(bytes);
                work.looks += 1;
                if let Some((ksmtuned, next)) = &mut ksmtuned
                    && *next <= Instant::now()
                {
                    *next = Instant::now() + ksmtuned::LOOK_INTERVAL;
                    host.set_ksm(ksmtuned.look(resident_bytes, budget_bytes.saturating_sub(bytes)))?;
                }
                guests.stop_growth(bytes > budget_bytes);
                let excess_bytes = threshold.excess_bytes(bytes, budget_bytes);
                if excess_bytes > 0 && baseline.swap != super::Swap::Nothing {
                    work.asked_bytes += guests.page_out(excess_bytes);
                } else {
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

/// A guest's process.
struct Guest {
    pid: u32,
    descriptor: OwnedFd,
    /// Guest RAM.
    ranges: Vec<Range<u64>>,
    resident_bytes: u64,
    /// It has more resident than at the look before.
    has_grown: bool,
    is_stopped: bool,
}

struct Guests {
    known: Vec<Guest>,
    random: Random,
}

impl Guests {
    /// Finds out what all of them have resident.
    fn look(&mut self, processes: &[u32]) -> u64 {
        self.known.retain(|guest| processes.contains(&guest.pid));
        for &pid in processes {
            if !self.known.iter().any(|guest| guest.pid == pid)
                && let Some(guest) = Guest::of(pid)
            {
                self.known.push(guest);
            }
        }
        for guest in &mut self.known {
            let before_bytes = guest.resident_bytes;
            guest.resident_bytes = private_bytes(guest.pid).unwrap_or(0);
            guest.has_grown = guest.resident_bytes > before_bytes;
        }
        self.known.iter().map(|guest| guest.resident_bytes).sum()
    }

    /// Stops those that have grown, or lets all go on.
    fn stop_growth(&mut self, is_over: bool) {
        for guest in &mut self.known {
            let shall_stop = is_over && (guest.is_stopped || guest.has_grown);
            if shall_stop != guest.is_stopped {
                guest.signal(if shall_stop { libc::SIGSTOP } else { libc::SIGCONT });
                guest.is_stopped = shall_stop;
            }
        }
    }

    /// Has so much paged out, as far as what is chosen is resident; at most a batch of each guest.
    fn page_out(&mut self, bytes: u64) -> u64 {
        let all_bytes: u64 = self.known.iter().map(|guest| guest.resident_bytes).sum();
        let mut asked_bytes = 0;
        for guest in &self.known {
            let part_bytes =
                (u128::from(bytes) * u128::from(guest.resident_bytes) / u128::from(all_bytes.max(1))) as u64;
            let clusters = (part_bytes.div_ceil(CLUSTER_BYTES) as usize).min(BATCH_CLUSTERS);
            let chosen: Vec<_> = (0..clusters).filter_map(|_| guest.cluster(&mut self.random)).collect();
            asked_bytes += guest.page_out(&chosen);
        }
        asked_bytes
    }
}

impl Guest {
    /// `None` when it is gone, or has no RAM yet.
    fn of(pid: u32) -> Option<Self> {
        let ranges = guest_memory::address_ranges(pid).filter(|ranges| !ranges.is_empty())?;
        // SAFETY: a plain system call, whose result is a descriptor of ours.
        let descriptor = unsafe {
            let descriptor = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            (descriptor >= 0).then(|| OwnedFd::from_raw_fd(descriptor as i32))?
        };
        Some(Self { pid, descriptor, ranges, resident_bytes: 0, has_grown: false, is_stopped: false })
    }

    /// One that has ended hears nothing.
    fn signal(&self, signal: libc::c_int) {
        // SAFETY: a plain system call; the descriptor is of one process for good, whoever has its number now.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.descriptor.as_raw_fd(), signal, 0, 0);
        }
    }

    fn cluster(&self, random: &mut Random) -> Option<libc::iovec> {
        let bytes = |range: &Range<u64>| range.end - range.start;
        let clusters: u64 = self.ranges.iter().map(|range| bytes(range) / CLUSTER_BYTES).sum();
        let mut number = random.below(clusters)?;
        for range in &self.ranges {
            let here = bytes(range) / CLUSTER_BYTES;
            if number < here {
                let address = range.start + number * CLUSTER_BYTES;
                return Some(libc::iovec { iov_base: address as *mut libc::c_void, iov_len: CLUSTER_BYTES as usize });
            }
            number -= here;
        }
        None
    }

    /// How many bytes the kernel has looked at. One that has ended has none.
    fn page_out(&self, clusters: &[libc::iovec]) -> u64 {
        // SAFETY: the kernel reads `clusters`, whose addresses are of another process; paging out changes no content.
        let result = unsafe {
            let descriptor = self.descriptor.as_raw_fd();
            libc::syscall(
                libc::SYS_process_madvise,
                descriptor,
                clusters.as_ptr(),
                clusters.len(),
                libc::MADV_PAGEOUT,
                0,
            )
        };
        u64::try_from(result).unwrap_or(0)
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        self.stop_growth(false);
    }
}

/// Numbers without a pattern (Marsaglia 2003, xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> Option<u64> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(end)
    }
}
