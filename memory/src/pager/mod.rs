//! The pager: pages leave guest RAM, are stored, and come back when they are touched.
//!
//! - [`Pager`] is what the VMM holds; [`crate::GuestRam`] reaches it for discards and pins.
//! - `paged` is what its threads share; `arming` brings it between guest and kernel.
//! - `handler` answers faults, `fetcher` those on pages in the swap file; both bring pages back by `refault`.
//! - `reclaimer` decides by `plan` and `hands` which pages go, `evict` moves them aside and `store` into one of the `homes`.
//!
//! # Locks
//! The page table's words are the only synchronisation on pages. `arming` is taken first where it is taken; the locks of
//! stores, counters, hands, queues and wake-ups are leaves: none is held while another is taken, over I/O, or while
//! somebody is waited for.

mod affinity;
mod arming;
mod classify;
mod cold;
mod config;
mod counters;
mod credit;
mod descriptor;
mod evict;
mod fetcher;
mod frames;
mod handler;
mod hands;
mod homes;
mod merged;
mod moved;
mod pace;
mod page_set;
mod paged;
mod pinning;
mod plan;
mod reads;
mod recency;
mod reclaimer;
mod refault;
mod returns;
mod sampling;
mod saving;
mod scan;
mod signal;
mod statistics;
mod store;
mod streams;
#[cfg(all(test, not(loom)))]
mod tests;
mod threads;
mod usage;
mod waits;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use config::{EvictionMethod, PagerConfig};
pub use credit::Limits;
pub use merged::{Mergeable, MergedPages};
pub use sampling::{Sample, Touches};
pub use scan::{Found, Scan, Sight};
pub use statistics::{
    EvictionStatistics, FailureStatistics, LatencyStatistics, LatencyStep, PageCounts, PagerStatistics,
    RefaultStatistics, SourceStatistics,
};
pub use usage::PagerUsage;

use crate::mapping::{Mapping, MappingError};
use crate::page_table::{PageTable, PageTableError, State};
use crate::ram::{GuestRam, Paging, RamError};
use crate::store::codec::CodecError;
use crate::store::swap::OpenError;
use crate::userfault::UserfaultError;

use descriptor::{Descriptor, FaultPort};
use evict::Choice;
use fetcher::Fetcher;
use handler::Handler;
use hands::Hands;
use homes::{Homes, Swap, Workbench};
use paged::{Kernel, Paged};
use plan::store_part_bytes;
use reclaimer::{Progress, Reclaimer};
use signal::Kick;
use store::Storer;

