//! What all threads of a pager share: the page table, the stores, the kernel's side, and the ends of a page's ways.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use crate::page_table::{AfterIn, AfterOut, Claim, Freed, Freeing, PageTable, Place, Refaulting, Run, State};
use crate::ram::PAGE_SIZE;

use super::config::{EvictionMethod, PagerConfig};
use super::counters::{Counters, Source};
use super::credit::{Credit, Growth, Limits};
use super::descriptor::FaultPort;
use super::frames::Frames;
use super::homes::{Homes, Workbench};
use super::merged::Merged;
use super::page_set::PageSet;
use super::plan::View;
use super::reads::Queue;
use super::recency::Recency;
use super::sampling::Touched;
use super::signal::{Kick, Wake};
use super::waits::Waits;
use super::{OnFailure, PagerFailure};

/// Arrivals that share a stamp.
const ARRIVALS_PER_STAMP: u64 = 16;

/// What exists once a VM has been armed.
pub(super) struct Kernel {
    pub frames: Frames,
    pub port: Box<dyn FaultPort>,
    pub method: EvictionMethod,
    /// Pages in guest RAM that have no better home; those are write-protected where pages can be moved.
    pub marks: PageSet,
    pub merged: Merged,
    pub touched: Touched,
    pub recency: Recency,
}

/// See the top of this file.
pub(super) struct Paged {
    pub config: PagerConfig,
    pub table: PageTable,
    pub homes: Homes,
    pub counters: Counters,
    pub credit: Credit,
    pub waits: Waits,
    /// Held by the thread that writes compressed pages to the swap file.
    pub writing_back: Mutex<()>,
    /// What the readers of the swap file have to do.
    pub readers: Queue,
    /// Wakes the reclaimers.
    pub reclaim: Wake,
    /// Wakes the fault handler, which waits for the kernel as well.
    pub handler: Kick,
    /// Threads of this process whose faults never wait for the limit.
    exempt: Mutex<BTreeSet<i32>>,
    /// The threads that the guest runs on.
    vcpu_threads: OnceLock<Vec<i32>>,
    kernel: OnceLock<Kernel>,
    /// The VM is opened as soon as no page is out.
    // Written under the write lock of `arming` where it matters.
    pub may_open: AtomicBool,
    /// Somebody wants the VM armed all the same.
    // Alone: seen at the next look.
    pub is_held: AtomicBool,
    /// Every page of the armed VM was looked at.
    // Under the write lock of `arming`.
    pub is_classified: AtomicBool,
    /// Excludes arming and opening from what is done to an open VM behind the page table's back.
    pub arming: RwLock<()>,
    // Guards nothing: a reclaimer that misses it looks again within a second.
    guest_waits: AtomicBool,
    /// Merged pages are to be unmerged, and there is no room.
    // Guards nothing, like the one above.
    pub unmerging_waits: AtomicBool,
    /// Pages have been offered to the kernel for merging.
    // Alone: a sample later is soon enough.
    pub is_offered: AtomicBool,
    /// How long pages stay where the pool lacks memory, in milliseconds.
    // A hint, looked at once a second.
    pool_residence_ms: AtomicU64,
    // Guards nothing: threads look at it between two pages.
    stopping: AtomicBool,
    // A clock of its own: only its steps matter.
    arrivals: AtomicU64,
    on_failure: OnFailure,
}

impl Paged {
    pub fn new(config: PagerConfig, table: PageTable, homes: Homes, handler: Kick, on_failure: OnFailure) -> Self {
        Self {
            config,
            table,
            homes,
            counters: Counters::new(),
            credit: Credit::default(),
            waits: Waits::default(),
            writing_back: Mutex::default(),
            readers: Queue::default(),
            reclaim: Wake::default(),
            handler,
            exempt: Mutex::default(),
            vcpu_threads: OnceLock::new(),
            kernel: OnceLock::new(),
            may_open: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            is_classified: AtomicBool::new(false),
            arming: RwLock::default(),
            guest_waits: AtomicBool::new(false),
            unmerging_waits: AtomicBool::new(false),
            is_offered: AtomicBool::new(false),
            pool_residence_ms: AtomicU64::new(u64::MAX),
            stopping: AtomicBool::new(false),
            arrivals: AtomicU64::new(0),
            on_failure,
        }
    }

