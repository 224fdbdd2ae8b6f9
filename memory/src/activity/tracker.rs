//! Periods: a sample is taken, watched, and made into an estimate.

use std::time::{Duration, Instant};

use crate::pager::{Pager, PagerError, Sample, Touches};

use super::estimator::{Estimate, Estimator};
use super::period::{is_over, is_short};
use super::writes::WriteSampler;

/// How a guest is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackerConfig {
    /// Length of a period; up to eight times as much while the guest waits for pages that have left.
    pub period: Duration,
    /// Pages of a sample, at most an eighth of those in guest RAM; the standard deviation of the touched part `f` is
    /// `sqrt(f (1 - f) / pages)`.
    pub sample_pages: usize,
}

/// Of the pages in guest RAM at most this part is sampled: each costs a fault when it is touched, which a guest with little memory
/// would pay for most of what it does. What an estimate is wrong by in pages is less there all the same.
const SAMPLED_PART: u64 = 8;

impl Default for TrackerConfig {
    /// 100 pages, as ESX, but every 5 s instead of every 60.
    fn default() -> Self {
        Self { period: Duration::from_secs(5), sample_pages: 100 }
    }
}

/// A moment, and how long the guest had waited for its pages by then, in total.
#[derive(Debug, Clone, Copy)]
struct Mark {
    now: Instant,
    stall_ns: u64,
}

impl Mark {
    /// The part of the time between the two, up to 1, in which the guest waited. Of one with several CPUs one may go on while
    /// another waits: then this is too much.
    fn waited_since(&self, before: &Self) -> f64 {
        let stall = Duration::from_nanos(self.stall_ns.saturating_sub(before.stall_ns));
        let passed = self.now.duration_since(before.now);
        if passed.is_zero() { 0.0 } else { stall.div_duration_f64(passed).min(1.0) }
    }
}

/// A period that has begun.
#[derive(Debug)]
struct Running {
    sample: Sample,
    began: Mark,
    /// How many times its length it has lasted, and when and with what touched that was so.
    lengths: u32,
    last: Mark,
    before: Touches,
}

/// Samples one guest.
#[derive(Debug)]
pub struct Tracker {
    config: TrackerConfig,
    estimator: Estimator,
    running: Option<Running>,
    writes: Option<WriteSampler>,
    periods: u64,
}

impl Tracker {
    /// Nothing is sampled before the first [`Tracker::step`].
    pub fn new(config: TrackerConfig) -> Self {
        Self { config, estimator: Estimator::default(), running: None, writes: None, periods: 0 }
    }

    /// Watches what is written too, from the next period on.
    pub fn watch_writes(&mut self, writes: WriteSampler) {
        self.writes = Some(writes);
    }

    /// Ends the period if it is over and begins the next; the VM is armed. To be called a few times a period.
    ///
    /// # Errors
    /// [`PagerError`] when the VM cannot be armed or there is no memory for a codec.
    pub fn step(&mut self, pager: &Pager, now: Instant) -> Result<(), PagerError> {
        if let Some(Running { sample, began, lengths, last, before }) = &mut self.running {
            if now.duration_since(last.now) < self.config.period {
                return Ok(());
            }
            let (touches, mark) = (pager.touches(sample), Mark { now, stall_ns: pager.usage().refault_stall_ns });
            *lengths += 1;
            if !is_over(*lengths, before, &touches, mark.waited_since(last)) {
                (*last, *before) = (mark, touches);
                return Ok(());
            }
            let is_short = is_short(mark.waited_since(began));
            pager.return_sample(sample)?;
            let written = self.next_writes();
            self.estimator.end_period(touches, written, is_short);
            self.periods += 1;
        } else {
            self.next_writes();
        }
        let usage = pager.usage();
        let sample = pager.begin_sample(sample_pages(self.config.sample_pages, usage.resident_pages))?;
        let began = Mark { now, stall_ns: usage.refault_stall_ns };
        self.running = Some(Running { sample, began, lengths: 0, last: began, before: Touches::default() });
        Ok(())
    }

    /// A log that fails says nothing from then on: the estimate does not rest on it.
    fn next_writes(&mut self) -> Option<Touches> {
        match self.writes.as_mut()?.next_period(self.config.sample_pages) {
            Ok(written) => written,
            Err(_) => {
                self.writes = None;
                None
            }
        }
    }

    /// Stops sampling; what is known is kept.
    pub fn rest(&mut self, pager: &Pager) {
        if let Some(Running { sample, .. }) = self.running.take() {
            // Without memory for it pages stay aside, where they are found as well.
            let _ = pager.return_sample(&sample);
            pager.end_sample();
            self.writes.as_mut().into_iter().for_each(WriteSampler::rest);
        }
    }

    /// The estimate; `None` before the first period has ended.
    pub fn estimate(&self, pager: &Pager) -> Option<Estimate> {
        let touches = self.running.as_ref().map_or_else(Default::default, |running| pager.touches(&running.sample));
        self.estimator.estimate(touches)
    }

    /// Periods that have ended.
    pub fn periods(&self) -> u64 {
        self.periods
    }
}

/// How many of so many pages in guest RAM are sampled.
fn sample_pages(most: usize, resident_pages: u64) -> usize {
    usize::try_from(resident_pages / SAMPLED_PART).map_or(most, |pages| pages.max(1).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_is_sampled_by_its_part() {
        let of = |resident_pages| sample_pages(100, resident_pages);
        assert_eq!([of(1 << 40), of(4096), of(800), of(300), of(7), of(0)], [100, 100, 100, 37, 1, 1]);
        assert_eq!(sample_pages(0, 4096), 0);
    }
}
