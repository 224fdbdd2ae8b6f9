//! The page state machine: one state word a page, and every legal transition.
//!
//! The table does no I/O and holds no lock. Each method is an event in a page's life (design: page life cycle); it
//! changes the word in one compare-and-swap and returns what the caller must do next. Whoever takes a page into a
//! transient state gets its [`Claim`], and only a claim's owner may move, copy, read aside or drop that page:
//!
//! - **evict**: [`begin_evict`](PageTable::begin_evict), `UFFDIO_MOVE`, [`finish_evict`](PageTable::finish_evict).
//! - **evict without MOVE**: [`begin_copy`](PageTable::begin_copy), write-protect, copy,
//!   [`win_drop`](PageTable::win_drop), `MADV_DONTNEED`, [`finish_drop`](PageTable::finish_drop). A fault or a pin takes
//!   the page from the copier before it wins the drop; *copying* then keeps the page from being dropped or protected
//!   again until the copier has noticed ([`abort_copy`](PageTable::abort_copy)).
//! - **store**: [`begin_store`](PageTable::begin_store), compress or write, release the old home,
//!   [`finish_store`](PageTable::finish_store). A page that holds nothing is freed instead
//!   ([`free_instead`](PageTable::free_instead)).
//! - **refault**: [`begin_refault`](PageTable::begin_refault) or, with credit for a page that holds nothing,
//!   [`touch_first`](PageTable::touch_first); map the page, release the old home,
//!   [`finish_refault`](PageTable::finish_refault).
//! - **free**: [`begin_free`](PageTable::begin_free), release what is held, [`finish_free`](PageTable::finish_free).
//!
//! A refault or pin that finds a page owned by somebody else marks it *wanted* and leaves; the owner, when it finishes,
//! is told to hand the page back or to wake the waiters. A free that finds such a page marks it *discard*; the owner is
//! told to drop it, and to acknowledge the free after that. Pins keep a page from eviction.
//!
//! **Old homes are released before the claim is finished**, never after: the moment a page is at rest another thread may
//! take it around the whole cycle and reuse the place.
//!
//! # Orderings
//! The words are the only synchronisation between owners of a page. Taking a claim acquires (`AcqRel` compare-and-swap)
//! what the previous owner released by finishing its own: its moves, copies and store updates. A plain look at a word
//! acquires as well, because callers act on it. No event needs an order between two words, so nothing here is
//! sequentially consistent. [`open`](PageTable::open) alone looks at all words: see there. The counters
//! are statistics and relaxed.

mod claim;
mod copy;
mod evict;
mod free;
mod pin;
mod refault;
mod store;
mod word;
mod words;

#[cfg(test)]
mod host;
#[cfg(all(test, loom))]
mod model_check;
#[cfg(all(test, not(loom)))]
mod plain_model;
#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicBool, AtomicU64};
use std::ops::Range;
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::atomic::{AtomicI64, Ordering};

pub use claim::{Claim, Copying, Dropping, Evicting, Freeing, Refaulting, Run, Storing};
pub use copy::{CopyNext, DropNext};
pub use evict::EvictNext;
pub use free::{FreeNext, Freed};
pub use pin::PinNext;
pub use refault::RefaultNext;
pub use store::StoreNext;
pub use word::{Location, PINS_MAX, Page, Place, State, Stored};

use word::Word;
use words::Words;