    /// Makes the kernel's side known. It stays for the life of the VM.
    pub fn connect(&self, kernel: Kernel) -> &Kernel {
        self.kernel.get_or_init(|| kernel)
    }

    /// The kernel's side, once there is one.
    pub fn connected(&self) -> Option<&Kernel> {
        self.kernel.get()
    }

    /// The kernel's side.
    pub fn kernel(&self) -> &Kernel {
        self.kernel.get().expect("pager threads and claims exist only in a VM that was armed")
    }

    /// How long a page stays where the pool lacks memory most; longer than anybody waits outside of a pool.
    pub fn pool_residence(&self) -> Duration {
        Duration::from_millis(self.pool_residence_ms.load(Ordering::Relaxed))
    }

    pub fn set_pool_residence(&self, residence: Option<Duration>) {
        let ms = residence.map_or(u64::MAX, |residence| residence.as_millis() as u64);
        self.pool_residence_ms.store(ms, Ordering::Relaxed);
    }

    /// No thread of the pager starts anything new.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Faults of this thread never wait for the limit.
    pub fn exempt(&self, thread: i32) {
        self.exempt.lock().unwrap_or_else(PoisonError::into_inner).insert(thread);
    }

    pub fn is_exempt(&self, thread: i32) -> bool {
        self.exempt.lock().unwrap_or_else(PoisonError::into_inner).contains(&thread)
    }

    /// The guest runs on these threads; the first call counts.
    pub fn set_vcpu_threads(&self, threads: Vec<i32>) {
        let _ = self.vcpu_threads.set(threads);
    }

    pub fn vcpu_threads(&self) -> &[i32] {
        self.vcpu_threads.get().map_or(&[], Vec::as_slice)
    }

    /// What a page that arrives now is stamped with: it orders pages by how many have come since.
    pub fn stamp(&self) -> u32 {
        (self.arrivals.load(Ordering::Relaxed) / ARRIVALS_PER_STAMP) as u32
    }

    /// Pages that have arrived, in total.
    pub fn arrivals(&self) -> u64 {
        self.arrivals.load(Ordering::Relaxed)
    }

    /// Whether fewer than `pages` pages have come since the stamp was given.
    pub fn is_younger(&self, stamp: u32, pages: u64) -> bool {
        u64::from(self.stamp().wrapping_sub(stamp)) * ARRIVALS_PER_STAMP < pages
    }

    /// Whether faults wait for room.
    pub fn guest_waits(&self) -> bool {
        self.guest_waits.load(Ordering::Relaxed)
    }

    /// Faults wait for room.
    pub fn set_guest_waits(&self, waits: bool) {
        self.guest_waits.store(waits, Ordering::Relaxed);
    }

    /// There may be room now: faults that wait are looked at again.
    pub fn offer_room(&self) {
        if self.guest_waits() {
            self.handler.kick();
        }
    }

    /// What can be kept to: the limit, or where pages that cannot leave take most of it, those and a quarter of it for the
    /// others. Without that the few pages a guest works with would come and go for ever.
    fn attainable_bytes(&self, limit_bytes: u64) -> u64 {
        // Where pages are copied, marks stay on pages that were written to: they are believed for a moment, once all were
        // tried again in vain.
        let stuck_pages = self
            .connected()
            .filter(|kernel| kernel.method == EvictionMethod::Move || self.credit.was_exhausted_lately())
            .map_or(0, |kernel| kernel.marks.count());
        let stuck_bytes = stuck_pages * PAGE_SIZE;
        limit_bytes.max(stuck_bytes.saturating_add(limit_bytes / 4))
    }