/// Why guest memory cannot be paged.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// There is no userfaultfd.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// There is no swap file.
    #[error(transparent)]
    Swap(#[from] OpenError),
    /// No memory for the page table.
    #[error(transparent)]
    PageTable(#[from] PageTableError),
    /// No address space for the side mapping.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The codec cannot be set up.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Pages cannot be moved here.
    #[error("/dev/userfaultfd: this kernel cannot move pages (Linux 6.8): leave out '--eviction move'")]
    NoMove,
    /// Pages cannot be write-protected here.
    #[error("/dev/userfaultfd: this kernel cannot write-protect pages (Linux 5.7)")]
    NoWriteProtect,
    /// What is in guest RAM cannot be found out.
    #[error("/proc/self/pagemap: {cause}")]
    Classify {
        /// What the kernel said.
        cause: io::Error,
    },
    /// A thread or an eventfd cannot be had.
    #[error("pager: {what}: {cause}")]
    System {
        /// What was asked of the kernel.
        what: &'static str,
        /// What it said.
        cause: io::Error,
    },
}

/// Why a VM cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PagerFailure {
    /// The content of a page cannot be brought back.
    #[error("page {gfn:#x} is lost: {cause}")]
    Lost {
        /// Guest frame number.
        gfn: u64,
        /// What happened to it.
        cause: String,
    },
    /// A thread has panicked: pages are in flight for ever.
    #[error("pager: thread {name} has died")]
    Thread {
        /// Its name.
        name: String,
    },
    /// Faults cannot be read any more.
    #[error("/dev/userfaultfd: reading faults: {cause}")]
    Descriptor {
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Called when a VM cannot go on, on a thread of the pager's. It says so and ends the process without closing anything: a
/// closed userfaultfd would wake the waiters onto zero pages.
pub type OnFailure = Box<dyn Fn(&PagerFailure) + Send + Sync>;

/// The pager of one VM.
pub struct Pager {
    ram: Arc<GuestRam>,
    paged: Arc<Paged>,
    /// Held while threads are started or stopped.
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    reclaimers: Vec<JoinHandle<()>>,
    fetchers: Vec<JoinHandle<()>>,
    handler: JoinHandle<()>,
}

impl fmt::Debug for Pager {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pager").field("armed", &self.paged.table.is_armed()).finish_non_exhaustive()
    }
}

impl Pager {
    /// A pager for `ram`, which stays open: nothing is registered, no thread runs, until there is a limit.
    ///
    /// # Errors
    /// [`PagerError::Swap`] and [`PagerError::PageTable`].
    pub fn new(ram: Arc<GuestRam>, config: PagerConfig, on_failure: OnFailure) -> Result<Arc<Self>, PagerError> {
        let swap = match &config.swap_folder {
            Some(folder) => Some(Swap::open_through(folder, config.swap_limit_bytes, From::from)?),
            None => None,
        };
        let pages = ram.regions().last().map_or(0, |region| region.gfns().end);
        let kick = Kick::new().map_err(|cause| PagerError::System { what: "eventfd", cause })?;
        let homes = Homes::new(&config, swap);
        let paged = Paged::new(config, PageTable::new(pages)?, homes, kick, on_failure);
        let pager = Arc::new(Self { ram, paged: Arc::new(paged), threads: Mutex::new(None) });
        let paging: Arc<dyn Paging> = pager.clone();
        pager.ram.attach(Arc::downgrade(&paging));
        Ok(pager)
    }

    /// How long a page stays in the RAM of that guest, of those that share this one's memory, which lacks it most: compressed
    /// pages that are worth less go on to the swap file ([`Tiers`](crate::policy::tiers::Tiers)). `None`: no page comes back
    /// anywhere.
    pub fn set_pool_residence(&self, residence: Option<Duration>) {
        self.paged.set_pool_residence(residence);
    }

    /// Limits what resident and stored pages may cost the host, and arms the VM; without any limit it is opened again when
    /// no page is out. Where pages leave and there is a swap file, the compressed store takes a part of what the VM may cost
    /// (`plan`).
    ///
    /// # Errors
    /// [`PagerError`] when the VM cannot be armed; the limits are unchanged then.
    pub fn set_limits(&self, limits: Limits) -> Result<(), PagerError> {
        let paged = &self.paged;
        let is_limited = limits.reclaim_to_bytes.is_some() || limits.grow_to_bytes.is_some();
        let before = paged.credit.limits();
        if is_limited && limits == before {
            return Ok(());
        }
        if is_limited {
            self.arm()?;
        } else {
            paged.may_open.store(true, Ordering::Relaxed);
        }
        let store_limit_bytes = match limits.grow_to_bytes {
            Some(bytes) if paged.homes.swap.is_some() => paged.config.store_limit_bytes.min(store_part_bytes(bytes)),
            _ => paged.config.store_limit_bytes,
        };
        paged.homes.compressed.set_limit_bytes(store_limit_bytes);
        let concerns_all = !is_limited || paged.credit.is_exhausted();
        paged.credit.set_limits(limits);
        // A pool changes limits ten times a second: of many VMs nobody wakes for what leaves him nothing to do.
        if concerns_all || limits.takes_from(&before) {
            paged.reclaim.wake();
        }
        if concerns_all || limits.gives_to(&before) {
            paged.handler.kick();
        }
        Ok(())
    }

    /// The limits now.
    pub fn limits(&self) -> Limits {
        self.paged.credit.limits()
    }

    /// What the VM uses now. Cheap, unlike [`Pager::statistics`].
    pub fn usage(&self) -> PagerUsage {
        self.paged.usage()
    }

    /// Whether a range of this process's addresses is guest memory: RAM, or pages aside.
    pub fn holds_guest_memory(&self, address: u64) -> bool {
        let contains = |mapping: &Mapping| (mapping.address()..mapping.address() + mapping.bytes()).contains(&address);
        contains(self.ram.mapping()) || self.paged.connected().is_some_and(|kernel| contains(kernel.frames.side()))
    }

    /// Lets the pager answer this VM's faults from now on, until a limit is lifted.
    ///
    /// # Errors
    /// [`PagerError`]; the VM is open then.
    pub fn arm(&self) -> Result<(), PagerError> {
        self.arm_through(|descriptor| Box::new(descriptor))
    }

    fn arm_through(&self, port: impl FnOnce(Descriptor) -> Box<dyn FaultPort>) -> Result<(), PagerError> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.is_none() {
            // Threads that start now would end at once, and nobody answer.
            if self.paged.is_stopping() {
                return Err(PagerError::System { what: "arming", cause: io::Error::other("the pager has ended") });
            }
            if self.paged.connected().is_none() {
                self.paged.connect(Kernel::open(&self.ram, self.paged.config.eviction, port)?);
            }
            // Before the first fault can come. If not all can be had, those that run end: there is no paging then.
            *threads = Some(self.start_threads().inspect_err(|_| {
                self.paged.stop();
                self.paged.reclaim.wake();
                self.paged.readers.close();
                self.paged.handler.kick();
            })?);
        }
        drop(threads);
        self.paged.arm()
    }

    fn start_threads(&self) -> Result<Threads, PagerError> {
        let failed = |cause| PagerError::System { what: "starting a thread", cause };
        let paged = &self.paged;
        let handler = threads::start("pager", paged, |paged| Handler::new(Arc::clone(paged)).run()).map_err(failed)?;
        let mut fetchers = Vec::new();
        for number in 0..if paged.homes.swap.is_some() { fetcher::THREADS } else { 0 } {
            let body = |paged: &Arc<Paged>| Fetcher::new(Arc::clone(paged)).run();
            fetchers.push(threads::start(&format!("fetch{number}"), paged, body).map_err(failed)?);
        }
        let progress = Arc::new(Mutex::new(Progress::new(Hands::new(
            self.ram.regions().iter().map(|region| region.gfns()).collect(),
        ))));
        let percent = paged.config.reclaim_cpu_percent.max(1);
        let count = percent.div_ceil(100);
        let mut reclaimers = Vec::new();
        for number in 0..count {
            let (bench, progress) = (Workbench::new(&paged.config)?, Arc::clone(&progress));
            let body = move |paged: &Arc<Paged>| {
                Reclaimer::new(Arc::clone(paged), progress, bench, percent.div_ceil(count)).run();
            };
            reclaimers.push(threads::start(&format!("reclaim{number}"), paged, body).map_err(failed)?);
        }
        Ok(Threads { reclaimers, fetchers, handler })
    }

    /// Moves pages aside, whatever their age: those of the range that are in guest RAM, not pinned and not found
    /// incompressible. Returns how many went. Nothing happens in an open VM.
    ///
    /// # Errors
    /// [`PagerError::Codec`] when there is no memory for a codec.
    pub fn evict(&self, gfns: Range<u64>) -> Result<u64, PagerError> {
        let mut bench = Workbench::new(&self.paged.config)?;
        Ok(if self.paged.table.is_armed() { self.paged.move_aside(gfns, Choice::ANY, &mut bench) } else { 0 })
    }

    /// Stores the pages of a range that are aside. Returns how many have found a home.
    ///
    /// # Errors
    /// [`PagerError::Codec`] when there is no memory for a codec.
    pub fn store(&self, gfns: Range<u64>) -> Result<u64, PagerError> {
        let mut bench = Workbench::new(&self.paged.config)?;
        if !self.paged.table.is_armed() {
            return Ok(0);
        }
        let mut storer = Storer::default();
        storer.store(&self.paged, gfns, &mut bench);
        Ok(storer.finish(&self.paged, &mut bench).stored)
    }

    /// Writes up to `pages` of the compressed store's oldest pages to the swap file. Returns how many went.
    ///
    /// # Errors
    /// [`PagerError::Codec`] when there is no memory for a codec.
    pub fn write_back(&self, pages: usize) -> Result<u64, PagerError> {
        let mut bench = Workbench::new(&self.paged.config)?;
        Ok(Storer::write_back(&self.paged, pages, u64::MAX, &mut bench))
    }

    /// Begins a period of watching what the guest touches: up to `pages` random pages of guest RAM are moved aside, and pages
    /// that come are counted from now on. An open VM is armed.
    ///
    /// # Errors
    /// [`PagerError`].
    pub fn begin_sample(&self, pages: usize) -> Result<Sample, PagerError> {
        if !self.paged.table.is_armed() {
            self.arm()?;
        }
        Ok(self.paged.begin_sample(pages, &mut Workbench::new(&self.paged.config)?))
    }

    /// Gives pages of a sample back that were not touched, where the kernel is to merge them and none has to leave.
    ///
    /// # Errors
    /// [`PagerError::Codec`] when there is no memory for a codec.
    pub fn return_sample(&self, sample: &Sample) -> Result<(), PagerError> {
        if self.paged.connected().is_some() && self.paged.wants_untouched() {
            self.paged.return_untouched(sample, &mut Workbench::new(&self.paged.config)?);
        }
        Ok(())
    }

    /// What came of a sample so far: the period goes on until the next begins.
    pub fn touches(&self, sample: &Sample) -> Touches {
        self.paged.connected().map_or_else(Touches::default, |_| self.paged.touches(sample))
    }

    /// Watches no longer, until the next [`Pager::begin_sample`].
    pub fn end_sample(&self) {
        self.paged.end_sample();
    }

    /// Faults of this thread, named by its kernel id, never wait for the limit: what runs there must go on when memory is
    /// needed most, and is bounded by other means.
    pub fn exempt_thread(&self, thread: i32) {
        self.paged.exempt(thread);
    }

    /// The guest runs on these threads, named by their kernel ids: faults are answered near them.
    pub fn set_vcpu_threads(&self, threads: Vec<i32>) {
        self.paged.set_vcpu_threads(threads);
    }

    /// Keeps the VM armed although it has no limit, until told otherwise; it must be armed for that.
    pub fn hold_armed(&self, is_held: bool) {
        self.paged.is_held.store(is_held, Ordering::Relaxed);
    }

    /// Whether equal pages that are stored from now on are stored once.
    pub fn share_stored(&self, is_shared: bool) {
        self.paged.homes.shares.store(is_shared, Ordering::Relaxed);
    }

    /// What was counted so far, and what is held now.
    pub fn statistics(&self) -> PagerStatistics {
        let paged = &self.paged;
        let count = |state| paged.table.count(state);
        let ram_pages: u64 = self.ram.regions().iter().map(|region| region.gfns().end - region.gfns().start).sum();
        let known: u64 = State::ALL[1..].iter().map(|&state| count(state)).sum();
        let compressed = paged.homes.compressed.statistics();
        let swap = paged.homes.swap.as_ref().map(Swap::statistics);
        PagerStatistics {
            armed: paged.table.is_armed(),
            eviction: paged.connected().map(|kernel| kernel.method.name()),
            resident_limit_bytes: paged.credit.limits().grow_to_bytes,
            charge_bytes: paged.charge_bytes(),
            ram_pages,
            pages: PageCounts {
                unknown: ram_pages.saturating_sub(known),
                untouched: count(State::Untouched),
                resident: count(State::Resident),
                incompressible: paged.connected().map_or(0, |kernel| kernel.marks.count()),
                aside: count(State::Aside),
                zero: count(State::Zero),
                duplicate: count(State::Duplicate),
                compressed: count(State::Compressed),
                swapped: count(State::Swapped),
                in_flight: State::ALL.iter().filter(|state| state.is_transient()).map(|&state| count(state)).sum(),
            },
            compressed_ratio: compressed.ratio(),
            compressed,
            duplicates: paged.homes.index.statistics(),
            swap_ratio: swap.and_then(|swap| swap.ratio()),
            swap,
            refaults: paged.counters.refaults(),
            evictions: paged.counters.evictions(),
            failures: paged.counters.failures(),
        }
    }

    /// The VM is ending: nobody waits for the limit any more.
    pub fn release(&self) {
        self.paged.credit.release();
        self.paged.handler.kick();
    }

    /// Stops all threads. Everybody who touches guest RAM is gone by now: faults were answered until here.
    pub fn shut_down(&self) {
        self.release();
        let Some(threads) = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.paged.stop();
        self.paged.reclaim.wake();
        // A thread that has panicked has reported it.
        threads.reclaimers.into_iter().for_each(|thread| drop(thread.join()));
        self.paged.readers.close();
        threads.fetchers.into_iter().for_each(|thread| drop(thread.join()));
        self.paged.handler.kick();
        drop(threads.handler.join());
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Paging for Pager {
    fn discard(&self, gfns: Range<u64>) -> Result<u64, RamError> {
        let paged = &self.paged;
        {
            let _open = paged.arming.read().unwrap_or_else(PoisonError::into_inner);
            if !paged.table.is_armed() {
                return self.ram.drop_pages(gfns).map(|()| 0);
            }
        }
        let runs = paged.table.begin_free_run(gfns.clone()).expect("the range is RAM");
        let mut given_pages = 0;
        for run in runs {
            given_pages += paged.freeable_pages(&run);
            paged.free_run(run);
        }
        // Pages in flight are released by their owners, who need nothing from here.
        let is_pending = |gfn| paged.table.is_discard_pending(gfn).expect("the range is RAM");
        for gfn in gfns {
            while is_pending(gfn) {
                let noted = paged.waits.note();
                if is_pending(gfn) {
                    paged.waits.wait(noted);
                }
            }
        }
        Ok(given_pages)
    }

    fn pin(&self, gfns: Range<u64>) -> Result<(), PageTableError> {
        self.paged.pin(gfns)
    }

    fn unpin(&self, gfns: Range<u64>) {
        self.paged.unpin(gfns);
    }
}
