//! How much a guest writes, from the hypervisor's dirty log of a few pages.
//!
//! Logging every write costs a fault for each page written (20 us where KVM has no hardware for it), so only random pages are
//! watched: the log is exact on those, and writes to others cost nothing. KVM clears its log in words of 64 pages, but only
//! the pages of a word that it is told to: watching whole words would cost as much and say as little as so many pages less,
//! because neighbours are written together.

use std::io;
use std::sync::Arc;

use crate::pager::Touches;
use crate::ram::{GuestRam, PAGE_SIZE};

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

    /// Forgets that these pages of guest RAM, in ascending order, were written. Others keep what is known of them.
    ///
    /// # Errors
    /// The hypervisor's.
    fn clear(&self, gfns: &[u64]) -> io::Result<()>;

    /// How many of these pages of guest RAM, in ascending order, were written since they were cleared.
    ///
    /// # Errors
    /// The hypervisor's.
    fn written_pages(&self, gfns: &[u64]) -> io::Result<u64>;
}

/// Watches the writes of one guest.
pub struct WriteSampler {
    log: Arc<dyn DirtyLog>,
    ram: Arc<GuestRam>,
    watched: Option<Vec<u64>>,
}

impl std::fmt::Debug for WriteSampler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WriteSampler").field("watched", &self.watched).finish_non_exhaustive()
    }
}

impl WriteSampler {
    /// Nothing is logged before the first [`WriteSampler::next_period`].
    pub fn new(log: Arc<dyn DirtyLog>, ram: Arc<GuestRam>) -> Self {
        Self { log, ram, watched: None }
    }

    /// Ends a period, if one was running, and begins the next, in which it watches `pages` pages. What was written in the
    /// last: a sample of all of guest RAM.
    ///
    /// # Errors
    /// The dirty log's; nothing is watched then.
    pub fn next_period(&mut self, pages: usize) -> io::Result<Option<Touches>> {
        let written = match self.watched.take() {
            None => {
                self.log.start()?;
                None
            }
            Some(gfns) => Some(Touches {
                resident_pages: self.ram.size_bytes() / PAGE_SIZE,
                sampled_pages: gfns.len() as u64,
                sampled_touched_pages: self.log.written_pages(&gfns)?,
                arrived_pages: 0,
            }),
        };
        let mut gfns: Vec<u64> = (0..pages).map(|_| self.ram.random_gfn()).collect();
        gfns.sort_unstable();
        gfns.dedup();
        self.log.clear(&gfns)?;
        self.watched = Some(gfns);
        Ok(written)
    }

    /// Stops the log.
    pub fn rest(&mut self) {
        if self.watched.take().is_some() {
            // What it costs goes on, and is tried again with the next rest.
            let _ = self.log.stop();
        }
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
        cleared: Mutex<Vec<u64>>,
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

        fn clear(&self, gfns: &[u64]) -> io::Result<()> {
            assert!(gfns.is_sorted_by(|left, right| left < right), "{gfns:?}");
            *self.cleared.lock().expect("no panic") = gfns.to_vec();
            Ok(())
        }

        fn written_pages(&self, gfns: &[u64]) -> io::Result<u64> {
            assert_eq!(self.cleared.lock().expect("no panic").split_off(0), gfns);
            Ok(gfns.iter().filter(|&&gfn| gfn < 4096).count() as u64)
        }
    }

    #[test]
    fn a_few_pages_stand_for_all() {
        const MIB: u64 = 1 << 20;
        let ram = GuestRam::new(&[0..16 * MIB, 32 * MIB..48 * MIB + 5 * PAGE_SIZE]).expect("RAM");
        let log = Arc::new(Half::default());
        let mut sampler = WriteSampler::new(log.clone(), ram);
        assert_eq!(sampler.next_period(100).expect("a period"), None, "nothing was watched");
        let mut sum = 0.0;
        for _ in 0..400 {
            let written = sampler.next_period(100).expect("a period").expect("one has ended");
            assert!((90..=100).contains(&written.sampled_pages), "{written:?}");
            sum += written.active_pages();
        }
        let mean_pages = sum / 400.0;
        assert!((mean_pages - 4096.0).abs() < 200.0, "{mean_pages} of 4096");
        sampler.rest();
        sampler.rest();
        assert_eq!(*log.calls.lock().expect("no panic"), ["start", "stop"]);
        assert_eq!(sampler.next_period(100).expect("a period"), None, "what came meanwhile is not known");
        assert_eq!(*log.calls.lock().expect("no panic"), ["start", "stop", "start"]);
    }
}
