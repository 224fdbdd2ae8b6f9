//! The threads that read pages from the swap file, so that faults on other pages are answered meanwhile.

use std::sync::Arc;
use std::time::Instant;

use crate::page_table::{Claim, Place, Refaulting, Stored};
use crate::store::codec::Decompressor;
use crate::store::swap::Slot;

use super::PagerFailure;
use super::paged::{Paged, source_of};
use super::reads::{Job, Next};
use super::refault::Batch;

/// Threads: what a disk does at a time is bounded by the depth of its queue, and a second reader keeps it busy while the
/// first one maps.
pub(super) const THREADS: usize = 2;

/// One reader.
pub(super) struct Fetcher {
    paged: Arc<Paged>,
    batch: Batch,
    decompressor: Decompressor,
}

impl Fetcher {
    pub fn new(paged: Arc<Paged>) -> Self {
        Self { paged, batch: Batch::default(), decompressor: Decompressor::new() }
    }

    /// Works until the queue is closed.
    pub fn run(mut self) {
        loop {
            match self.paged.readers.pop(self.batch.holds_memory().then_some(Batch::PATIENCE)) {
                Next::Job(job) => self.fetch(job).unwrap_or_else(|failure| self.paged.fail(&failure)),
                Next::Late => self.batch.rest(),
                Next::Closed => return,
            }
        }
    }

    /// Brings the pages of a job in: runs that lie together in the file as well as in memory in one go.
    fn fetch(&mut self, job: Job) -> Result<(), PagerFailure> {
        let paged = Arc::clone(&self.paged);
        let mut claims = job.claims.into_iter().map(|claim| (slot_of(&paged, &claim), claim)).peekable();
        while let Some((slot, claim)) = claims.next() {
            let mut run = vec![claim];
            if let Some(first) = slot {
                while let Some((_, claim)) = claims.next_if(|(next, claim)| {
                    let ahead = run.len() as u32;
                    *next == first.index().checked_add(ahead).map(Slot::from_index)
                        && claim.gfn() == run[0].gfn() + u64::from(ahead)
                        && run.len() < Batch::PAGES
                }) {
                    run.push(claim);
                }
            }
            self.fetch_run(slot, run, job.asked)?;
        }
        Ok(())
    }

    fn fetch_run(
        &mut self,
        slot: Option<Slot>,
        run: Vec<Claim<Refaulting>>,
        asked: Option<(u64, Instant)>,
    ) -> Result<(), PagerFailure> {
        let swap = self.paged.homes.swap.as_ref();
        let read = match (slot, swap) {
            (Some(slot), Some(swap)) if run.len() > 1 => swap.read(slot, &mut self.batch.buffers(run.len())).is_ok(),
            _ => false,
        };
        if !read {
            // Alone each page shows whether it can be had.
            return run.into_iter().try_for_each(|claim| self.fetch_one(claim, asked));
        }
        let pages: Vec<(u64, Place)> = run.iter().map(|claim| (claim.gfn(), claim.kind().from)).collect();
        run.into_iter().for_each(|claim| self.batch.push(claim));
        self.batch.flush(&self.paged)?;
        pages.into_iter().for_each(|(gfn, from)| self.count(gfn, from, asked));
        Ok(())
    }

    fn fetch_one(&mut self, claim: Claim<Refaulting>, asked: Option<(u64, Instant)>) -> Result<(), PagerFailure> {
        let (gfn, from) = (claim.gfn(), claim.kind().from);
        let Place::Stored(stored) = from else { unreachable!("a job holds stored pages") };
        match self.paged.homes.fetch(stored, &mut self.decompressor, self.batch.buffer()) {
            Ok(()) => {
                self.batch.push(claim);
                self.batch.flush(&self.paged)?;
                self.count(gfn, from, asked);
                Ok(())
            }
            Err(cause) if asked.is_some_and(|(asked, _)| asked == gfn) => {
                Err(PagerFailure::Lost { gfn, cause: cause.to_string() })
            }
            // Nobody has asked for it: it stays where it is, and whoever does will hear of it.
            Err(_) => {
                self.paged.abort_in(claim);
                Ok(())
            }
        }
    }

    fn count(&self, gfn: u64, from: Place, asked: Option<(u64, Instant)>) {
        match asked {
            Some((asked, since)) if asked == gfn => self.paged.counters.came(source_of(from), Some(since.elapsed())),
            _ => self.paged.counters.came_along(source_of(from), 1),
        }
    }
}

fn slot_of(paged: &Paged, claim: &Claim<Refaulting>) -> Option<Slot> {
    match claim.kind().from {
        Place::Stored(stored) => paged.homes.slot(stored),
        _ => None,
    }
}

/// Whether a page must go through a reader.
pub(super) fn needs_reader(paged: &Paged, from: Place) -> bool {
    matches!(from, Place::Stored(stored) if stored != Stored::Zero && paged.homes.is_on_disk(stored))
}
