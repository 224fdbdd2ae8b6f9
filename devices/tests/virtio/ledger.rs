//! A pager of the tests' own: it moves nothing, and keeps account of what devices pin.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cistern_memory::page_table::PageTableError;
use cistern_memory::{GuestRam, PAGE_SIZE, Paging, RamError};
use vm_memory::{Bytes, GuestAddress};

use crate::guest::Guest;

/// What a watcher saw at the beginning or the end of a pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Pin(Range<u64>, u8),
    Unpin(Range<u64>, u8),
}

#[derive(Default)]
struct Book {
    pinned: HashMap<Range<u64>, u64>,
    /// Most pins of one range at a time.
    peak: u64,
    calls: u64,
    errors: Vec<String>,
    events: Vec<Event>,
}

/// Looks at the world when something is pinned or let go.
type Watch = Box<dyn Fn() -> u8 + Send + Sync>;

pub struct Ledger {
    ram: Arc<GuestRam>,
    book: Mutex<Book>,
    /// Each pin whose number is a multiple of this is refused; 0 refuses none.
    refuse_every: AtomicU64,
    watch: Option<Watch>,
}

impl Ledger {
    /// Keeps account from now on, and nothing else.
    pub fn attach(guest: &Guest) -> Arc<Self> {
        Self::make(guest, None)
    }

    /// Also notes what `watch` sees at each call.
    pub fn watching(guest: &Guest, watch: impl Fn() -> u8 + Send + Sync + 'static) -> Arc<Self> {
        Self::make(guest, Some(Box::new(watch)))
    }

    fn make(guest: &Guest, watch: Option<Watch>) -> Arc<Self> {
        let (ram, refuse_every) = (Arc::clone(&guest.ram), AtomicU64::new(0));
        let ledger = Arc::new(Self { ram, book: Mutex::default(), refuse_every, watch });
        let weak: Weak<Self> = Arc::downgrade(&ledger);
        guest.ram.attach(weak);
        ledger
    }

    pub fn refuse_every(&self, calls: u64) {
        self.book.lock().unwrap().calls = 0;
        self.refuse_every.store(calls, Ordering::Relaxed);
    }

    /// Most pins of one range at a time.
    pub fn peak(&self) -> u64 {
        self.book.lock().unwrap().peak
    }

    /// What happened since the last call; nothing may be pinned any more, and nothing was let go that was not pinned.
    pub fn settled(&self) -> Vec<Event> {
        let mut book = self.book.lock().unwrap();
        assert!(book.pinned.is_empty(), "still pinned: {:?}", book.pinned);
        assert!(book.errors.is_empty(), "{:?}", book.errors);
        std::mem::take(&mut book.events)
    }

    fn watched(&self) -> Option<u8> {
        self.watch.as_ref().map(|watch| watch())
    }
}

impl Paging for Ledger {
    fn discard(&self, gfns: Range<u64>) -> Result<u64, RamError> {
        for gfn in gfns.clone() {
            self.ram.memory().write_slice(&[0; PAGE_SIZE as usize], GuestAddress(gfn * PAGE_SIZE)).unwrap();
        }
        Ok(gfns.end - gfns.start)
    }

    fn pin(&self, gfns: Range<u64>) -> Result<(), PageTableError> {
        let seen = self.watched();
        let mut book = self.book.lock().unwrap();
        book.calls += 1;
        let refuse_every = self.refuse_every.load(Ordering::Relaxed);
        if refuse_every != 0 && book.calls.is_multiple_of(refuse_every) {
            return Err(PageTableError::TooManyPins { gfn: gfns.start });
        }
        let count = book.pinned.entry(gfns.clone()).or_default();
        *count += 1;
        let count = *count;
        book.peak = book.peak.max(count);
        book.events.extend(seen.map(|seen| Event::Pin(gfns, seen)));
        Ok(())
    }

    fn unpin(&self, gfns: Range<u64>) {
        let seen = self.watched();
        let mut book = self.book.lock().unwrap();
        match book.pinned.get_mut(&gfns) {
            Some(1) => drop(book.pinned.remove(&gfns)),
            Some(count) => *count -= 1,
            None => book.errors.push(format!("{gfns:?} let go and not pinned")),
        }
        book.events.extend(seen.map(|seen| Event::Unpin(gfns, seen)));
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ledger").finish_non_exhaustive()
    }
}
