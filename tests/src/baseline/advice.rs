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

use anyhow::Result;

use super::host::Host;
use super::reclaimer::{Look, Reclaim, Work};
use super::threshold::Threshold;
use super::{Baseline, Swap};
use crate::guest_memory;
use crate::samples::private_bytes;

/// Reclaimed at a time, so that a touch beside it waits no longer than for one.
const CLUSTER_BYTES: u64 = 64 << 10;

/// Clusters asked for at once.
const BATCH_CLUSTERS: usize = 16;

/// See the top of this file.
pub(super) struct Advice<F> {
    baseline: Baseline,
    host: Arc<Host>,
    budget_bytes: u64,
    processes: F,
    guests: Guests,
    threshold: Threshold,
}

impl<F: Fn() -> Vec<u32> + Send> Advice<F> {
    /// To the guests that `processes` tells of.
    pub fn new(baseline: Baseline, host: Arc<Host>, budget_bytes: u64, processes: F) -> Self {
        let guests = Guests { known: Vec::new(), random: Random(1) };
        Self { baseline, host, budget_bytes, processes, guests, threshold: Threshold::default() }
    }
}

impl<F: Fn() -> Vec<u32> + Send> Reclaim for Advice<F> {
    fn look(&mut self, work: &mut Work) -> Result<Look> {
        let resident_bytes = self.guests.look(&(self.processes)());
        let merged_bytes = if self.baseline.merges { self.host.merged_bytes()? } else { 0 };
        let taken_bytes = resident_bytes.saturating_sub(merged_bytes) + self.host.store_bytes()?;
        self.guests.stop_growth(taken_bytes > self.budget_bytes);
        let excess_bytes = self.threshold.excess_bytes(taken_bytes, self.budget_bytes);
        let is_busy = excess_bytes > 0 && self.baseline.swap != Swap::Nothing;
        if is_busy {
            work.paged_out_bytes += self.guests.page_out(excess_bytes);
        }
        Ok(Look { taken_bytes, resident_bytes, is_busy })
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
            // Again and again: whoever stops all guests to look at them lets all go on then.
            if shall_stop {
                guest.signal(libc::SIGSTOP);
            } else if guest.is_stopped {
                guest.signal(libc::SIGCONT);
            }
            guest.is_stopped = shall_stop;
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
