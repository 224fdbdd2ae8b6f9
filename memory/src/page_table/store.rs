//! Pages go from aside to a store, or from one store to another.

use std::ops::Range;

use super::claim::{Offer, runs};
use super::word::Word;
use super::{AfterOut, Claim, Freeing, PageTable, PageTableError, Place, Run, State, Stored, Storing};

/// What to do after asking for a page to be stored.
#[must_use = "a page that was won must be stored"]
#[derive(Debug, PartialEq, Eq)]
pub enum StoreNext {
    /// Read it where it is, put it into its new home, release the old one, then finish; or abort.
    Won(Claim<Storing>),
    /// A device waits for it: leave it.
    Pinned,
    /// It is neither aside nor in a store that has another behind it: leave it.
    NotAside,
}

impl PageTable {
    /// An aside page is to be stored, or a stored page to go to another store.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_store(&self, gfn: u64) -> Result<StoreNext, PageTableError> {
        self.update(gfn, |word| {
            let from = match word.place() {
                Some(
                    place @ (Place::Aside | Place::Stored(Stored::Zero | Stored::Duplicate(_) | Stored::Compressed(_))),
                ) => place,
                _ => return Ok((word, StoreNext::NotAside)),
            };
            if word.pins() > 0 {
                return Ok((word, StoreNext::Pinned));
            }
            Ok((word.with_state(State::Storing), StoreNext::Won(Claim { gfn, kind: Storing { from } })))
        })
    }

    /// The aside pages of a range, in runs that lie together in the side mapping. Lazy.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_store_run(&self, gfns: Range<u64>) -> Result<impl Iterator<Item = Run<Storing>>, PageTableError> {
        self.check(&gfns)?;
        let take = |word: Word| match word.state() {
            State::Aside if word.pins() == 0 => {
                (word.with_state(State::Storing), Offer::Won(Storing { from: Place::Aside }))
            }
            _ => (word, Offer::Passed),
        };
        let offer = move |gfn, _| self.update(gfn, |word| Ok(take(word))).unwrap_or(Offer::Passed);
        Ok(runs(gfns, |gfn| self.words.next_written(gfn), offer))
    }

    /// Whether somebody waits for the page or has freed it: to look before expensive work, and abort.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`] when the claim is of another table.
    pub fn is_overtaken(&self, claim: &Claim<Storing>) -> Result<bool, PageTableError> {
        self.load(claim.gfn).map(|word| word.wanted() || word.discard())
    }

    /// The page is in its new home, complete, and released in the old one.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn finish_store(&self, claim: Claim<Storing>, home: Stored) -> Result<AfterOut, PageTableError> {
        let gfn = claim.gfn;
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Storing, "finish_store")?;
            Ok(Self::settle_out(gfn, word, Place::Stored(home)))
        })
    }

    /// The page turns out to hold nothing: it is to be released where it is, and needs no home. Whoever waits for it
    /// touches it first then.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn free_instead(&self, claim: Claim<Storing>) -> Result<Claim<Freeing>, PageTableError> {
        let (gfn, from) = (claim.gfn, claim.kind.from);
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Storing, "free_instead")?;
            Ok((word.with_state(State::Freeing), Claim { gfn, kind: Freeing { from } }))
        })
    }

    /// The page has no new home and is where it was.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn abort_store(&self, claim: Claim<Storing>) -> Result<AfterOut, PageTableError> {
        let (gfn, from) = (claim.gfn, claim.kind.from);
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Storing, "abort_store")?;
            Ok(Self::settle_out(gfn, word, from))
        })
    }
}
