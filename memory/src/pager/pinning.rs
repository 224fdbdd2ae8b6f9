//! Pages that devices use: brought in, and held there.

use std::ops::Range;

use crate::page_table::{PageTableError, PinNext, RefaultNext};
use crate::store::codec::Decompressor;

use super::credit::Growth;
use super::fetcher::needs_reader;
use super::paged::{Paged, source_of};
use super::reads::Job;
use super::streams::WINDOW_PAGES_MAX;

impl Paged {
    /// Brings pages in and pins them; those that hold nothing are left to be touched for the first time. Waits for pages
    /// that others are at.
    pub fn pin(&self, gfns: Range<u64>) -> Result<(), PageTableError> {
        if gfns.end - gfns.start > 1 {
            self.bring_ahead(&gfns)?;
        }
        for gfn in gfns.clone() {
            if let Err(cause) = self.pin_page(gfn) {
                self.unpin(gfns.start..gfn);
                return Err(cause);
            }
        }
        Ok(())
    }

    /// Shows those pages of a range, in runs, that are in guest RAM and that no device holds. They stay there meanwhile, unless
    /// they are given back: nobody else moves, protects or unmerges them.
    pub fn hold_resident(&self, gfns: Range<u64>, mut act: impl FnMut(&Range<u64>)) {
        let mut held: Vec<Range<u64>> = Vec::new();
        for gfn in gfns.filter(|&gfn| self.table.pin_resident(gfn).unwrap_or(false)) {
            match held.last_mut() {
                Some(run) if run.end == gfn => run.end += 1,
                _ => held.push(gfn..gfn + 1),
            }
        }
        for run in held {
            act(&run);
            self.unpin(run);
        }
    }

    pub fn unpin(&self, gfns: Range<u64>) {
        for gfn in gfns {
            let pins = self.table.unpin(gfn);
            debug_assert!(pins.is_ok(), "{pins:?}");
        }
    }

    /// Devices do not wait for the limit.
    fn count_device_pages(&self, pages: u64) {
        if self.ask_for_page() == Growth::Wait {
            self.counters.device_pages.add(pages);
            self.reclaim.wake();
        }
    }

    /// Brings a range in, in runs where one page after the other would take long. What does not come now comes with its
    /// pin.
    fn bring_ahead(&self, gfns: &Range<u64>) -> Result<(), PageTableError> {
        let mut decompressor = Decompressor::new();
        let mut to_read = Vec::new();
        for run in self.table.begin_refault_run(gfns.clone())? {
            let (run_gfns, from) = (run.gfns(), run.kind().from);
            if needs_reader(self, from) {
                to_read.extend(run);
                if to_read.len() as u64 >= WINDOW_PAGES_MAX {
                    self.readers.push(Job { claims: std::mem::take(&mut to_read), asked: None });
                }
                continue;
            }
            match self.bring(&run_gfns, from, &mut decompressor) {
                Ok(()) => {
                    self.count_device_pages(run_gfns.end - run_gfns.start);
                    self.counters.came_along(source_of(from), run_gfns.end - run_gfns.start);
                    run.for_each(|claim| self.finish_in(claim));
                }
                Err(failure) => self.fail(&failure),
            }
        }
        if !to_read.is_empty() {
            self.readers.push(Job { claims: to_read, asked: None });
        }
        Ok(())
    }

    /// Pins a page and has it in guest RAM, or leaves it to be touched for the first time.
    fn pin_page(&self, gfn: u64) -> Result<(), PageTableError> {
        let mut noted = self.waits.note();
        let mut claim = match self.table.pin(gfn)? {
            PinNext::Pinned | PinNext::FirstTouch => return Ok(()),
            PinNext::BringBack(claim) => Some(claim),
            PinNext::Wait => None,
        };
        loop {
            if let Some(claim) = claim {
                let from = claim.kind().from;
                match self.bring(&(gfn..gfn + 1), from, &mut Decompressor::new()) {
                    Ok(()) => {
                        self.counters.came(source_of(from), None);
                        self.finish_in(claim);
                    }
                    Err(failure) => self.fail(&failure),
                }
                return Ok(());
            }
            self.waits.wait(noted);
            noted = self.waits.note();
            claim = match self.table.begin_refault(gfn)? {
                RefaultNext::Won(claim) => Some(claim),
                RefaultNext::FirstTouch | RefaultNext::Present => return Ok(()),
                RefaultNext::Joined => None,
            };
        }
    }
}