/// Why the page table refuses.
#[derive(Debug, thiserror::Error)]
pub enum PageTableError {
    /// No memory for the table.
    #[error("page table of {pages} pages: {cause}")]
    Map {
        /// Pages the table was asked for.
        pages: u64,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// There is no such page.
    #[error("page {gfn:#x}: beyond the {pages} pages of the table")]
    OutOfRange {
        /// The page asked for.
        gfn: u64,
        /// Pages in the table.
        pages: u64,
    },
    /// The claim is not of this table, or the page is not what its owner left.
    #[error("page {gfn:#x}: {event} while {state:?}")]
    Unexpected {
        /// The page.
        gfn: u64,
        /// The event that does not fit.
        event: &'static str,
        /// The state it met.
        state: State,
    },
    /// A pin too many.
    #[error("page {gfn:#x}: already pinned {PINS_MAX} times")]
    TooManyPins {
        /// The page.
        gfn: u64,
    },
    /// An unpin without a pin.
    #[error("page {gfn:#x}: unpinned but not pinned")]
    NotPinned {
        /// The page.
        gfn: u64,
    },
    /// The VM cannot be opened: a page is out or in flight.
    #[error("page {gfn:#x}: {state:?}, so the VM cannot be opened")]
    NotHome {
        /// The first such page.
        gfn: u64,
        /// Where it is.
        state: State,
    },
}

/// What to do with a page that was on its way out.
#[must_use = "the page may have to be brought back or dropped"]
#[derive(Debug, PartialEq, Eq)]
pub enum AfterOut {
    /// It is at rest.
    AtRest,
    /// Somebody waits for it: bring it back.
    HandBack(Claim<Refaulting>),
    /// It was freed meanwhile: release it, then acknowledge.
    Drop(Claim<Freeing>),
}

/// What to do about a page that came in, or stays where it was.
#[must_use = "somebody may wait for the page, or it may have to be dropped"]
#[derive(Debug, PartialEq, Eq)]
pub enum AfterIn {
    /// It is at rest.
    AtRest {
        /// Threads wait for it: wake the faulting ones (`UFFDIO_WAKE`) and those that wait to pin it.
        wake: bool,
    },
    /// It was freed meanwhile: release it, then acknowledge.
    Drop(Claim<Freeing>),
}

/// The states of all pages of one guest.
#[derive(Debug)]
pub struct PageTable {
    words: Words,
    armed: AtomicBool,
    /// Pages by state; what is unknown is the rest. Signed: two threads that move one page on in turn may count in the
    /// other order.
    counts: [AtomicI64; State::COUNT],
}

impl PageTable {
    /// A table for gfns `0..pages` of an open VM: nothing is known of any page. Costs address space, no memory.
    ///
    /// # Errors
    /// [`PageTableError::Map`] when there is no address space left, or nothing to map.
    pub fn new(pages: u64) -> Result<Self, PageTableError> {
        Ok(Self { words: Words::new(pages)?, armed: AtomicBool::new(false), counts: Default::default() })
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.words.pages()
    }

    /// The VM is armed from here on: call after RAM is registered, before pages are classified. Nothing is known of any
    /// page yet.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::Release);
    }

