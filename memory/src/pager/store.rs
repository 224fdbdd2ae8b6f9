//! Pages go from aside to a store.

use std::ops::Range;

use crate::page_table::{Claim, Place, Run, StoreNext, Stored, Storing};
use crate::store::Page;
use crate::store::duplicate::PageHash;
use crate::store::swap::SwapError;

use super::config::EvictionMethod;
use super::frames::bytes;
use super::homes::{Placed, Workbench};
use super::paged::{Kernel, Paged};

/// Pages that are released aside together: each call to the kernel costs more than a page is worth.
const SETTLE_PAGES: usize = 16;

/// Pages written to the swap file together (256 KiB).
pub(super) const WRITE_PAGES: usize = 64;

/// What storing has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StoreOutcome {
    /// Pages that have a new home.
    pub stored: u64,
    /// Pages that were put back into guest RAM.
    pub put_back: u64,
    /// Pages that stay aside.
    pub kept: u64,
}

/// A thread's work in progress.
#[derive(Debug, Default)]
pub(super) struct Storer {
    settled: Vec<(Claim<Storing>, Stored)>,
    to_write: Vec<(Claim<Storing>, PageHash)>,
    outcome: StoreOutcome,
}

impl Storer {
    /// Stores the aside pages of a range; those for the swap file may wait for [`Storer::finish`].
    pub fn store(&mut self, paged: &Paged, gfns: Range<u64>, bench: &mut Workbench) {
        let Ok(runs) = paged.table.begin_store_run(gfns) else { return };
        for run in runs {
            self.classify(paged, run, bench);
        }
        self.settle(paged, bench);
    }

    /// Writes what was gathered, and tells what has become of all pages since the last time.
    pub fn finish(&mut self, paged: &Paged, bench: &mut Workbench) -> StoreOutcome {
        self.write(paged, bench);
        self.settle(paged, bench);
        std::mem::take(&mut self.outcome)
    }

    /// What has become of the pages since the last [`Storer::finish`], those that wait to be written left out.
    pub fn gathered(&self) -> StoreOutcome {
        self.outcome
    }

    fn classify(&mut self, paged: &Paged, run: Run<Storing>, bench: &mut Workbench) {
        for claim in run {
            if self.is_overtaken(paged, &claim) {
                self.keep(paged, claim, bench);
                continue;
            }
            let gfn = claim.gfn();
            // SAFETY: the page is aside and the claim is ours until it is settled, which is after the last use of the page.
            let page = unsafe { paged.kernel().frames.side_page(gfn) };
            match paged.homes.place(page, gfn, bench) {
                Placed::Home(stored) => self.settled.push((claim, stored)),
                Placed::Incompressible(hash) => self.to_write.push((claim, hash)),
                Placed::Full(hash) => {
                    paged.counters.store_full.add(1);
                    self.to_write.push((claim, hash));
                }
            }
            if self.settled.len() >= SETTLE_PAGES {
                self.settle(paged, bench);
            }
            if self.to_write.len() >= WRITE_PAGES {
                self.write(paged, bench);
            }
        }
    }

    fn is_overtaken(&self, paged: &Paged, claim: &Claim<Storing>) -> bool {
        paged.table.is_overtaken(claim).expect("the claim is of this table")
    }

    /// A page stays aside, or goes where it is wanted.
    fn keep(&mut self, paged: &Paged, claim: Claim<Storing>, bench: &mut Workbench) {
        self.outcome.kept += 1;
        let after = paged.table.abort_store(claim).expect("the claim is of this table");
        paged.after_out(after, bench);
    }

    /// Releases aside what has a new home.
    fn settle(&mut self, paged: &Paged, bench: &mut Workbench) {
        let settled = std::mem::take(&mut self.settled);
        for group in settled.chunk_by(|(one, _), (next, _)| one.gfn() + 1 == next.gfn()) {
            let (first, last) = (group[0].0.gfn(), group[group.len() - 1].0.gfn());
            if paged.kernel().frames.drop_side(&(first..last + 1)).is_err() {
                paged.counters.eviction_failed.add(group.len() as u64);
            }
        }
        for (claim, stored) in settled {
            let counter = match stored {
                Stored::Zero => &paged.counters.zero,
                Stored::Duplicate(_) => &paged.counters.duplicate,
                Stored::Compressed(_) => &paged.counters.compressed,
                Stored::Swapped(_) => &paged.counters.swapped,
            };
            counter.add(1);
            if paged.kernel().recency.note_stored(claim.gfn()) {
                paged.counters.again.add(1);
            }
            self.outcome.stored += 1;
            let after = paged.table.finish_store(claim, stored).expect("the claim is of this table");
            paged.after_out(after, bench);
        }
    }