    /// The limits as far as they can be kept to. Firm ones are: what others give makes up for pages that cannot leave.
    fn attainable(&self) -> Limits {
        let limits = self.credit.limits();
        if limits.is_firm {
            return limits;
        }
        let attainable = |limit: Option<u64>| limit.map(|bytes| self.attainable_bytes(bytes));
        Limits {
            reclaim_to_bytes: attainable(limits.reclaim_to_bytes),
            grow_to_bytes: attainable(limits.grow_to_bytes),
            is_firm: false,
            ..limits
        }
    }

    /// May the guest grow by a page?
    pub fn ask_for_page(&self) -> Growth {
        let charge_bytes = self.charge_bytes();
        match self.credit.ask(charge_bytes, PAGE_SIZE) {
            Growth::Wait
                if self
                    .attainable()
                    .grow_to_bytes
                    .is_some_and(|limit_bytes| charge_bytes + PAGE_SIZE <= limit_bytes) =>
            {
                Growth::BeyondLimit
            }
            growth => growth,
        }
    }

    /// What eviction is decided from.
    pub fn view(&self) -> View {
        let Limits { reclaim_to_bytes, grow_to_bytes, .. } = self.attainable();
        View {
            reclaim_to_bytes,
            grow_to_bytes,
            charge_bytes: self.charge_bytes(),
            resident_pages: self.table.count(State::Resident),
            aside_pages: self.table.count(State::Aside),
        }
    }

    /// Wakes the reclaimers if pages are wanted, and some may be had.
    pub fn ask_for_room(&self) {
        if !self.credit.is_exhausted() && !self.view().plan().is_idle() {
            self.reclaim.wake();
        }
    }

    /// What resident and stored pages cost the host now.
    pub fn charge_bytes(&self) -> u64 {
        let in_memory = [
            State::Resident,
            State::Aside,
            State::Evicting,
            State::Storing,
            State::Refaulting,
            State::Dropping,
            State::Freeing,
        ];
        let pages: u64 = in_memory.into_iter().map(|state| self.table.count(state)).sum();
        let pages_bytes = pages * PAGE_SIZE;
        let cost_bytes = self.connected().map_or(pages_bytes, |kernel| kernel.merged.cost_bytes(pages_bytes));
        cost_bytes + self.homes.held_bytes()
    }

    /// Lets a reclaimer rest, unless the pager stops.
    pub fn reclaim_pause(&self, pause: Duration) {
        const SLICE: Duration = Duration::from_millis(50);
        let mut left = pause;
        while !left.is_zero() && !self.is_stopping() {
            let slice = left.min(SLICE);
            thread::sleep(slice);
            left -= slice;
        }
    }

    /// Reports that the VM cannot go on. In a VMM this does not return.
    pub fn fail(&self, failure: &PagerFailure) {
        (self.on_failure)(failure);
    }

    /// Those who wait for a page look again.
    pub fn wake(&self, gfn: u64) {
        let kernel = self.kernel();
        // Fails only where nobody can wait: in a range that is not registered any more.
        let _ = kernel.port.wake(kernel.frames.ram_address(gfn), PAGE_SIZE);
        self.waits.wake();
    }

    /// A page has come in, and is released where it was.
    pub fn finish_in(&self, claim: Claim<Refaulting>) {
        self.arrivals.fetch_add(1, Ordering::Relaxed);
        let gfn = claim.gfn();
        let Kernel { touched, recency, .. } = self.kernel();
        touched.note(gfn);
        if matches!(claim.kind().from, Place::Stored(_)) && recency.note_came(gfn) {
            self.counters.soon.add(1);
        }
        let after = self.table.finish_refault(claim, self.stamp()).expect("the claim is of this table");
        self.after_in(gfn, after);
    }

