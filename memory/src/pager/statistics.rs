//! What the pager has done and holds, for people and programs to read.

use serde::Serialize;

use crate::store::compressed::CompressedStatistics;
use crate::store::duplicate::DuplicateStatistics;
use crate::store::swap::SwapStatistics;

/// Everything the pager counts. Counts go up from the VM's start; what is held is as of now. Numbers are taken one after
/// the other while the guest runs: sums may be off by what was in motion.
#[derive(Debug, Clone, Serialize)]
pub struct PagerStatistics {
    /// Page faults are answered by the pager.
    pub armed: bool,
    /// How pages leave guest RAM: `move` or `copy`; `None` before the VM is armed.
    pub eviction: Option<&'static str>,
    /// What resident and stored pages may cost the host, if there is a limit.
    pub resident_limit_bytes: Option<u64>,
    /// What they do cost: guest RAM, side mapping, compressed store and the index of contents.
    pub charge_bytes: u64,
    /// Pages of guest RAM.
    pub ram_pages: u64,
    /// Pages by state.
    pub pages: PageCounts,
    /// The compressed store.
    pub compressed: CompressedStatistics,
    /// Memory it holds for each byte stored; `None` when nothing is.
    pub compressed_ratio: Option<f64>,
    /// Contents shared by several stored pages.
    pub duplicates: DuplicateStatistics,
    /// The swap file, if there is one.
    pub swap: Option<SwapStatistics>,
    /// Bytes of the disk it holds for each byte stored; `None` when nothing is.
    pub swap_ratio: Option<f64>,
    /// Pages that came into guest RAM.
    pub refaults: RefaultStatistics,
    /// Pages that left it.
    pub evictions: EvictionStatistics,
    /// What went wrong.
    pub failures: FailureStatistics,
}

/// Pages by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PageCounts {
    /// Nothing is known of them: all pages of an open VM.
    pub unknown: u64,
    /// Never written, or given back.
    pub untouched: u64,
    /// In guest RAM.
    pub resident: u64,
    /// Of those, pages that do not compress, have no swap file to go to, and have not been written since that was found.
    pub incompressible: u64,
    /// In the side mapping.
    pub aside: u64,
    /// Stored as zero.
    pub zero: u64,
    /// Stored as a reference to another page's content.
    pub duplicate: u64,
    /// Stored compressed.
    pub compressed: u64,
    /// Stored in the swap file.
    pub swapped: u64,
    /// On their way from one to another.
    pub in_flight: u64,
}

/// Pages that came into guest RAM, by where they came from.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RefaultStatistics {
    /// Pages that held nothing.
    pub first_touch: SourceStatistics,
    /// From the side mapping.
    pub aside: SourceStatistics,
    /// Zero pages.
    pub zero: SourceStatistics,
    /// Pages whose content others share.
    pub duplicate: SourceStatistics,
    /// From the compressed store.
    pub compressed: SourceStatistics,
    /// From the swap file.
    pub swapped: SourceStatistics,
    /// Faults on pages that were in flight or there already.
    pub joined: u64,
    /// Faults that waited because the limit was reached.
    pub waited: u64,
    /// Pages that came back within 10 s of being stored, or a little more.
    pub soon: u64,
    /// Time from reading a fault to its answer, summed over all faults.
    pub stall_ns: u64,
}

/// Pages from one source.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SourceStatistics {
    /// Pages that were asked for by a fault or a pin.
    pub pages: u64,
    /// Pages brought along with one that was asked for.
    pub around_pages: u64,
    /// Time from reading the fault to the page being there.
    pub latency: LatencyStatistics,
}

/// A latency distribution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LatencyStatistics {
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Longest.
    pub max_ns: u64,
    /// The histogram: upper ends of its filled steps, and how many fell into each.
    pub histogram: Vec<LatencyStep>,
}

/// One step of a latency histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LatencyStep {
    /// The longest time of this step.
    pub up_to_ns: u64,
    /// How many fell into it.
    pub count: u64,
}

/// Pages that left guest RAM, and what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EvictionStatistics {
    /// Moved or copied aside.
    pub aside: u64,
    /// Merged pages that were unmerged to be moved.
    pub unmerged: u64,
    /// Stored as zero.
    pub zero: u64,
    /// Stored as a reference to another's content.
    pub duplicate: u64,
    /// Stored compressed.
    pub compressed: u64,
    /// Written to the swap file straight from aside.
    pub swapped: u64,
    /// Written to the swap file from the compressed store.
    pub written_back: u64,
    /// Put back because they do not compress and there is no room in a swap file.
    pub incompressible: u64,
    /// Handed back because somebody touched them on the way.
    pub overtaken: u64,
    /// Of those stored, pages that had come back within the last 10 s, or a little more.
    pub again: u64,
    /// Given back by balloon, free page reporting or discard.
    pub freed: u64,
    /// Found zero where they were, and given back.
    pub zero_freed: u64,
    /// Merged pages that the guest has written to.
    pub broken: u64,
}

/// What went wrong. Nothing here loses a page: that would have ended the VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FailureStatistics {
    /// Pages that the kernel could not move at the time (`EBUSY`).
    pub busy: u64,
    /// Pages left where they were because a call to the kernel failed.
    pub eviction: u64,
    /// Failed calls while answering faults that were tried again.
    pub retried: u64,
    /// Pages the compressed store had no memory for.
    pub store_full: u64,
    /// Writes to the swap file that failed.
    pub swap_write: u64,
    /// Writes for which the swap file had no room.
    pub swap_full: u64,
    /// Growth granted beyond the limit, because nothing more could be evicted.
    pub over_limit_pages: u64,
    /// Growth granted beyond the limit to devices, which do not wait. It is evicted again.
    pub device_pages: u64,
}