    /// Writes pages to the swap file. Those it does not take go back to guest RAM, marked, and are not tried again until
    /// they are written to.
    fn write(&mut self, paged: &Paged, bench: &mut Workbench) {
        let mut claims = Vec::with_capacity(self.to_write.len());
        for (claim, hash) in std::mem::take(&mut self.to_write) {
            if self.is_overtaken(paged, &claim) {
                self.keep(paged, claim, bench);
            } else {
                claims.push((claim, hash));
            }
        }
        if claims.is_empty() {
            return;
        }
        let frames = &paged.kernel().frames;
        let pages: Vec<(&Page, PageHash)> = claims
            .iter()
            // SAFETY: as in `classify`: the claims are ours until they are settled below.
            .map(|(claim, hash)| (unsafe { frames.side_page(claim.gfn()) }, *hash))
            .collect();
        let (homes, cause) = paged.homes.write(&pages);
        paged.count_write_failure(cause.as_ref());
        let mut refused = Vec::new();
        let mut homes = homes.into_iter();
        for (claim, _) in claims {
            match homes.next() {
                Some(home) => self.settled.push((claim, home)),
                None => refused.push(claim),
            }
        }
        self.settle(paged, bench);
        self.put_back(paged, refused, bench);
    }

    fn put_back(&mut self, paged: &Paged, claims: Vec<Claim<Storing>>, bench: &mut Workbench) {
        let mut gfns = Vec::with_capacity(claims.len());
        for claim in claims {
            gfns.push(claim.gfn());
            let after = paged.table.abort_store(claim).expect("the claim is of this table");
            paged.after_out(after, bench);
        }
        for group in gfns.chunk_by(|one, next| one + 1 == *next) {
            self.outcome.put_back += paged.mark_in_place(group[0]..group[group.len() - 1] + 1, bench);
        }
    }

    /// Writes the compressed store's oldest pages to the swap file: up to `count` of those stored by `by_seconds`. Returns
    /// how many went.
    pub fn write_back(paged: &Paged, count: usize, by_seconds: u64, bench: &mut Workbench) -> u64 {
        // Two at a time would write the same pages.
        let Ok(_turn) = paged.writing_back.try_lock() else { return 0 };
        let blocks = paged.homes.compressed.oldest(count, by_seconds);
        let old = paged.homes.take_old(&blocks, bench);
        if old.is_empty() {
            old.put_away(bench);
            return 0;
        }
        let (moved, cause) = paged.homes.write_back(&old, |gfn, from, to| {
            relabel(paged, gfn, from, to, bench);
        });
        paged.count_write_failure(cause.as_ref());
        old.put_away(bench);
        paged.counters.written_back.add(moved as u64);
        moved as u64
    }
}

/// The page that was stored first with a content still says so: now it says where the content has gone. Of any other page
/// that shares it the word says that it does, which stays true.
fn relabel(paged: &Paged, gfn: u64, from: Stored, to: Stored, bench: &mut Workbench) {
    // The owner may have left, and its number need not be one of this guest's pages.
    let Ok(StoreNext::Won(claim)) = paged.table.begin_store(gfn) else { return };
    let after = if claim.kind().from == Place::Stored(from) {
        paged.table.finish_store(claim, to)
    } else {
        paged.table.abort_store(claim)
    };
    paged.after_out(after.expect("the claim is of this table"), bench);
}

impl Paged {
    /// Notes why pages were not written. That a file which failed is left alone is no failure of its own.
    fn count_write_failure(&self, cause: Option<&SwapError>) {
        match cause {
            Some(SwapError::Write { .. }) => self.counters.swap_write_failed.add(1),
            Some(SwapError::Full { .. }) => self.counters.swap_full.add(1),
            _ => {}
        }
    }

    /// Brings aside pages back and marks them. Returns how many are there.
    fn mark_in_place(&self, gfns: Range<u64>, bench: &mut Workbench) -> u64 {
        let Kernel { frames, port, method, marks, .. } = self.kernel();
        let mut marked = 0;
        self.put_in_place(gfns, bench, |gfns| {
            marked += gfns.end - gfns.start;
            // A copier protects pages itself, so there marks are taken off by time alone.
            if *method == EvictionMethod::Copy {
                gfns.clone().for_each(|gfn| marks.insert(gfn));
                return;
            }
            // Written pages are tried again. A write before the protection is missed, and the page tried after the next one.
            // One that has left already must not be protected: its evictor would wait for itself where it unmerges it.
            self.hold_resident(gfns.clone(), |gfns| {
                gfns.clone().for_each(|gfn| marks.insert(gfn));
                if port.protect(frames.ram_address(gfns.start), bytes(gfns)).is_err() {
                    marks.remove_all(gfns.clone());
                }
            });
        });
        self.counters.incompressible.add(marked);
        marked
    }

    /// Brings the pages of a range back that are aside; `then` is told which are there.
    pub fn put_in_place(&self, gfns: Range<u64>, bench: &mut Workbench, mut then: impl FnMut(&Range<u64>)) {
        let Ok(runs) = self.table.begin_refault_run(gfns) else { return };
        for run in runs {
            let (gfns, from) = (run.gfns(), run.kind().from);
            if from != Place::Aside {
                run.for_each(|claim| self.abort_in(claim));
                continue;
            }
            if let Err(failure) = self.bring(&gfns, from, &mut bench.decompressor) {
                return self.fail(&failure);
            }
            run.for_each(|claim| self.finish_in(claim));
            then(&gfns);
        }
    }
}
