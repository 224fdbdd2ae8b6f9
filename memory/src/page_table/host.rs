//! A small host beside the page table, for tests: guest RAM, side mapping and stores of a few pages, and threads that
//! do to them what pager, workers, guest and devices do. Every act on memory asserts what the kernel or a store would
//! punish: a second mover, a hole, a full slot, a stale copy.
//!
//! Homes outside guest RAM are plain memory, so that under loom a missing order between two owners is a data race.
//! Guest RAM is read and changed by relaxed read-modify-writes: the kernel makes them atomic, and they order nothing.

#![allow(clippy::unwrap_used)]

#[cfg(loom)]
use loom::{
    sync::atomic::AtomicU64,
    sync::{Condvar, Mutex},
    thread,
};
use std::sync::atomic::Ordering::Relaxed;
#[cfg(not(loom))]
use std::{
    sync::atomic::AtomicU64,
    sync::{Condvar, Mutex},
    thread,
};

use super::*;

const PRESENT: u64 = 1;
const PROTECTED: u64 = 2;
const VERSION_SHIFT: u32 = 2;

/// A place for one page outside guest RAM.
struct Home(plain::Plain);

impl Home {
    fn new() -> Self {
        Self(plain::Plain::new(0))
    }

    fn put(&self, version: u64) {
        let before = self.0.replace(version + 1);
        assert_eq!(before, 0, "a page was put where another is");
    }

    fn take(&self) -> u64 {
        self.0.replace(0).checked_sub(1).expect("a page was taken from where none is")
    }

    fn read(&self) -> u64 {
        self.0.get().checked_sub(1).expect("a page was read where none is")
    }

    fn is_empty(&self) -> bool {
        self.0.get() == 0
    }
}

struct HostPage {
    ram: AtomicU64,
    side: Home,
    compressed: Home,
    swapped: Home,
}

pub struct Host {
    pub table: PageTable,
    pages: Vec<HostPage>,
    /// Counts wake-ups.
    wakes: Mutex<u64>,
    woken: Condvar,
}

impl Host {
    pub fn new(pages: u64) -> Self {
        let page =
            |_| HostPage { ram: AtomicU64::new(0), side: Home::new(), compressed: Home::new(), swapped: Home::new() };
        let table = PageTable::new(pages).expect("a small table");
        table.arm();
        Self { table, pages: (0..pages).map(page).collect(), wakes: Mutex::new(0), woken: Condvar::new() }
    }

    fn at(&self, gfn: u64) -> &HostPage {
        &self.pages[gfn as usize]
    }

    // The guest and the devices.

    /// The guest writes a page.
    pub fn write(&self, gfn: u64, version: u64) {
        while !self.write_if_mapped(gfn, version, PROTECTED) {
            self.fault(gfn);
        }
    }

    fn write_if_mapped(&self, gfn: u64, version: u64, forbidden: u64) -> bool {
        self.at(gfn)
            .ram
            .fetch_update(Relaxed, Relaxed, |now| {
                (now & PRESENT != 0 && now & forbidden == 0)
                    .then_some(now & (PRESENT | PROTECTED) | version << VERSION_SHIFT)
            })
            .is_ok()
    }

    /// The guest reads a page.
    pub fn read(&self, gfn: u64) -> u64 {
        loop {
            let now = self.at(gfn).ram.fetch_or(0, Relaxed);
            if now & PRESENT != 0 {
                return now >> VERSION_SHIFT;
            }
            self.fault(gfn);
        }
    }

    /// The kernel maps a page in an open VM.
    pub fn populate(&self, gfn: u64, version: u64) {
        self.at(gfn).ram.swap(PRESENT | version << VERSION_SHIFT, Relaxed);
    }

    /// The fault handler, and the faulting thread until it is woken. True when the page is in guest RAM now, and stays if
    /// it is pinned.
    pub fn fault(&self, gfn: u64) -> bool {
        let wakes = self.wakes();
        let next = match self.table.begin_refault(gfn).unwrap() {
            RefaultNext::FirstTouch => self.table.touch_first(gfn).unwrap(),
            next => next,
        };
        match next {
            RefaultNext::Won(claim) => self.bring_in(claim),
            RefaultNext::Joined => {
                self.wait(wakes);
                false
            }
            RefaultNext::Present => {
                thread::yield_now();
                true
            }
            RefaultNext::FirstTouch => panic!("touch_first asks for a first touch"),
        }
    }

