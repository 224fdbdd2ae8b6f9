//! The pager over real userfaultfds and real files. The guest is a thread that touches guest RAM.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cold;
mod disk;
mod faults;
mod life;
mod limit;
mod lost;
mod merged;
mod port;
mod sampling;
mod storm;
mod zeroes;

use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cistern_probe::content::Kind;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use port::{FaultyPort, Plan};

use crate::PAGE_SIZE;
use crate::store::{PAGE_BYTES, Page, samples};

const MIB: u64 = 1 << 20;

/// Both ways out of guest RAM; the first only where the kernel has it.
fn methods() -> Vec<EvictionMethod> {
    let support = crate::UserfaultSupport::probe().unwrap();
    let mut methods = vec![EvictionMethod::Copy];
    if support.move_pages {
        methods.push(EvictionMethod::Move);
    }
    methods
}

/// A folder for a swap file on a disk: the build's own.
fn disk() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

struct Guest {
    ram: Arc<GuestRam>,
    pager: Arc<Pager>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Guest {
    fn new(ranges: &[Range<u64>], config: PagerConfig) -> Self {
        let failures = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&failures);
        let on_failure = move |failure: &PagerFailure| {
            // The thread whose page it is waits for ever: this says why.
            eprintln!("{failure}");
            seen.lock().unwrap().push(failure.to_string());
        };
        Self { failures, ..Self::ending_by(ranges, config, Box::new(on_failure)) }
    }

    fn ending_by(ranges: &[Range<u64>], config: PagerConfig, on_failure: OnFailure) -> Self {
        let ram = GuestRam::new(ranges).unwrap();
        let pager = Pager::new(Arc::clone(&ram), config, on_failure).unwrap();
        Self { ram, pager, failures: Arc::default() }
    }

    /// Lets the pager ask a kernel that fails as planned.
    fn arm_through(&self, plan: &Arc<Plan>) {
        let plan = Arc::clone(plan);
        self.pager.arm_through(|real| Box::new(FaultyPort::over(real, plan))).unwrap();
    }

    fn write(&self, gfn: u64, page: &Page) {
        self.ram.memory().write_slice(page, GuestAddress(gfn * PAGE_SIZE)).unwrap();
    }

    fn read(&self, gfn: u64) -> Page {
        let mut page = [0; PAGE_BYTES];
        self.ram.memory().read_slice(&mut page, GuestAddress(gfn * PAGE_SIZE)).unwrap();
        page
    }

    fn state(&self, gfn: u64) -> State {
        self.pager.paged.table.page(gfn).unwrap().state
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut holds: impl FnMut(&PagerStatistics) -> bool) -> PagerStatistics {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let statistics = self.pager.statistics();
            if holds(&statistics) {
                return statistics;
            }
            assert!(Instant::now() < deadline, "{what}: {statistics:#?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The statistics once no page is in motion: a thread goes on before the pager has noted that its page came.
    fn at_rest(&self) -> PagerStatistics {
        self.wait_until("at rest", |statistics| statistics.pages.in_flight == 0)
    }

    fn evict(&self, gfns: Range<u64>) -> u64 {
        self.at_rest();
        self.pager.evict(gfns).unwrap()
    }

    fn store(&self, gfns: Range<u64>) -> u64 {
        self.pager.store(gfns).unwrap()
    }

    /// Ends the process, and so the test, when `body` hangs: nobody can take a thread that waits in the kernel out of there.
    fn in_time<R>(&self, patience: Duration, body: impl FnOnce() -> R) -> R {
        let (end, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                    // Not by a macro: the harness keeps what those print until the test ends.
                    let failures = self.failures.lock().unwrap();
                    let _ = writeln!(io::stderr(), "a thread hangs: {failures:?}, {:#?}", self.pager.statistics());
                    std::process::abort();
                }
            });
            let _end = end;
            body()
        })
    }

    /// What passes at once on a machine that is not stuck.
    fn soon<R>(&self, body: impl FnOnce() -> R) -> R {
        self.in_time(Duration::from_secs(60), body)
    }

    #[track_caller]
    fn check_no_failure(&self) {
        assert_eq!(*self.failures.lock().unwrap(), [""; 0]);
    }
}

/// One page of each sort: nothing, shared content, compressible, not compressible.
fn page_of(gfn: u64, version: u64) -> Page {
    match gfn % 4 {
        0 if version == 0 => [0; PAGE_BYTES],
        1 if version == 0 => samples::page(Kind::Text, 7),
        3 => samples::page(Kind::Random, (gfn + version * 100_000) as u32),
        _ => samples::page(Kind::Text, (gfn + version * 100_000) as u32),
    }
}

fn with_swap(eviction: EvictionMethod) -> PagerConfig {
    // Text of the probe's needs up to 0.55 of a page.
    PagerConfig {
        swap_folder: Some(disk()),
        eviction: Some(eviction),
        compressed_limit_bytes: PAGE_BYTES * 3 / 4,
        ..PagerConfig::default()
    }
}

/// Without a swap file.
fn in_memory(eviction: EvictionMethod) -> PagerConfig {
    PagerConfig { swap_folder: None, ..with_swap(eviction) }
}
