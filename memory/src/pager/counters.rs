//! What the pager counts while it works.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::statistics::{
    EvictionStatistics, FailureStatistics, LatencyStatistics, LatencyStep, RefaultStatistics, SourceStatistics,
};

/// Shortest and longest time that is told apart.
const LATENCY_NS: std::ops::Range<u64> = 128..60_000_000_000;

/// Times of which the middle tells something.
const TELLING_COUNT: u64 = 32;

/// A number that goes up. Nothing is concluded from two of them, so relaxed operations do.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        if more > 0 {
            self.0.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a page that comes in was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    FirstTouch,
    Aside,
    Zero,
    Duplicate,
    Compressed,
    Swapped,
}

impl Source {
    const COUNT: usize = 6;
}

/// Pages from one source.
#[derive(Debug)]
struct SourceCounters {
    pages: Counter,
    around_pages: Counter,
    /// Held for an addition only.
    latency: Mutex<Histogram<u32>>,
}

/// Every counter of one pager.
#[derive(Debug)]
pub(super) struct Counters {
    sources: [SourceCounters; Source::COUNT],
    pub joined: Counter,
    pub waited: Counter,
    pub refaults_waited: Counter,
    stall_ns: Counter,
    refault_stall_ns: Counter,
    pub aside: Counter,
    pub unmerged: Counter,
    pub zero: Counter,
    pub duplicate: Counter,
    pub compressed: Counter,
    pub swapped: Counter,
    pub written_back: Counter,
    pub incompressible: Counter,
    pub overtaken: Counter,
    pub soon: Counter,
    pub again: Counter,
    pub freed: Counter,
    pub zero_freed: Counter,
    pub broken: Counter,
    pub busy: Counter,
    pub eviction_failed: Counter,
    pub retried: Counter,
    pub store_full: Counter,
    pub swap_write_failed: Counter,
    pub swap_full: Counter,
    pub over_limit_pages: Counter,
    pub device_pages: Counter,
}

impl Counters {
    pub fn new() -> Self {
        let histogram = || {
            // One significant digit: steps of 6 % at most, 2 KiB a histogram.
            Histogram::new_with_bounds(LATENCY_NS.start, LATENCY_NS.end, 1).expect("the bounds are in order")
        };
        let source = || SourceCounters {
            pages: Counter::default(),
            around_pages: Counter::default(),
            latency: Mutex::new(histogram()),
        };
        Self {
            sources: std::array::from_fn(|_| source()),
            joined: Counter::default(),
            waited: Counter::default(),
            refaults_waited: Counter::default(),
            stall_ns: Counter::default(),
            refault_stall_ns: Counter::default(),
            aside: Counter::default(),
            unmerged: Counter::default(),
            zero: Counter::default(),
            duplicate: Counter::default(),
            compressed: Counter::default(),
            swapped: Counter::default(),
            written_back: Counter::default(),
            incompressible: Counter::default(),
            overtaken: Counter::default(),
            soon: Counter::default(),
            again: Counter::default(),
            freed: Counter::default(),
            zero_freed: Counter::default(),
            broken: Counter::default(),
            busy: Counter::default(),
            eviction_failed: Counter::default(),
            retried: Counter::default(),
            store_full: Counter::default(),
            swap_write_failed: Counter::default(),
            swap_full: Counter::default(),
            over_limit_pages: Counter::default(),
            device_pages: Counter::default(),
        }
    }

    /// A page that was asked for is there, this long after the fault was read; `None` for a pin.
    pub fn came(&self, source: Source, latency: Option<Duration>) {
        let counters = &self.sources[source as usize];
        counters.pages.add(1);
        if let Some(latency) = latency {
            let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            self.stall_ns.add(nanoseconds);
            if !matches!(source, Source::FirstTouch | Source::Aside) {
                self.refault_stall_ns.add(nanoseconds);
            }
            counters.latency.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(nanoseconds);
        }
    }

    /// Pages from this source that were asked for.
    pub fn pages(&self, source: Source) -> u64 {
        self.sources[source as usize].pages.get()
    }

    /// What a page that was asked for takes from this source in the middle; `None` while few were.
    pub fn usual_latency(&self, source: Source) -> Option<Duration> {
        let latency = self.sources[source as usize].latency.lock().unwrap_or_else(PoisonError::into_inner);
        (latency.len() >= TELLING_COUNT).then(|| Duration::from_nanos(latency.value_at_quantile(0.5)))
    }

    /// Time to the answer, over all faults.
    pub fn stall_ns(&self) -> u64 {
        self.stall_ns.get()
    }

    /// Time to the answer, over faults on pages that were stored.
    pub fn refault_stall_ns(&self) -> u64 {
        self.refault_stall_ns.get()
    }

    /// Pages came along with one that was asked for.
    pub fn came_along(&self, source: Source, pages: u64) {
        self.sources[source as usize].around_pages.add(pages);
    }

    pub fn refaults(&self) -> RefaultStatistics {
        let source = |source: Source| self.sources[source as usize].statistics();
        RefaultStatistics {
            first_touch: source(Source::FirstTouch),
            aside: source(Source::Aside),
            zero: source(Source::Zero),
            duplicate: source(Source::Duplicate),
            compressed: source(Source::Compressed),
            swapped: source(Source::Swapped),
            joined: self.joined.get(),
            waited: self.waited.get(),
            soon: self.soon.get(),
            stall_ns: self.stall_ns.get(),
        }
    }

    pub fn evictions(&self) -> EvictionStatistics {
        EvictionStatistics {
            aside: self.aside.get(),
            unmerged: self.unmerged.get(),
            zero: self.zero.get(),
            duplicate: self.duplicate.get(),
            compressed: self.compressed.get(),
            swapped: self.swapped.get(),
            written_back: self.written_back.get(),
            incompressible: self.incompressible.get(),
            overtaken: self.overtaken.get(),
            again: self.again.get(),
            freed: self.freed.get(),
            zero_freed: self.zero_freed.get(),
            broken: self.broken.get(),
        }
    }

    pub fn failures(&self) -> FailureStatistics {
        FailureStatistics {
            busy: self.busy.get(),
            eviction: self.eviction_failed.get(),
            retried: self.retried.get(),
            store_full: self.store_full.get(),
            swap_write: self.swap_write_failed.get(),
            swap_full: self.swap_full.get(),
            over_limit_pages: self.over_limit_pages.get(),
            device_pages: self.device_pages.get(),
        }
    }
}

impl SourceCounters {
    fn statistics(&self) -> SourceStatistics {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = latency.iter_recorded();
        SourceStatistics {
            pages: self.pages.get(),
            around_pages: self.around_pages.get(),
            latency: LatencyStatistics {
                p50_ns: latency.value_at_quantile(0.5),
                p99_ns: latency.value_at_quantile(0.99),
                p999_ns: latency.value_at_quantile(0.999),
                max_ns: latency.max(),
                histogram: steps
                    .map(|step| LatencyStep {
                        up_to_ns: step.value_iterated_to(),
                        count: step.count_since_last_iteration(),
                    })
                    .collect(),
            },
        }
    }
}
