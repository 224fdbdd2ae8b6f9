//! Pages are given back by balloon, free page reporting or discard, in whatever form they are held.

use std::ops::Range;

use super::claim::{Offer, runs};
use super::{Claim, Freeing, PageTable, PageTableError, Place, Run, State};

/// What to do after asking for a page to be freed.
#[must_use = "a page that was won must be released"]
#[derive(Debug, PartialEq, Eq)]
pub enum FreeNext {
    /// Release what is held, then finish and acknowledge.
    Won(Claim<Freeing>),
    /// It holds nothing: acknowledge.
    Nothing,
    /// Its owner will release it: acknowledge only when [`PageTable::finish_free`] of that owner says so.
    Deferred,
}

/// What to do after a page was freed.
#[must_use = "somebody may wait"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freed {
    /// A free was deferred to this owner: tell whoever waits in [`PageTable::is_discard_pending`].
    pub acknowledge: bool,
    /// Threads wait for the page: wake them, they will touch it first.
    pub wake: bool,
}

impl PageTable {
    /// The guest gives a page back. Pins do not keep it: the guest asked for it, and a device that still holds the frame
    /// writes to nobody.
    ///
    /// In an open VM nothing is out: there, a plain drop that excludes arming does as well, and writes no table memory.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_free(&self, gfn: u64) -> Result<FreeNext, PageTableError> {
        self.update(gfn, |word| {
            Ok(match word.place() {
                Some(Place::Untouched) => (word, FreeNext::Nothing),
                Some(from) if !word.copying() => {
                    (word.with_state(State::Freeing), FreeNext::Won(Claim { gfn, kind: Freeing { from } }))
                }
                _ => (word.with_discard(true), FreeNext::Deferred),
            })
        })
    }

    /// The pages of a range that can be released at once, in runs that are held alike. Others that hold anything are
    /// marked, and their owners will release them: acknowledge the range when [`PageTable::is_discard_pending`] says
    /// false for all of it. Iterate to the end, or pages remain that were not asked.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_free_run(&self, gfns: Range<u64>) -> Result<impl Iterator<Item = Run<Freeing>>, PageTableError> {
        self.check(&gfns)?;
        let offer = |gfn, kind: Option<Freeing>| {
            let differs = |from| kind.is_some_and(|kind| kind.from != from);
            self.update(gfn, |word| {
                Ok(match word.place() {
                    Some(Place::Untouched) => (word, Offer::Passed),
                    Some(from) if !word.copying() && differs(from) => (word, Offer::OtherKind),
                    Some(from) if !word.copying() => (word.with_state(State::Freeing), Offer::Won(Freeing { from })),
                    _ => (word.with_discard(true), Offer::Passed),
                })
            })
            .unwrap_or(Offer::Passed)
        };
        Ok(runs(gfns, |gfn| gfn, offer))
    }

    /// Whether a free of this page waits for the page's owner.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn is_discard_pending(&self, gfn: u64) -> Result<bool, PageTableError> {
        self.load(gfn).map(|word| word.discard())
    }

    /// Nothing is held of the page any more.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn finish_free(&self, claim: Claim<Freeing>) -> Result<Freed, PageTableError> {
        let gfn = claim.gfn;
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Freeing, "finish_free")?;
            // In an open VM the page may come back unseen.
            let place = if self.is_armed() { Place::Untouched } else { Place::Unknown };
            let freed = Freed { acknowledge: word.discard(), wake: word.wanted() };
            Ok((word.at(place).with_discard(false).with_wanted(false), freed))
        })
    }
}
