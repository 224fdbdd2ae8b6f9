//! The few numbers that are looked at many times a second.

use std::sync::atomic::Ordering;

use crate::page_table::State;

use super::counters::Source;
use super::paged::Paged;

/// What a VM uses and what that costs it, as of now; totals count up from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PagerUsage {
    /// Page faults are answered by the pager. If not, nothing is known of the pages.
    pub is_armed: bool,
    /// Guest execution waits for room to grow.
    pub is_waiting: bool,
    /// Merged pages wait for room to be unmerged.
    pub unmerging_waits: bool,
    /// No page can leave any more.
    pub is_exhausted: bool,
    /// What resident and stored pages cost the host.
    pub charge_bytes: u64,
    /// What of that others come to cost by pages that are merged with theirs no more, until they know.
    pub owed_bytes: u64,
    /// Pages of guest RAM that hold anything, wherever they are.
    pub touched_pages: u64,
    /// Pages in guest RAM.
    pub resident_pages: u64,
    /// Pages stored as zero.
    pub zero_pages: u64,
    /// Pages stored as a reference to another's content.
    pub duplicate_pages: u64,
    /// Host memory that the compressed store and the index of contents hold.
    pub stored_bytes: u64,
    /// Pages in the swap file.
    pub swapped_pages: u64,
    /// Pages that were asked for and came back from where they were stored, in total.
    pub refaulted_pages: u64,
    /// Faults on stored pages that had to wait for room, in total.
    pub waited_refaults: u64,
    /// Time from reading a fault to its answer, over all faults.
    pub stall_ns: u64,
    /// Of that, over faults on pages that were stored.
    pub refault_stall_ns: u64,
    /// Pages that found a home outside guest RAM, in total.
    pub evicted_pages: u64,
    /// Pages written to the swap file, in total.
    pub written_pages: u64,
    /// Growth granted beyond the limit, in total.
    pub over_limit_pages: u64,
}

impl Paged {
    pub fn usage(&self) -> PagerUsage {
        let count = |state| self.table.count(state);
        let counters = &self.counters;
        let resident_pages = count(State::Resident);
        let stored_pages: u64 = State::ALL.into_iter().filter(|state| state.is_stored()).map(count).sum();
        let in_flight_pages: u64 = State::ALL.into_iter().filter(|state| state.is_transient()).map(count).sum();
        PagerUsage {
            is_armed: self.table.is_armed(),
            is_waiting: self.guest_waits(),
            unmerging_waits: self.unmerging_waits.load(Ordering::Relaxed),
            is_exhausted: self.credit.is_exhausted(),
            charge_bytes: self.charge_bytes(),
            owed_bytes: self.connected().map_or(0, |kernel| kernel.merged.owed_bytes()),
            touched_pages: resident_pages + count(State::Aside) + stored_pages + in_flight_pages,
            resident_pages,
            zero_pages: count(State::Zero),
            duplicate_pages: count(State::Duplicate),
            stored_bytes: self.homes.held_bytes(),
            swapped_pages: count(State::Swapped),
            refaulted_pages: [Source::Zero, Source::Duplicate, Source::Compressed, Source::Swapped]
                .into_iter()
                .map(|source| counters.pages(source))
                .sum(),
            waited_refaults: counters.refaults_waited.get(),
            stall_ns: counters.stall_ns(),
            refault_stall_ns: counters.refault_stall_ns(),
            evicted_pages: [&counters.zero, &counters.duplicate, &counters.compressed, &counters.swapped]
                .into_iter()
                .map(|counter| counter.get())
                .sum(),
            written_pages: counters.swapped.get() + counters.written_back.get(),
            over_limit_pages: counters.over_limit_pages.get(),
        }
    }
}