    /// A device writes a page while it holds its frame: protection does not stop it. `may_vanish`: the guest frees pages
    /// under the device.
    pub fn pinned_write(&self, gfn: u64, version: u64, may_vanish: bool) {
        let wakes = self.wakes();
        let there = match self.table.pin(gfn).unwrap() {
            PinNext::Pinned => true,
            PinNext::FirstTouch => false,
            PinNext::BringBack(claim) => self.bring_in(claim),
            PinNext::Wait => {
                self.wait(wakes);
                false
            }
        };
        while !there && !self.fault(gfn) {}
        let written = self.write_if_mapped(gfn, version, 0);
        assert!(written || may_vanish, "a pinned page is not in guest RAM");
        thread::yield_now();
        let there = self.at(gfn).ram.fetch_or(0, Relaxed) & PRESENT != 0;
        assert!(there || may_vanish, "a pinned page was taken out of guest RAM");
        self.table.unpin(gfn).unwrap();
    }

    /// The balloon gives a page back and returns when that may be acknowledged.
    pub fn free(&self, gfn: u64) {
        let mut wakes = self.wakes();
        match self.table.begin_free(gfn).unwrap() {
            FreeNext::Won(claim) => self.release(claim),
            FreeNext::Nothing => {}
            FreeNext::Deferred => {
                while self.table.is_discard_pending(gfn).unwrap() {
                    self.wait(wakes);
                    wakes = self.wakes();
                }
            }
        }
    }

    // The evictors and workers.

    /// Moves a page aside.
    pub fn evict(&self, gfn: u64) {
        if let EvictNext::Won(claim) = self.table.begin_evict(gfn).unwrap() {
            let ram = self.at(gfn).ram.swap(0, Relaxed);
            assert_eq!(ram & (PRESENT | PROTECTED), PRESENT, "MOVE of a page that is absent or protected");
            self.at(gfn).side.put(ram >> VERSION_SHIFT);
            self.after_out(self.table.finish_evict(claim, 1).unwrap());
        }
    }

    /// Fails to move a page aside.
    pub fn evict_busy(&self, gfn: u64) {
        if let EvictNext::Won(claim) = self.table.begin_evict(gfn).unwrap() {
            self.after_in(self.table.abort_evict(claim).unwrap());
        }
    }

    /// Copies a page aside.
    pub fn copy(&self, gfn: u64) {
        if let CopyNext::Won(claim) = self.table.begin_copy(gfn).unwrap() {
            let page = self.at(gfn);
            page.ram.fetch_or(PROTECTED, Relaxed);
            let copy = page.ram.fetch_or(0, Relaxed);
            assert!(copy & PRESENT != 0, "the copier reads a hole");
            match self.table.win_drop(claim).unwrap() {
                DropNext::Won(claim) => {
                    let dropped = page.ram.swap(0, Relaxed);
                    assert_eq!(dropped, copy, "a page was dropped that is not what was copied");
                    page.side.put(copy >> VERSION_SHIFT);
                    self.after_out(self.table.finish_drop(claim, 1).unwrap());
                }
                DropNext::Lost(claim) => {
                    self.unprotect(gfn);
                    self.after_in(self.table.abort_copy(claim).unwrap());
                }
                DropNext::Drop(claim) => self.release(claim),
            }
        }
    }

    /// Begins a copy and gives it up.
    pub fn copy_given_up(&self, gfn: u64) {
        if let CopyNext::Won(claim) = self.table.begin_copy(gfn).unwrap() {
            self.at(gfn).ram.fetch_or(PROTECTED, Relaxed);
            self.unprotect(gfn);
            self.after_in(self.table.abort_copy(claim).unwrap());
        }
    }

