//! Pages leave guest RAM by `UFFDIO_MOVE`.

use std::ops::Range;

use super::claim::{Offer, runs};
use super::word::Word;
use super::{AfterIn, AfterOut, Claim, Evicting, PageTable, PageTableError, Place, Run, State};

/// What to do after asking for a page to be evicted.
#[must_use = "a page that was won must be moved"]
#[derive(Debug, PartialEq, Eq)]
pub enum EvictNext {
    /// Move it to the side mapping, then finish or abort.
    Won(Claim<Evicting>),
    /// A device holds it: leave it.
    Pinned,
    /// It is not resident, or a copier is at it: leave it.
    NotResident,
}

/// Whether the evictor may have the page, and why not.
pub(super) fn evictable(word: Word) -> Result<(), EvictNext> {
    match (word.state(), word.copying(), word.pins()) {
        (State::Resident, false, 0) => Ok(()),
        (State::Resident, false, _) => Err(EvictNext::Pinned),
        _ => Err(EvictNext::NotResident),
    }
}

impl PageTable {
    /// A page is to go aside.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_evict(&self, gfn: u64) -> Result<EvictNext, PageTableError> {
        self.update(gfn, |word| {
            Ok(match evictable(word) {
                Ok(()) => (word.with_state(State::Evicting), EvictNext::Won(Claim { gfn, kind: Evicting })),
                Err(next) => (word, next),
            })
        })
    }

    /// The pages of a range that may go aside, in runs for one call each. Lazy: what is not asked for is not claimed.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_evict_run(&self, gfns: Range<u64>) -> Result<impl Iterator<Item = Run<Evicting>>, PageTableError> {
        self.check(&gfns)?;
        let offer = |gfn, _| match self.begin_evict(gfn) {
            Ok(EvictNext::Won(claim)) => Offer::Won(claim.kind),
            _ => Offer::Passed,
        };
        Ok(runs(gfns, |gfn| self.words.next_written(gfn), offer))
    }

    /// The page is in the side mapping since `stamp`.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn finish_evict(&self, claim: Claim<Evicting>, stamp: u32) -> Result<AfterOut, PageTableError> {
        let gfn = claim.gfn;
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Evicting, "finish_evict")?;
            Ok(Self::settle_out(gfn, word.with_stamp(stamp), Place::Aside))
        })
    }

    /// The page could not be moved and is where it was (`EBUSY`).
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn abort_evict(&self, claim: Claim<Evicting>) -> Result<AfterIn, PageTableError> {
        let gfn = claim.gfn;
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Evicting, "abort_evict")?;
            Ok(Self::settle_in(gfn, word, Place::Resident))
        })
    }
}