    /// A page could not be brought in and stays where it is.
    pub fn abort_in(&self, claim: Claim<Refaulting>) {
        let gfn = claim.gfn();
        let after = self.table.abort_refault(claim).expect("the claim is of this table");
        self.after_in(gfn, after);
    }

    /// What follows on a page that came in or stays.
    pub fn after_in(&self, gfn: u64, after: AfterIn) {
        match after {
            AfterIn::AtRest { wake: false } => {}
            AfterIn::AtRest { wake: true } => self.wake(gfn),
            AfterIn::Drop(claim) => self.free_one(claim),
        }
    }

    /// What follows on a page that was on its way out.
    pub fn after_out(&self, after: AfterOut, bench: &mut Workbench) {
        match after {
            AfterOut::AtRest => {}
            AfterOut::HandBack(claim) => {
                self.counters.overtaken.add(1);
                let (gfns, from) = (claim.gfn()..claim.gfn() + 1, claim.kind().from);
                match self.bring(&gfns, from, &mut bench.decompressor) {
                    Ok(()) => {
                        self.counters.came(source_of(from), None);
                        self.finish_in(claim);
                    }
                    // The claim stays unfinished: nobody must see the page as anything but in flight.
                    Err(failure) => self.fail(&failure),
                }
            }
            AfterOut::Drop(claim) => self.free_one(claim),
        }
    }

    /// Releases a page that was freed while its owner worked on it.
    pub fn free_one(&self, claim: Claim<Freeing>) {
        self.release(&(claim.gfn()..claim.gfn() + 1), claim.kind().from);
        self.finish_free(claim);
    }

    /// Pages of the host that are free once a run is released. A merged one stays its sharers'.
    pub fn freeable_pages(&self, run: &Run<Freeing>) -> u64 {
        match run.kind().from {
            Place::Resident => run.pages() - self.kernel().merged.count_in(run.gfns()),
            Place::Aside => run.pages(),
            Place::Unknown | Place::Untouched | Place::Stored(_) => 0,
        }
    }

    /// Releases pages that are given back.
    pub fn free_run(&self, run: Run<Freeing>) {
        self.release(&run.gfns(), run.kind().from);
        run.for_each(|claim| self.finish_free(claim));
        self.offer_room();
    }

    fn release(&self, gfns: &Range<u64>, from: Place) {
        let Kernel { frames, marks, merged, .. } = self.kernel();
        marks.remove_all(gfns.clone());
        let dropped = match from {
            Place::Unknown | Place::Resident => frames.drop_ram(gfns).is_ok(),
            Place::Aside => frames.drop_side(gfns).is_ok(),
            Place::Stored(stored) => {
                gfns.clone().for_each(|_| self.homes.release(stored));
                true
            }
            Place::Untouched => true,
        };
        // Not before: a look that finds a page merged keeps it so unless it is gone by then.
        merged.remove_all(gfns.clone());
        if !dropped {
            self.counters.eviction_failed.add(gfns.end - gfns.start);
        }
        self.counters.freed.add(gfns.end - gfns.start);
    }

    pub fn finish_free(&self, claim: Claim<Freeing>) {
        let gfn = claim.gfn();
        let Freed { acknowledge, wake } = self.table.finish_free(claim).expect("the claim is of this table");
        if wake {
            self.wake(gfn);
        } else if acknowledge {
            self.waits.wake();
        }
    }
}

/// Under which name a page from this place is counted.
pub(super) fn source_of(from: Place) -> Source {
    use crate::page_table::Stored;
    match from {
        Place::Unknown | Place::Untouched => Source::FirstTouch,
        Place::Resident | Place::Aside => Source::Aside,
        Place::Stored(Stored::Zero) => Source::Zero,
        Place::Stored(Stored::Duplicate(_)) => Source::Duplicate,
        Place::Stored(Stored::Compressed(_)) => Source::Compressed,
        Place::Stored(Stored::Swapped(_)) => Source::Swapped,
    }
}
