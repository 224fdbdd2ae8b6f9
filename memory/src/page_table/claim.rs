//! Claims: the proof that this thread's compare-and-swap took a page into a transient state.
//!
//! A claim cannot be made, copied or kept outside this module's methods; finishing one consumes it. So only its owner
//! can act on the page, and each page in flight has exactly one owner. A claim that is dropped unfinished leaves its page
//! in flight for ever: hence `must_use`, and a worker that dies takes its VM with it.

use std::iter::{self, FusedIterator};
use std::ops::Range;

use super::word::Place;

/// The page is on its way aside by `UFFDIO_MOVE`: its owner may move it to the side mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicting;

/// The page is on its way aside by a copy: its owner may write-protect and read it. The page stays in guest RAM until
/// the claim ends, but a writer may take the eviction from it at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copying;

/// The copy is complete and no writer came in between: its owner may drop the page from guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropping;

/// The page is on its way to a store: its owner may read it where it is, and release it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storing {
    /// Where it is now.
    pub from: Place,
}

/// The page is on its way into guest RAM: its owner may map it there and release it where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refaulting {
    /// Where it is now. [`Place::Resident`]: a copier has write-protected it in place; take the protection off.
    /// [`Place::Unknown`] and [`Place::Untouched`]: a first touch; map a zero page (one that exists already is kept).
    pub from: Place,
}

/// The page is being given back: its owner may release it where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freeing {
    /// Where it is now. [`Place::Unknown`] may be in guest RAM.
    pub from: Place,
}

/// One page in flight and what this thread may do with it.
#[must_use = "a page whose claim is not finished stays in flight for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct Claim<K> {
    pub(super) gfn: u64,
    pub(super) kind: K,
}

impl<K: Copy> Claim<K> {
    /// Guest frame number of the page.
    pub fn gfn(&self) -> u64 {
        self.gfn
    }

    /// What may be done with it.
    pub fn kind(&self) -> K {
        self.kind
    }
}

/// Adjacent pages in flight that one call can act on. Finish its pages one by one: iterate.
#[must_use = "pages whose claims are not finished stay in flight for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct Run<K> {
    gfns: Range<u64>,
    kind: K,
}

impl<K: Copy> Run<K> {
    /// Guest frame numbers of the pages still in this run.
    pub fn gfns(&self) -> Range<u64> {
        self.gfns.clone()
    }

    /// Number of pages still in this run.
    pub fn pages(&self) -> u64 {
        self.gfns.end - self.gfns.start
    }

    /// What may be done with each page.
    pub fn kind(&self) -> K {
        self.kind
    }

    /// Cuts the run after its first `pages` pages and returns the rest, which may be empty. For a call that got only so
    /// far.
    pub fn split_off(&mut self, pages: u64) -> Self {
        let cut = self.gfns.start.saturating_add(pages).min(self.gfns.end);
        let rest = Self { gfns: cut..self.gfns.end, kind: self.kind };
        self.gfns.end = cut;
        rest
    }
}

impl<K: Copy> Iterator for Run<K> {
    type Item = Claim<K>;

    fn next(&mut self) -> Option<Claim<K>> {
        self.gfns.next().map(|gfn| Claim { gfn, kind: self.kind })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.gfns.size_hint()
    }
}

impl<K: Copy> FusedIterator for Run<K> {}

/// What became of one page of a range that is being claimed.
pub(super) enum Offer<K> {
    /// It was claimed.
    Won(K),
    /// It could be claimed, but not in the run that is being built: nothing was changed.
    OtherKind,
    /// It cannot be claimed.
    Passed,
}

/// Claims a range lazily, as longest runs of one kind: pages behind the last run taken are untouched. `skip` names the
/// first page at or after another that is worth trying; `offer` tries to claim a page, of the given kind only if there
/// is one.
pub(super) fn runs<K: Copy>(
    mut gfns: Range<u64>,
    mut skip: impl FnMut(u64) -> u64,
    mut offer: impl FnMut(u64, Option<K>) -> Offer<K>,
) -> impl Iterator<Item = Run<K>> {
    iter::from_fn(move || {
        let (start, kind) = loop {
            let gfn = skip(gfns.start);
            if gfn >= gfns.end {
                gfns.start = gfns.end;
                return None;
            }
            gfns.start = gfn + 1;
            if let Offer::Won(kind) = offer(gfn, None) {
                break (gfn, kind);
            }
        };
        let mut end = gfns.start;
        while end < gfns.end {
            match offer(end, Some(kind)) {
                Offer::Won(_) => end += 1,
                Offer::OtherKind => {
                    gfns.start = end;
                    return Some(Run { gfns: start..end, kind });
                }
                Offer::Passed => {
                    gfns.start = end + 1;
                    return Some(Run { gfns: start..end, kind });
                }
            }
        }
        gfns.start = end;
        Some(Run { gfns: start..end, kind })
    })
}
