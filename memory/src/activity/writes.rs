//! How much a guest writes, from the hypervisor's dirty log of a few granules.
//!
//! Logging every write costs a fault for each page written (20 us where KVM has no hardware for it), so only random granules
//! are watched: the log is exact on those, and the other pages' writes cost nothing.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::rand::xor_pseudo_rng_u32;

use crate::ram::{GuestRam, PAGE_SIZE};

/// Pages that are cleared and read back together: the granularity of `KVM_CLEAR_DIRTY_LOG`.
pub const GRANULE_PAGES: u64 = 64;

/// Granules watched in a period.
const GRANULES: usize = 8;

/// Weight of a new period in the average. Eight granules say little alone: where a guest writes a tenth of its memory in one
/// piece, they are off by a tenth of the guest.
const WEIGHT: f64 = 0.2;

/// Which pages a guest's CPUs write. Implemented over the hypervisor; writes of the VMM's own are not in it.
pub trait DirtyLog: Send + Sync {
    /// Starts logging. Every page counts as written until it is cleared, and costs nothing until then.
    ///
    /// # Errors
    /// The hypervisor cannot, or not for a part of memory only.
    fn start(&self) -> io::Result<()>;

    /// Stops logging.
    ///
    /// # Errors
    /// The hypervisor's.
    fn stop(&self) -> io::Result<()>;

    /// Forgets that the pages of a granule were written. It lies inside one region of RAM, at a multiple of
    /// [`GRANULE_PAGES`] from that region's start; the region's last may be shorter.
    ///
    /// # Errors
    /// The hypervisor's.
    fn clear(&self, gfns: Range<u64>) -> io::Result<()>;

    /// How many pages of each granule were written since it was cleared.
    ///
    /// # Errors
    /// The hypervisor's.
    fn written_pages(&self, granules: &[Range<u64>]) -> io::Result<Vec<u64>>;
}

/// Watches the writes of one guest.
pub struct WriteSampler {
    log: Arc<dyn DirtyLog>,
    ram: Arc<GuestRam>,
    watched: Option<Vec<Range<u64>>>,
    written_part: Option<f64>,
}

impl std::fmt::Debug for WriteSampler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WriteSampler").field("watched", &self.watched).finish_non_exhaustive()
    }
}

impl WriteSampler {
    /// Nothing is logged before the first [`WriteSampler::next_period`].
    pub fn new(log: Arc<dyn DirtyLog>, ram: Arc<GuestRam>) -> Self {
        Self { log, ram, watched: None, written_part: None }
    }

    /// Ends a period, if one was running, and begins the next.
    ///
    /// # Errors
    /// The dirty log's; nothing is watched then.
    pub fn next_period(&mut self) -> io::Result<()> {
        match self.watched.take() {
            None => self.log.start()?,
            Some(granules) => {
                let written: u64 = self.log.written_pages(&granules)?.iter().sum();
                let all: u64 = granules.iter().map(|gfns| gfns.end - gfns.start).sum();
                let part = written as f64 / all.max(1) as f64;
                let average = self.written_part.map_or(part, |before| before + WEIGHT * (part - before));
                self.written_part = Some(average);
            }
        }
        let granules: Vec<_> = (0..GRANULES).map(|_| self.random_granule()).collect();
        granules.iter().try_for_each(|granule| self.log.clear(granule.clone()))?;
        self.watched = Some(granules);
        Ok(())
    }

    /// Stops the log; what is known is kept.
    pub fn rest(&mut self) {
        if self.watched.take().is_some() {
            // What it costs goes on, and is tried again with the next rest.
            let _ = self.log.stop();
        }
    }

    /// What the guest writes in a period, in bytes; `None` before the first has ended.
    pub fn written_bytes(&self) -> Option<u64> {
        let ram_pages = self.ram.size_bytes() / PAGE_SIZE;
        self.written_part.map(|part| (part * ram_pages as f64) as u64 * PAGE_SIZE)
    }

    fn random_granule(&self) -> Range<u64> {
        let count = |region: &crate::RamRegion| (region.bytes / PAGE_SIZE).div_ceil(GRANULE_PAGES);
        let all: u64 = self.ram.regions().iter().map(count).sum();
        let mut number = u64::from(xor_pseudo_rng_u32()) % all;
        for region in self.ram.regions() {
            if number < count(region) {
                let start = region.gfns().start + number * GRANULE_PAGES;
                return start..region.gfns().end.min(start + GRANULE_PAGES);
            }
            number -= count(region);
        }
        unreachable!("a number below the count of all granules is in some region")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A log in which a part of memory is always written.
    #[derive(Default)]
    struct Half {
        calls: Mutex<Vec<&'static str>>,
        cleared: Mutex<Vec<Range<u64>>>,
    }

    impl DirtyLog for Half {
        fn start(&self) -> io::Result<()> {
            self.calls.lock().expect("no panic").push("start");
            Ok(())
        }

        fn stop(&self) -> io::Result<()> {
            self.calls.lock().expect("no panic").push("stop");
            Ok(())
        }

        fn clear(&self, gfns: Range<u64>) -> io::Result<()> {
            self.cleared.lock().expect("no panic").push(gfns);
            Ok(())
        }

        fn written_pages(&self, granules: &[Range<u64>]) -> io::Result<Vec<u64>> {
            assert_eq!(self.cleared.lock().expect("no panic").split_off(0), granules);
            Ok(granules.iter().map(|gfns| if gfns.start < 4096 { gfns.end - gfns.start } else { 0 }).collect())
        }
    }

    #[test]
    fn a_few_granules_stand_for_all_in_the_end() {
        const MIB: u64 = 1 << 20;
        let ram = GuestRam::new(&[0..16 * MIB, 32 * MIB..48 * MIB + 5 * PAGE_SIZE]).expect("RAM");
        let log = Arc::new(Half::default());
        let mut sampler = WriteSampler::new(log.clone(), ram);
        assert_eq!(sampler.written_bytes(), None);
        let mut sum_bytes = 0;
        sampler.next_period().expect("a period");
        for _ in 0..400 {
            sampler.next_period().expect("a period");
            sum_bytes += sampler.written_bytes().expect("a period has ended");
        }
        let mean_mib = sum_bytes / 400 / MIB;
        assert!((14..=18).contains(&mean_mib), "{mean_mib} of 16 MiB");
        sampler.rest();
        sampler.rest();
        assert_eq!(*log.calls.lock().expect("no panic"), ["start", "stop"]);
        sampler.next_period().expect("a period");
        assert_eq!(*log.calls.lock().expect("no panic"), ["start", "stop", "start"]);
    }
}