    /// Compresses an aside page, or writes a compressed one to the swap file; gives up when overtaken.
    pub fn store(&self, gfn: u64) {
        if let StoreNext::Won(claim) = self.table.begin_store(gfn).unwrap() {
            if self.table.is_overtaken(&claim).unwrap() {
                return self.after_out(self.table.abort_store(claim).unwrap());
            }
            let page = self.at(gfn);
            let location = Location::new(gfn).expect("a small number");
            let (from, to, home) = match claim.kind().from {
                Place::Aside => (&page.side, &page.compressed, Stored::Compressed(location)),
                Place::Stored(Stored::Compressed(at)) if at == location => {
                    (&page.compressed, &page.swapped, Stored::Swapped(location))
                }
                other => panic!("stored from {other:?}"),
            };
            to.put(from.read());
            from.take();
            self.after_out(self.table.finish_store(claim, home).unwrap());
        }
    }

    /// Frees an aside page that turns out to be zero, or leaves it.
    pub fn free_zero(&self, gfn: u64) {
        if let StoreNext::Won(claim) = self.table.begin_store(gfn).unwrap() {
            let is_zero = claim.kind().from == Place::Aside && self.at(gfn).side.read() == 0;
            if is_zero {
                self.release(self.table.free_instead(claim).unwrap());
            } else {
                self.after_out(self.table.abort_store(claim).unwrap());
            }
        }
    }

    /// Reads a page where it is, if it is in guest RAM; `may_vanish`: the guest frees pages under the reader.
    pub fn scan(&self, gfn: u64, may_vanish: bool) {
        if self.table.pin_resident(gfn).unwrap() {
            let there = self.at(gfn).ram.fetch_or(0, Relaxed) & PRESENT != 0;
            assert!(there || may_vanish, "a page is read where none is");
            self.table.unpin(gfn).unwrap();
        }
    }

    /// Fails to bring a page in.
    pub fn refault_failing(&self, gfn: u64) {
        match self.table.begin_refault(gfn).unwrap() {
            RefaultNext::Won(claim) if claim.kind().from == Place::Resident => {
                self.bring_in(claim);
            }
            RefaultNext::Won(claim) => self.after_in(self.table.abort_refault(claim).unwrap()),
            // Nobody waits here for the page: a wake-up that finds nobody does no harm.
            RefaultNext::FirstTouch | RefaultNext::Joined | RefaultNext::Present => {}
        }
    }

    /// True when the page is in guest RAM, false when it was freed on the way.
    pub fn bring_in(&self, claim: Claim<Refaulting>) -> bool {
        let gfn = claim.gfn();
        let page = self.at(gfn);
        let location = Location::new(gfn).expect("a small number");
        match claim.kind().from {
            Place::Resident => self.unprotect(gfn),
            Place::Unknown => {
                // What is there already stays: EEXIST.
                let _ = page.ram.compare_exchange(0, PRESENT, Relaxed, Relaxed);
            }
            Place::Untouched => self.map(gfn, 0),
            Place::Aside => self.map(gfn, page.side.take()),
            Place::Stored(Stored::Compressed(at)) if at == location => self.map(gfn, page.compressed.take()),
            Place::Stored(Stored::Swapped(at)) if at == location => self.map(gfn, page.swapped.take()),
            Place::Stored(other) => panic!("brought in from {other:?}"),
        }
        let after = self.table.finish_refault(claim, 2).unwrap();
        let there = matches!(after, AfterIn::AtRest { .. });
        self.after_in(after);
        there
    }

    fn release(&self, claim: Claim<Freeing>) {
        let page = self.at(claim.gfn());
        let _gone = match claim.kind().from {
            Place::Unknown | Place::Resident => page.ram.fetch_and(0, Relaxed),
            Place::Untouched => 0,
            Place::Aside => page.side.take(),
            Place::Stored(Stored::Compressed(_)) => page.compressed.take(),
            Place::Stored(Stored::Swapped(_)) => page.swapped.take(),
            Place::Stored(other) => panic!("released in {other:?}"),
        };
        assert_eq!(page.ram.fetch_or(0, Relaxed), 0, "a page was freed and is still mapped");
        assert!(page.side.is_empty() && page.compressed.is_empty() && page.swapped.is_empty(), "freed and still held");
        let freed = self.table.finish_free(claim).unwrap();
        if freed.acknowledge || freed.wake {
            self.wake();
        }
    }

