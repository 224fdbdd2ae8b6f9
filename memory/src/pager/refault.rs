//! Pages come back into guest RAM. Whoever calls here owns the claims of the pages.

use std::io;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use crate::page_table::{Claim, Place, Refaulting, Stored};
use crate::ram::PAGE_SIZE;
use crate::store::codec::Decompressor;
use crate::store::swap::AlignedPage;
use crate::store::{PAGE_BYTES, Page};

use super::PagerFailure;
use super::config::EvictionMethod;
use super::descriptor::Progress;
use super::frames::bytes;
use super::paged::{Kernel, Paged};
use super::streams::WINDOW_PAGES_MAX;

/// Failures of one call that may pass by themselves, before something else is tried or the page counts as lost.
const ATTEMPTS: u32 = 64;

/// Failures for want of memory that a VM which is ending sits out.
const STOPPING_ATTEMPTS: u32 = 1000;

/// How long to wait when the host has no memory, or a call fails for a reason unknown here.
const PAUSE: Duration = Duration::from_millis(1);

/// Zeroes to copy from. More in one call would make others wait for the mapping longer than a page is worth.
static ZEROES: [Page; 16] = [[0; PAGE_BYTES]; 16];

/// What is to be done about a call that got only so far.
enum Remedy {
    Again,
    GiveUp(io::Error),
}

impl Paged {
    /// Maps pages that all come from `from` and releases them there; their claims may be finished then.
    ///
    /// # Errors
    /// A page is lost, and the claims must stay unfinished.
    pub fn bring(&self, gfns: &Range<u64>, from: Place, decompressor: &mut Decompressor) -> Result<(), PagerFailure> {
        let Kernel { frames, port, method, .. } = self.kernel();
        match from {
            Place::Unknown | Place::Untouched => self.fill(gfns, true),
            Place::Resident => {
                // Taken from a copier that has write-protected it.
                let mut attempts = 0;
                while let Err(cause) = port.unprotect(frames.ram_address(gfns.start), bytes(gfns)) {
                    if let Remedy::GiveUp(cause) = self.remedy(cause, &mut attempts) {
                        return Err(lost(gfns.start, cause));
                    }
                }
                Ok(())
            }
            Place::Aside if *method == EvictionMethod::Move => self.move_back(gfns),
            Place::Aside => self.copy_back(gfns),
            Place::Stored(Stored::Zero) => self.fill(gfns, false),
            Place::Stored(stored) => {
                let mut page = AlignedPage::default();
                for gfn in gfns.clone() {
                    self.homes.fetch(stored, decompressor, &mut page.0).map_err(|cause| lost(gfn, cause))?;
                    self.copy_in(gfn..gfn + 1, page.0.as_ptr())?;
                    self.homes.release(stored);
                }
                Ok(())
            }
        }
    }

    /// Maps zero pages. `may_exist`: where there is a page already it stays.
    fn fill(&self, gfns: &Range<u64>, may_exist: bool) -> Result<(), PagerFailure> {
        self.kernel().marks.remove_all(gfns.clone());
        let mut next = gfns.start;
        while next < gfns.end {
            let end = gfns.end.min(next + ZEROES.len() as u64);
            self.copy_pages(next..end, ZEROES.as_ptr().cast(), may_exist)?;
            next = end;
        }
        Ok(())
    }

    /// Maps copies of the pages at `from`, which lie one after the other.
    pub fn copy_in(&self, gfns: Range<u64>, from: *const u8) -> Result<(), PagerFailure> {
        self.kernel().marks.remove_all(gfns.clone());
        self.copy_pages(gfns, from, false)
    }

    fn copy_pages(&self, gfns: Range<u64>, from: *const u8, may_exist: bool) -> Result<(), PagerFailure> {
        let Kernel { frames, port, .. } = self.kernel();
        let copy = |part: &Range<u64>| {
            let offset = (part.start - gfns.start) as usize * PAGE_BYTES;
            port.copy(frames.ram_address(part.start), from.wrapping_add(offset), bytes(part))
        };
        self.insist(&gfns, copy, |gfn, cause| {
            // There is a page that was not known to be there, or a VM that was opened meanwhile, whose kernel answers.
            let answered = matches!(cause.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) || !self.table.is_armed();
            if !may_exist || !answered {
                return Err(lost(gfn, cause));
            }
            self.wake(gfn);
            Ok(())
        })
    }

