//! Pages come into guest RAM: refaults, first touches, and a write to a page that a copier has protected.

use std::ops::Range;

use super::claim::{Offer, runs};
use super::word::Word;
use super::{AfterIn, Claim, PageTable, PageTableError, Place, Refaulting, Run, State};

/// What to do about a fault.
#[must_use = "a page that was won must be mapped"]
#[derive(Debug, PartialEq, Eq)]
pub enum RefaultNext {
    /// Map the page, release it where it was, then finish; or abort.
    Won(Claim<Refaulting>),
    /// The page holds nothing: get credit, then call [`PageTable::touch_first`].
    FirstTouch,
    /// Somebody is at the page and will wake the waiter: nothing to do.
    Joined,
    /// The page is there: wake the waiter.
    Present,
}

impl PageTable {
    /// A guest or device touched a page (missing, or a write to one protected by a copier).
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_refault(&self, gfn: u64) -> Result<RefaultNext, PageTableError> {
        self.update(gfn, |word| {
            Ok(match word.place() {
                Some(Place::Unknown | Place::Untouched) => (word, RefaultNext::FirstTouch),
                _ => Self::refault(gfn, word),
            })
        })
    }

    /// A page that holds nothing is touched and has credit. In all other respects as [`PageTable::begin_refault`]: while
    /// credit was waited for, somebody else may have been faster.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn touch_first(&self, gfn: u64) -> Result<RefaultNext, PageTableError> {
        self.update(gfn, |word| Ok(Self::refault(gfn, word)))
    }

    pub(super) fn refault(gfn: u64, word: Word) -> (Word, RefaultNext) {
        let won =
            |from| (word.with_state(State::Refaulting), RefaultNext::Won(Claim { gfn, kind: Refaulting { from } }));
        match word.place() {
            // Resident and copying: the copier has lost the page but may not have taken its protection off.
            Some(Place::Resident) if !word.copying() => (word, RefaultNext::Present),
            Some(from) => won(from),
            None if word.state() == State::Evicting && word.copying() => won(Place::Resident),
            None => (word.with_wanted(true), RefaultNext::Joined),
        }
    }

    /// The aside and stored pages of a range, to be brought in around a fault, in runs that come from the same place.
    /// Pages in flight are left alone and nothing is marked wanted. Lazy.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_refault_run(&self, gfns: Range<u64>) -> Result<impl Iterator<Item = Run<Refaulting>>, PageTableError> {
        self.check(&gfns)?;
        let offer = |gfn, kind| self.offer_refault(gfn, kind, |place| matches!(place, Place::Aside | Place::Stored(_)));
        Ok(runs(gfns, |gfn| self.words.next_written(gfn), offer))
    }

    /// The pages of a range that hold nothing, to be mapped around a first touch, in runs. Lazy.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn touch_first_run(&self, gfns: Range<u64>) -> Result<impl Iterator<Item = Run<Refaulting>>, PageTableError> {
        self.check(&gfns)?;
        let offer =
            |gfn, kind| self.offer_refault(gfn, kind, |place| matches!(place, Place::Unknown | Place::Untouched));
        Ok(runs(gfns, |gfn| gfn, offer))
    }

    fn offer_refault(&self, gfn: u64, kind: Option<Refaulting>, eligible: impl Fn(Place) -> bool) -> Offer<Refaulting> {
        self.update(gfn, |word| {
            Ok(match word.place().filter(|&place| eligible(place)).map(|from| Refaulting { from }) {
                Some(found) if kind.is_none_or(|kind| kind == found) => {
                    (word.with_state(State::Refaulting), Offer::Won(found))
                }
                Some(_) => (word, Offer::OtherKind),
                None => (word, Offer::Passed),
            })
        })
        .unwrap_or(Offer::Passed)
    }

    /// The page is mapped, or its protection off, since `stamp`, and released where it was.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn finish_refault(&self, claim: Claim<Refaulting>, stamp: u32) -> Result<AfterIn, PageTableError> {
        let (gfn, from) = (claim.gfn, claim.kind.from);
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Refaulting, "finish_refault")?;
            // A first touch answered after the VM was opened: the page may go again unseen.
            let first = matches!(from, Place::Unknown | Place::Untouched);
            if first && !self.is_armed() {
                return Ok(Self::settle_in(gfn, word, Place::Unknown));
            }
            Ok(Self::settle_in(gfn, word.with_stamp(stamp), Place::Resident))
        })
    }

    /// The page could not be brought in and is where it was. Those who wait for it are to be woken and will try again: a
    /// page that is truly lost must not be aborted.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn abort_refault(&self, claim: Claim<Refaulting>) -> Result<AfterIn, PageTableError> {
        let (gfn, from) = (claim.gfn, claim.kind.from);
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Refaulting, "abort_refault")?;
            Ok(Self::settle_in(gfn, word, from))
        })
    }
}