    pub fn after_out(&self, after: AfterOut) {
        match after {
            AfterOut::AtRest => {}
            AfterOut::HandBack(claim) => {
                self.bring_in(claim);
            }
            AfterOut::Drop(claim) => self.release(claim),
        }
    }

    pub fn after_in(&self, after: AfterIn) {
        match after {
            AfterIn::AtRest { wake: true } => self.wake(),
            AfterIn::AtRest { wake: false } => {}
            AfterIn::Drop(claim) => self.release(claim),
        }
    }

    fn map(&self, gfn: u64, version: u64) {
        let before = self.at(gfn).ram.swap(PRESENT | version << VERSION_SHIFT, Relaxed);
        assert_eq!(before, 0, "a page was mapped over another");
    }

    fn unprotect(&self, gfn: u64) {
        self.at(gfn).ram.fetch_and(!PROTECTED, Relaxed);
    }

    fn wakes(&self) -> u64 {
        *self.wakes.lock().unwrap()
    }

    /// Waits for a wake-up later than `wakes`, as a thread does in the kernel from its fault on.
    fn wait(&self, wakes: u64) {
        let mut now = self.wakes.lock().unwrap();
        while *now == wakes {
            now = self.woken.wait(now).unwrap();
        }
    }

    fn wake(&self) {
        *self.wakes.lock().unwrap() += 1;
        self.woken.notify_all();
    }

    /// With every thread gone: no page is in flight, each is held exactly where its word says, the counters agree.
    pub fn check_at_rest(&self) {
        let mut counts = [0; State::COUNT];
        for (gfn, host) in self.pages.iter().enumerate() {
            let page = self.table.page(gfn as u64).unwrap();
            assert!(!page.state.is_transient() && !page.wanted && !page.discard && !page.copying, "{page:?}");
            assert_eq!(page.pins, 0, "{page:?}");
            let ram = host.ram.fetch_or(0, Relaxed);
            assert_eq!(ram & PROTECTED, 0, "{page:?} is protected");
            let held = [ram != 0, !host.side.is_empty(), !host.compressed.is_empty(), !host.swapped.is_empty()];
            match page.state {
                State::Unknown => assert_eq!(held[1..], [false; 3], "{page:?}"),
                State::Untouched => assert_eq!(held, [false; 4], "{page:?}"),
                State::Resident => assert_eq!(held, [true, false, false, false], "{page:?}"),
                State::Aside => assert_eq!(held, [false, true, false, false], "{page:?}"),
                State::Compressed => assert_eq!(held, [false, false, true, false], "{page:?}"),
                State::Swapped => assert_eq!(held, [false, false, false, true], "{page:?}"),
                other => panic!("at rest in {other:?}"),
            }
            counts[page.state as usize] += 1;
        }
        for state in State::ALL {
            assert_eq!(self.table.count(state), counts[state as usize], "pages counted as {state:?}");
        }
    }
}

/// Memory that is not atomic: loom reports two threads on it that are not ordered.
#[cfg(loom)]
mod plain {
    use loom::cell::UnsafeCell;

    pub struct Plain(UnsafeCell<u64>);

    // SAFETY: loom checks every access and fails the test on a race.
    unsafe impl Sync for Plain {}

    impl Plain {
        pub fn new(value: u64) -> Self {
            Self(UnsafeCell::new(value))
        }

        pub fn get(&self) -> u64 {
            // SAFETY: as above.
            self.0.with(|value| unsafe { *value })
        }

        pub fn replace(&self, value: u64) -> u64 {
            // SAFETY: as above.
            self.0.with_mut(|place| unsafe { std::mem::replace(&mut *place, value) })
        }
    }
}

#[cfg(not(loom))]
mod plain {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    pub struct Plain(AtomicU64);

    impl Plain {
        pub fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        pub fn get(&self) -> u64 {
            self.0.load(Relaxed)
        }

        pub fn replace(&self, value: u64) -> u64 {
            let before = self.0.load(Relaxed);
            self.0.store(value, Relaxed);
            before
        }
    }
}
