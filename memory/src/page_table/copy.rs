//! Pages leave guest RAM by a copy, on kernels without `UFFDIO_MOVE`.
//!
//! The copier write-protects and reads a page that the guest still sees. A writer may take it back at any time before
//! the copier wins the drop. While *copying* is set nobody else drops the page, so that the copier never reads a hole
//! (it would raise a fault of its own), and nobody else protects it, so that taking the protection off late does no
//! harm.

use super::evict::{EvictNext, evictable};
use super::{AfterIn, AfterOut, Claim, Copying, Dropping, Freeing, PageTable, PageTableError, Place, State};

/// What to do after asking for a page to be evicted by a copy.
#[must_use = "a page that was won must be copied"]
#[derive(Debug, PartialEq, Eq)]
pub enum CopyNext {
    /// Write-protect and copy it, then ask for the drop.
    Won(Claim<Copying>),
    /// A device holds it: leave it.
    Pinned,
    /// It is not resident, or another copier is at it: leave it.
    NotResident,
}

/// Whether the copier may drop the page it has copied.
#[must_use = "the page must be dropped, or unprotected and the copy thrown away"]
#[derive(Debug, PartialEq, Eq)]
pub enum DropNext {
    /// No writer came: drop it from guest RAM (`MADV_DONTNEED`), then finish.
    Won(Claim<Dropping>),
    /// A writer or a pin took it back: throw the copy away, take the protection off, abort.
    Lost(Claim<Copying>),
    /// It was freed: throw the copy away, drop the page, acknowledge.
    Drop(Claim<Freeing>),
}

impl PageTable {
    /// A page is to go aside by a copy.
    ///
    /// # Errors
    /// [`PageTableError::OutOfRange`].
    pub fn begin_copy(&self, gfn: u64) -> Result<CopyNext, PageTableError> {
        self.update(gfn, |word| {
            Ok(match evictable(word) {
                Ok(()) => {
                    let word = word.with_state(State::Evicting).with_copying(true);
                    (word, CopyNext::Won(Claim { gfn, kind: Copying }))
                }
                Err(EvictNext::Pinned) => (word, CopyNext::Pinned),
                Err(_) => (word, CopyNext::NotResident),
            })
        })
    }

    /// The copy is complete: may the page be dropped?
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn win_drop(&self, claim: Claim<Copying>) -> Result<DropNext, PageTableError> {
        let gfn = claim.gfn;
        self.update(gfn, |word| {
            if !word.copying() {
                return Err(PageTableError::Unexpected { gfn, event: "win_drop", state: word.state() });
            }
            Ok(match word.state() {
                State::Evicting if word.discard() => {
                    let freeing = Freeing { from: Place::Resident };
                    let word = word.with_state(State::Freeing).with_copying(false);
                    (word, DropNext::Drop(Claim { gfn, kind: freeing }))
                }
                State::Evicting => {
                    let word = word.with_state(State::Dropping).with_copying(false);
                    (word, DropNext::Won(Claim { gfn, kind: Dropping }))
                }
                _ => (word, DropNext::Lost(Claim { gfn, kind: Copying })),
            })
        })
    }

    /// The page is out of guest RAM and its copy aside since `stamp`.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn finish_drop(&self, claim: Claim<Dropping>, stamp: u32) -> Result<AfterOut, PageTableError> {
        let gfn = claim.gfn;
        self.update(gfn, |word| {
            Self::expect(gfn, word, State::Dropping, "finish_drop")?;
            Ok(Self::settle_out(gfn, word.with_stamp(stamp), Place::Aside))
        })
    }

    /// The copier lost the page or gives up; its protection is off and its copy thrown away.
    ///
    /// # Errors
    /// [`PageTableError::Unexpected`] when the claim is of another table.
    pub fn abort_copy(&self, claim: Claim<Copying>) -> Result<AfterIn, PageTableError> {
        let gfn = claim.gfn;
        self.update(gfn, |word| {
            if !word.copying() {
                return Err(PageTableError::Unexpected { gfn, event: "abort_copy", state: word.state() });
            }
            let word = word.with_copying(false);
            Ok(match word.state() {
                State::Evicting | State::Resident => Self::settle_in(gfn, word, Place::Resident),
                // Whoever took the page is still at it, and does the rest.
                _ => (word, AfterIn::AtRest { wake: false }),
            })
        })
    }
}