    /// Moves pages back from aside.
    fn move_back(&self, gfns: &Range<u64>) -> Result<(), PagerFailure> {
        let Kernel { frames, port, marks, .. } = self.kernel();
        marks.remove_all(gfns.clone());
        let move_in = |part: &Range<u64>| {
            port.move_pages(frames.ram_address(part.start), frames.side_address(part.start), bytes(part))
        };
        self.insist(gfns, move_in, |gfn, cause| {
            // The page is where it was unless the kernel says that it is not there, or looked no further than where it is to
            // go: then reading it might hang.
            if matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::EEXIST)) {
                return Err(lost(gfn, cause));
            }
            self.copy_back(&(gfn..gfn + 1))
        })
    }

    /// Makes a call for a range of pages, again and again from where it got to. A page for which it fails for good is left
    /// to `otherwise`.
    fn insist(
        &self,
        gfns: &Range<u64>,
        call: impl Fn(&Range<u64>) -> Progress,
        otherwise: impl Fn(u64, io::Error) -> Result<(), PagerFailure>,
    ) -> Result<(), PagerFailure> {
        let (mut next, mut attempts, mut together) = (gfns.start, 0, gfns.end - gfns.start);
        while next < gfns.end {
            let part = next..gfns.end.min(next + together);
            let progress = call(&part);
            next += progress.bytes / PAGE_SIZE;
            let Some(cause) = progress.cause else {
                together *= 2;
                continue;
            };
            let pages = part.end - part.start;
            if crosses_border(&cause, pages) {
                self.counters.retried.add(1);
                together = pages / 2;
            } else if progress.bytes > 0 {
                attempts = 0;
            } else if let Remedy::GiveUp(cause) = self.remedy(cause, &mut attempts) {
                otherwise(next, cause)?;
                next += 1;
                attempts = 0;
            }
        }
        Ok(())
    }

    /// Copies pages back from aside.
    fn copy_back(&self, gfns: &Range<u64>) -> Result<(), PagerFailure> {
        let frames = &self.kernel().frames;
        self.copy_in(gfns.clone(), frames.side_address(gfns.start) as *const u8)?;
        if frames.drop_side(gfns).is_err() {
            self.counters.eviction_failed.add(gfns.end - gfns.start);
        }
        Ok(())
    }

    fn remedy(&self, cause: io::Error, attempts: &mut u32) -> Remedy {
        self.counters.retried.add(1);
        *attempts += 1;
        match cause.raw_os_error() {
            // The address space is changing, or a page is looked at by the kernel at this moment.
            Some(libc::EAGAIN | libc::EBUSY) if *attempts < ATTEMPTS => thread::yield_now(),
            // Nothing is lost while the page has its old home: the guest waits until the host has memory. A VM that is ending
            // waits for it too, but not for ever.
            Some(libc::ENOMEM | libc::EAGAIN) if !self.is_stopping() || *attempts < STOPPING_ATTEMPTS => {
                thread::sleep(PAUSE);
            }
            _ if *attempts < ATTEMPTS => thread::yield_now(),
            _ => return Remedy::GiveUp(cause),
        }
        Remedy::Again
    }
}

/// Whether a call may have failed because its range crosses a border between mappings, which advice on a part of guest RAM
/// makes: then nothing was done, and a part of the range fares better.
fn crosses_border(cause: &io::Error, pages: u64) -> bool {
    pages > 1 && matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::EINVAL))
}

fn lost(gfn: u64, cause: impl ToString) -> PagerFailure {
    PagerFailure::Lost { gfn, cause: cause.to_string() }
}

/// Stored pages that lie one after the other, decompressed here and mapped in one call.
#[derive(Default)]
pub(super) struct Batch {
    /// As many as were needed since it last rested: of an idle VM none.
    pages: Vec<AlignedPage>,
    claims: Vec<Claim<Refaulting>>,
    first: u64,
}

impl Batch {
    /// Pages that fit.
    pub const PAGES: usize = WINDOW_PAGES_MAX as usize;

    /// After so long without a page its owner lets it [`rest`](Self::rest).
    pub const PATIENCE: Duration = Duration::from_secs(1);

    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Whether it holds memory that it could give back.
    pub fn holds_memory(&self) -> bool {
        !self.pages.is_empty()
    }

    /// Gives back the memory of an empty batch, until it is needed again.
    pub fn rest(&mut self) {
        if self.is_empty() {
            self.pages = Vec::new();
        }
    }

    /// Where the next page must lie, and whether there is room for it.
    pub fn takes(&self, gfn: u64) -> bool {
        self.is_empty() || (gfn == self.first + self.claims.len() as u64 && self.claims.len() < Self::PAGES)
    }

    /// The place for the content of the next page. It counts once it is [`Batch::push`]ed.
    pub fn buffer(&mut self) -> &mut Page {
        let next = self.claims.len();
        &mut self.places(next + 1)[next].0
    }

    /// The places for the contents of the next `count` pages.
    pub fn buffers(&mut self, count: usize) -> Vec<&mut Page> {
        let next = self.claims.len();
        self.places(next + count)[next..].iter_mut().take(count).map(|page| &mut page.0).collect()
    }

    /// At least so many pages: one, or as many as there are ever.
    fn places(&mut self, count: usize) -> &mut [AlignedPage] {
        if self.pages.len() < count {
            self.pages.resize_with(if count > 1 { Self::PAGES } else { 1 }, AlignedPage::default);
        }
        &mut self.pages
    }

    /// The buffer is filled with this page, which is stored.
    pub fn push(&mut self, claim: Claim<Refaulting>) {
        if self.is_empty() {
            self.first = claim.gfn();
        }
        self.claims.push(claim);
    }

    /// Maps what was gathered.
    ///
    /// # Errors
    /// A page is lost; the claims are gone, unfinished.
    pub fn flush(&mut self, paged: &Paged) -> Result<(), PagerFailure> {
        let claims = self.claims.drain(..);
        let count = claims.len() as u64;
        if count > 0 {
            paged.copy_in(self.first..self.first + count, self.pages.as_ptr().cast())?;
        }
        for claim in claims {
            if let Place::Stored(stored) = claim.kind().from {
                paged.homes.release(stored);
            }
            paged.finish_in(claim);
        }
        Ok(())
    }
}
