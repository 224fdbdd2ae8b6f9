//! Pins: device code holds pages in guest RAM while asynchronous or O_DIRECT operations use them.

use super::word::PINS_MAX;
use super::{Claim, PageTable, PageTableError, RefaultNext, Refaulting, State};

/// What to do after pinning a page. The pin counts in every case, until [`PageTable::unpin`].
#[must_use = "the page may have to be brought in before it is used"]
#[derive(Debug, PartialEq, Eq)]
pub enum PinNext {
    /// The page is in guest RAM and stays.
    Pinned,
    /// The page may hold nothing: in an armed VM touch it first; in an open one use it.
    FirstTouch,
    /// Map the page, release it where it was, finish, then use it.
    BringBack(Claim<Refaulting>),
    /// Somebody is at the page: wait until woken, then look again with [`PageTable::begin_refault`]. Note the count of
    /// wake-ups before pinning, and wait for a later one: a look at the state may find the page with its next owner.
    Wait,
}

impl PageTable {
    /// Device code is about to use a page. From here on it is not evicted; one already on its way comes back.
    ///
    /// # Errors
    /// [`PageTableError::TooManyPins`], [`PageTableError::OutOfRange`]; the page is not pinned then.
    pub fn pin(&self, gfn: u64) -> Result<PinNext, PageTableError> {
        self.update(gfn, |word| {
            if word.pins() == PINS_MAX {
                return Err(PageTableError::TooManyPins { gfn });
            }
            let word = word.with_pins(word.pins() + 1);
            Ok(match word.state() {
                // Also while a copier is at it: it has lost the page.
                State::Resident => (word, PinNext::Pinned),
                State::Unknown | State::Untouched => (word, PinNext::FirstTouch),
                _ => match Self::refault(gfn, word) {
                    (word, RefaultNext::Won(claim)) => (word, PinNext::BringBack(claim)),
                    (word, _) => (word, PinNext::Wait),
                },
            })
        })
    }

    /// Somebody wants to look at a page, if it is in guest RAM and no device holds it: true when it is, and stays until
    /// [`PageTable::unpin`]. Nothing is brought in for it, and no device finds a page pinned too often because of it.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn pin_resident(&self, gfn: u64) -> Result<bool, PageTableError> {
        self.update(gfn, |word| {
            let can = word.state() == State::Resident && word.pins() == 0;
            Ok(if can { (word.with_pins(1), true) } else { (word, false) })
        })
    }

    /// Device code is done with a page; returns how many pins remain.
    ///
    /// # Errors
    /// [`PageTableError::NotPinned`], [`PageTableError::OutOfRange`].
    pub fn unpin(&self, gfn: u64) -> Result<u32, PageTableError> {
        self.update(gfn, |word| {
            let pins = word.pins().checked_sub(1).ok_or(PageTableError::NotPinned { gfn })?;
            Ok((word.with_pins(pins), pins))
        })
    }
}