    /// Whether the VM is armed.
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Acquire)
    }

    /// The VM is open from here on: what is known of pages at home is forgotten, since they will come and go unseen.
    /// Arming, classifying and opening must not overlap.
    ///
    /// # Errors
    /// [`PageTableError::NotHome`] when a page is aside, stored or in flight. The VM stays armed; pages already looked at
    /// are unknown again and may be classified anew.
    pub fn open(&self) -> Result<(), PageTableError> {
        // Each word is written, changed or not, so what was read is the latest: a page in flight is seen. Whoever takes a
        // page into flight afterwards takes it from that write, which releases the store here: it sees the VM open when
        // it finishes, and leaves the page unknown.
        self.armed.store(false, Ordering::Release);
        let mut gfn = self.words.next_written_exactly(0);
        while let Some(cell) = self.words.get(gfn) {
            let mut old = Word(cell.load(Ordering::Acquire));
            loop {
                let home = matches!(old.state(), State::Unknown | State::Untouched | State::Resident);
                if !home || old.copying() {
                    self.armed.store(true, Ordering::Release);
                    return Err(PageTableError::NotHome { gfn, state: old.state() });
                }
                let new = old.at(Place::Unknown);
                match cell.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => {
                        self.count_move(old.state(), new.state());
                        break;
                    }
                    Err(found) => old = Word(found),
                }
            }
            gfn = self.words.next_written_exactly(gfn + 1);
        }
        Ok(())
    }

    /// Takes what the kernel says is mapped (PAGEMAP_SCAN of an armed VM) from unknown to resident; returns how many pages
    /// that were. Pages of which more is known are left alone: the scan is older than that.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn mark_present(&self, gfns: Range<u64>, stamp: u32) -> Result<u64, PageTableError> {
        self.check(&gfns)?;
        let mut marked = 0;
        for gfn in gfns {
            marked += self.update(gfn, |word| {
                Ok(match word.state() {
                    State::Unknown => (word.at(Place::Resident).with_stamp(stamp), 1),
                    _ => (word, 0),
                })
            })?;
        }
        Ok(marked)
    }

    /// What the table says about a page now.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn page(&self, gfn: u64) -> Result<Page, PageTableError> {
        self.load(gfn).map(Word::page)
    }

    /// The pages of a range of which anything is known or that are pinned, ascending, each as it is when the iterator
    /// gets there. Table memory that was never written is skipped unread.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn scan(&self, gfns: Range<u64>) -> Result<impl Iterator<Item = (u64, Page)>, PageTableError> {
        self.check(&gfns)?;
        let mut next = gfns.start;
        Ok(std::iter::from_fn(move || {
            loop {
                let gfn = self.words.next_written(next);
                if gfn >= gfns.end {
                    return None;
                }
                next = gfn + 1;
                match self.load(gfn) {
                    Ok(Word(0)) => continue,
                    Ok(word) => return Some((gfn, word.page())),
                    Err(_) => return None,
                }
            }
        }))
    }

    /// Pages in a state. Exact while nothing is in motion; while pages move, off by at most those in motion.
    pub fn count(&self, state: State) -> u64 {
        let known = |state: State| self.counts[state as usize].load(Ordering::Relaxed).max(0) as u64;
        match state {
            State::Unknown => self.pages().saturating_sub(State::ALL[1..].iter().map(|&state| known(state)).sum()),
            state => known(state),
        }
    }

    fn load(&self, gfn: u64) -> Result<Word, PageTableError> {
        let cell = self.words.get(gfn).ok_or_else(|| self.out_of_range(gfn))?;
        Ok(Word(cell.load(Ordering::Acquire)))
    }

    /// Takes a page from one word to the next; `step` may run several times and decides on the word it is given. An
    /// unchanged word is not written.
    fn update<R>(
        &self,
        gfn: u64,
        mut step: impl FnMut(Word) -> Result<(Word, R), PageTableError>,
    ) -> Result<R, PageTableError> {
        let cell = self.words.get(gfn).ok_or_else(|| self.out_of_range(gfn))?;
        let mut old = Word(cell.load(Ordering::Acquire));
        loop {
            let (new, result) = step(old)?;
            if new == old {
                return Ok(result);
            }
            if old == Word(0) {
                self.words.note_write(gfn);
            }
            match cell.compare_exchange_weak(old.0, new.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.count_move(old.state(), new.state());
                    return Ok(result);
                }
                Err(found) => old = Word(found),
            }
        }
    }

    fn count_move(&self, from: State, to: State) {
        if from != to {
            self.counts[from as usize].fetch_sub(1, Ordering::Relaxed);
            self.counts[to as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The end of a page's way out: at rest in `place`, unless it was wanted or freed on the way.
    fn settle_out(gfn: u64, word: Word, place: Place) -> (Word, AfterOut) {
        if word.discard() {
            (word.with_state(State::Freeing), AfterOut::Drop(Claim { gfn, kind: Freeing { from: place } }))
        } else if word.wanted() {
            let word = word.at(place).with_state(State::Refaulting);
            (word, AfterOut::HandBack(Claim { gfn, kind: Refaulting { from: place } }))
        } else {
            (word.at(place), AfterOut::AtRest)
        }
    }

    /// The end of a page's way in, or of an attempt that changed nothing: at rest in `place`, unless it was freed on the
    /// way. Whoever waits for the page is woken in either case, and looks again.
    fn settle_in(gfn: u64, word: Word, place: Place) -> (Word, AfterIn) {
        // A page that a copier still reads must stay: the copier drops it when it notices.
        if word.discard() && !word.copying() {
            return (word.with_state(State::Freeing), AfterIn::Drop(Claim { gfn, kind: Freeing { from: place } }));
        }
        (word.at(place).with_wanted(false), AfterIn::AtRest { wake: word.wanted() })
    }

    fn check(&self, gfns: &Range<u64>) -> Result<(), PageTableError> {
        if gfns.end > self.pages() { Err(self.out_of_range(gfns.end - 1)) } else { Ok(()) }
    }

    fn out_of_range(&self, gfn: u64) -> PageTableError {
        PageTableError::OutOfRange { gfn, pages: self.pages() }
    }

    /// The state must be the one the claim was made for.
    fn expect(gfn: u64, word: Word, state: State, event: &'static str) -> Result<(), PageTableError> {
        if word.state() == state { Ok(()) } else { Err(PageTableError::Unexpected { gfn, event, state: word.state() }) }
    }
}
