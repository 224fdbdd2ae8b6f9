//! Guest RAM is looked over: what is there is read where it is, and what is zero is given back.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::page_table::State;
use crate::store::{PAGE_BYTES, Page, zero};

use super::evict::Choice;
use super::homes::Workbench;
use super::paged::{Kernel, Paged};
use super::returns::Returns;
use super::{Pager, PagerError};

/// A page in guest RAM, as a scan sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight<'a> {
    /// A copy of its content. The guest may have written while it was made.
    Content(&'a Page),
    /// The kernel has merged it with others, and it was not written to since.
    Merged,
    /// The content of such a page, because that was asked for.
    MergedContent(&'a Page),
}

/// What is done with each. True asks for the content of a merged page.
type See<'a> = &'a mut dyn FnMut(u64, Sight<'_>) -> bool;

/// What a look over some pages has found. All in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Looked at.
    pub scanned_pages: u64,
    /// Given back because they were zero.
    pub freed_pages: u64,
}

/// One thread's means to look over a guest's RAM. Pages that have left are not looked at, and none is brought in.
pub struct Scan {
    paged: Arc<Paged>,
    bench: Workbench,
    page: Box<Page>,
    /// Zero pages that came back, where those are spared.
    returns: Option<Returns>,
    began: Instant,
}

impl Pager {
    /// For one thread, which must be [exempt](Pager::exempt_thread).
    ///
    /// # Errors
    /// [`PagerError::Codec`] when there is no memory for a codec.
    pub fn scan(&self) -> Result<Scan, PagerError> {
        Ok(Scan {
            paged: Arc::clone(&self.paged),
            bench: Workbench::new(&self.paged.config)?,
            page: Box::new([0; PAGE_BYTES]),
            returns: None,
            began: Instant::now(),
        })
    }
}

impl Scan {
    /// Does not give back those zero pages that the guest touched again soon after they had been, for a time: they are shown
    /// like any other.
    #[must_use]
    pub fn sparing(self) -> Self {
        Self { returns: Some(Returns::new(self.paged.table.pages())), ..self }
    }

    /// Gives back the pages of a range that are zero. Nothing happens in an open VM.
    pub fn free_zeroes(&mut self, gfns: Range<u64>) -> Found {
        self.look_over(gfns, true, None)
    }

    /// Shows every page of a range that is in guest RAM and not zero, and gives those back that are if `frees_zeroes`, or shows
    /// them where they are spared. Of a merged page `see` says whether its content is wanted too. Nothing happens in an open VM.
    pub fn show(&mut self, gfns: Range<u64>, frees_zeroes: bool, mut see: impl FnMut(u64, Sight<'_>) -> bool) -> Found {
        self.look_over(gfns, frees_zeroes, Some(&mut see))
    }

    fn look_over(&mut self, gfns: Range<u64>, frees_zeroes: bool, mut see: Option<See<'_>>) -> Found {
        let Self { paged, bench, page: buffer, returns, began } = self;
        let seconds = began.elapsed().as_secs();
        let mut found = Found::default();
        if !paged.table.is_armed() {
            return found;
        }
        let Ok(pages) = paged.table.scan(gfns) else { return found };
        let mut zeroes: Vec<Range<u64>> = Vec::new();
        for (gfn, page) in pages {
            if page.state != State::Resident || paged.is_stopping() {
                continue;
            }
            found.scanned_pages += 1;
            if paged.kernel().merged.contains(gfn) {
                if let Some(see) = &mut see
                    && see(gfn, Sight::Merged)
                    && paged.read_resident(gfn, true, buffer)
                {
                    see(gfn, Sight::MergedContent(buffer));
                }
            } else if paged.read_resident(gfn, see.is_some(), buffer) {
                let is_zero = zero::is_zero(buffer);
                let mut is_spared = || returns.as_mut().is_some_and(|returns| !returns.gives_back(gfn, seconds));
                if !is_zero || (frees_zeroes && is_spared()) {
                    if let Some(see) = &mut see {
                        see(gfn, Sight::Content(buffer));
                    }
                } else if frees_zeroes {
                    match zeroes.last_mut() {
                        Some(run) if run.end == gfn => run.end += 1,
                        _ => zeroes.push(gfn..gfn + 1),
                    }
                }
            }
        }
        for run in zeroes {
            found.freed_pages += paged.free_zeroes(run, bench);
        }
        found
    }
}

impl Paged {
    /// Copies a page, if it is in guest RAM; where only zeroes are wanted, only if it looks as if it were.
    fn read_resident(&self, gfn: u64, is_any_wanted: bool, page: &mut Page) -> bool {
        if !self.table.pin_resident(gfn).unwrap_or(false) {
            return false;
        }
        let frames = &self.kernel().frames;
        // SAFETY: the pin keeps the page in guest RAM; where the guest frees it meanwhile a new one comes, which is zero.
        let is_wanted = is_any_wanted || unsafe { frames.begins_with_zero(gfn) };
        if is_wanted {
            // SAFETY: as above.
            unsafe { frames.copy_out(gfn, page) };
        }
        self.unpin(gfn..gfn + 1);
        is_wanted
    }

    /// Gives back the pages of a range that are zero: each is moved aside, where it cannot change, and looked at there. What
    /// turns out to hold anything comes back at once. Returns how many went.
    fn free_zeroes(&self, gfns: Range<u64>, bench: &mut Workbench) -> u64 {
        self.move_aside(gfns.clone(), Choice::UNMERGED, bench);
        let Ok(runs) = self.table.begin_store_run(gfns) else { return 0 };
        let (mut zeroes, mut others) = (Vec::new(), Vec::new());
        for claim in runs.flatten() {
            let gfn = claim.gfn();
            // SAFETY: the page is aside and the claim is ours until it is freed or aborted below.
            let page = unsafe { self.kernel().frames.side_page(gfn) };
            if zero::is_zero(page) {
                zeroes.push(self.table.free_instead(claim).expect("the claim is of this table"));
            } else {
                others.push(gfn);
                let after = self.table.abort_store(claim).expect("the claim is of this table");
                self.after_out(after, bench);
            }
        }
        let Kernel { frames, .. } = self.kernel();
        for group in zeroes.chunk_by(|one, next| one.gfn() + 1 == next.gfn()) {
            if frames.drop_side(&(group[0].gfn()..group[group.len() - 1].gfn() + 1)).is_err() {
                self.counters.eviction_failed.add(group.len() as u64);
            }
        }
        let freed = zeroes.len() as u64;
        zeroes.into_iter().for_each(|claim| self.finish_free(claim));
        self.counters.zero_freed.add(freed);
        for group in others.chunk_by(|one, next| one + 1 == *next) {
            self.put_in_place(group[0]..group[group.len() - 1] + 1, bench, |_| {});
        }
        if freed > 0 {
            self.offer_room();
        }
        freed
    }
}
