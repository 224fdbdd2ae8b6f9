//! Pages that the kernel has merged with equal ones (KSM): they cost less than a page, until they are written to.
//!
//! A write to a merged page makes it a page of its own, in the kernel, where nobody asks whether there is room. So the merged
//! pages that are known are write-protected: the write is a fault that waits for room like any other, and only what is
//! protected counts as saved. KSM takes a protection off when it merges a page; looking finds it again
//! (Documentation/admin-guide/mm/{ksm,pagemap,userfaultfd}.rst).

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::ram::PAGE_SIZE;
use crate::userfault::UserfaultSupport;

use super::classify::{self, Mapped};
use super::config::EvictionMethod;
use super::frames::bytes;
use super::page_set::PageSet;
use super::paged::{Kernel, Paged};
use super::saving::Saving;
use super::{Pager, PagerError};

/// Pages unmerged together: what a guest is kept waiting for, and what room is asked for at a time.
const UNMERGE_PAGES: u64 = 16;

/// Pages held together while they are looked at: they are not evicted meanwhile.
const HELD_PAGES: u64 = 512;

/// The merged pages of a VM that are known and protected.
#[derive(Debug)]
pub(super) struct Merged {
    pages: PageSet,
    saving: Saving,
}

impl Merged {
    pub fn new(pages: u64) -> Self {
        Self { pages: PageSet::new(pages), saving: Saving::default() }
    }

    pub fn contains(&self, gfn: u64) -> bool {
        self.pages.contains(gfn)
    }

    /// How many of these pages they are.
    pub fn count_in(&self, gfns: Range<u64>) -> u64 {
        self.pages.count_in(gfns)
    }

    /// What pages cost that would cost so much unmerged, with what others come to cost by those that are merged no more.
    pub fn cost_bytes(&self, unmerged_bytes: u64) -> u64 {
        unmerged_bytes.saturating_sub(self.saving.bytes()).saturating_add(self.saving.owed_bytes())
    }

    /// What of that is others'.
    pub fn owed_bytes(&self) -> u64 {
        self.saving.owed_bytes()
    }

    /// The page is one of its own again, or gone. True when it was merged.
    pub fn remove(&self, gfn: u64) -> bool {
        let was = self.pages.remove(gfn);
        if was {
            self.saving.lose_page();
            self.saving.owe_page();
        }
        was
    }

    /// The page is one of its own again: the last who has it, or of the kernel's doing.
    fn forget(&self, gfn: u64) {
        if self.pages.remove(gfn) {
            self.saving.lose_page();
        }
    }

    pub fn remove_all(&self, gfns: Range<u64>) {
        if self.pages.count() > 0 {
            gfns.for_each(|gfn| {
                self.remove(gfn);
            });
        }
    }

    pub fn clear(&self) {
        self.pages.clear();
        self.saving.clear();
    }
}

/// What a look at advised pages has found. All in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergedPages {
    /// In guest RAM.
    pub present: u64,
    /// Of those, merged now.
    pub merged: u64,
    /// Of those, not so at the last look.
    pub new: u64,
}

/// A guest's pages and the kernel's merging of them. One thread at a time advises.
#[derive(Clone)]
pub struct Mergeable {
    paged: Arc<Paged>,
}

impl fmt::Debug for Mergeable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Mergeable").field("merged_pages", &self.merged_pages()).finish_non_exhaustive()
    }
}

impl Pager {
    /// Whether pages can be merged here.
    ///
    /// # Errors
    /// [`PagerError::Userfault`] when that cannot be found out.
    pub fn can_merge(&self) -> Result<bool, PagerError> {
        match self.paged.connected() {
            Some(kernel) => Ok(kernel.method == EvictionMethod::Move),
            None => {
                let is_wanted = self.paged.config.eviction != Some(EvictionMethod::Copy);
                Ok(is_wanted && UserfaultSupport::probe()?.move_pages)
            }
        }
    }

    /// The kernel says that merging saves so much here: what is saved of each merged page is not more than follows from that,
    /// however much the rest of the host has merged.
    pub(crate) fn note_merging_saves(&self, bytes: u64) {
        let Some(Kernel { merged, .. }) = self.paged.connected() else { return };
        merged.saving.note_look(merged.pages.count(), bytes);
        self.paged.offer_room();
    }

    /// `None` where pages cannot be moved, or were never paged: KSM takes protections off, and copying pages out relies on
    /// them.
    pub fn mergeable(&self) -> Option<Mergeable> {
        let kernel = self.paged.connected()?;
        (kernel.method == EvictionMethod::Move).then(|| Mergeable { paged: Arc::clone(&self.paged) })
    }
}

impl Mergeable {
    /// Lets the kernel merge the pages of a range inside one region of RAM.
    ///
    /// # Errors
    /// The kernel's: it has no KSM, or no memory.
    pub fn advise(&self, gfns: Range<u64>) -> io::Result<()> {
        self.paged.is_offered.store(true, Ordering::Relaxed);
        self.advise_kernel(&gfns, libc::MADV_MERGEABLE)
    }

    /// Takes the advice back, and makes merged pages of the range pages of their own, as far as there is room. Returns how far
    /// it came: the end of the range, or where to go on once there is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_back(&self, gfns: Range<u64>) -> io::Result<u64> {
        let mut next = gfns.start;
        while next < gfns.end {
            let mut part = next..gfns.end.min(next + UNMERGE_PAGES);
            while !self.may_unmerge(self.look(part.clone())?.merged) {
                // Without room for one nothing else is tried: this is asked often.
                if part.end == next + 1 || !self.may_unmerge(1) {
                    self.paged.reclaim.wake();
                    return Ok(next);
                }
                part.end = next + (part.end - next) / 2;
            }
            self.advise_kernel(&part, libc::MADV_UNMERGEABLE)?;
            let Kernel { frames, port, merged, .. } = self.paged.kernel();
            for gfn in part.clone() {
                if merged.remove(gfn) {
                    // Where it fails the page has left, and has no protection.
                    let _ = port.unprotect(frames.ram_address(gfn), PAGE_SIZE);
                }
            }
            // A write to one of them that waits for room needs none now.
            self.paged.offer_room();
            next = part.end;
        }
        Ok(next)
    }

    /// Says that pages wait to be unmerged for want of room, or wait no more: a pool makes room for that as for growth, where
    /// this VM's pages can leave.
    pub fn set_waiting(&self, is_waiting: bool) {
        self.paged.unmerging_waits.store(is_waiting, Ordering::Relaxed);
    }

    /// Finds out which pages of a range are merged, and protects those that are.
    ///
    /// # Errors
    /// Those of reading the process's page map.
    pub fn look(&self, gfns: Range<u64>) -> io::Result<MergedPages> {
        let paged = &self.paged;
        // In an open VM nobody answers for a protection.
        let _arming = paged.arming.read().unwrap_or_else(PoisonError::into_inner);
        if !paged.table.is_armed() {
            return Ok(MergedPages::default());
        }
        let Kernel { merged, marks, .. } = paged.kernel();
        let mut found = MergedPages::default();
        let mut fresh: Vec<Range<u64>> = Vec::new();
        self.each_mapped(&gfns, |gfn, page| {
            found.present += 1;
            if !page.is_protected && marks.contains(gfn) {
                // Merged, and written to since then for all we know: it may be worth storing now.
                marks.remove(gfn);
            }
            if !page.is_shared {
                merged.forget(gfn);
            } else if page.is_protected && merged.contains(gfn) {
                found.merged += 1;
            } else {
                match fresh.last_mut() {
                    Some(run) if run.end == gfn && run.end - run.start < HELD_PAGES => run.end += 1,
                    _ => fresh.push(gfn..gfn + 1),
                }
            }
        })?;
        let mut outcome = Ok(());
        for run in fresh {
            paged.hold_resident(run, |run| match self.protect_merged(run) {
                Ok(pages) => {
                    found.merged += pages;
                    found.new += pages;
                }
                Err(cause) => outcome = Err(cause),
            });
        }
        // A write that waits for room may need none now.
        paged.offer_room();
        outcome.map(|()| found)
    }

    /// Protects pages that nobody moves meanwhile, and knows those as merged that were so until then. Returns how many.
    fn protect_merged(&self, gfns: &Range<u64>) -> io::Result<u64> {
        let Kernel { frames, port, merged, .. } = self.paged.kernel();
        // Known first: a write between protection and look waits for room, and is seen to have broken the page.
        gfns.clone().for_each(|gfn| merged.pages.insert(gfn));
        let mut kept: Vec<u64> = Vec::new();
        let looked = match port.protect(frames.ram_address(gfns.start), bytes(gfns)) {
            Ok(()) => self.each_mapped(gfns, |gfn, page| {
                if page.is_shared && page.is_protected {
                    kept.push(gfn);
                }
            }),
            // Later, perhaps.
            Err(_) => Ok(()),
        };
        // Others were written to before they were protected, in vain then, or were given back: they cost what they did.
        for gfn in gfns.clone().filter(|gfn| kept.binary_search(gfn).is_err()) {
            merged.pages.remove(gfn);
        }
        looked.map(|()| kept.len() as u64)
    }

    /// What merging saves, from the part of merged pages that are saved wherever they are: `pages_sharing / (pages_shared +
    /// pages_sharing)` of the whole host. To be called after looking. Less is saved where the kernel says so of this process.
    pub fn set_saved_part(&self, saved_part: f64) {
        let Merged { pages, saving } = &self.paged.kernel().merged;
        saving.count(pages.count(), saved_part);
        self.paged.offer_room();
    }

    /// Merged pages that are known.
    pub fn merged_pages(&self) -> u64 {
        self.paged.kernel().merged.pages.count()
    }

    /// What they cost less than as many pages of their own.
    pub fn saved_bytes(&self) -> u64 {
        self.paged.kernel().merged.saving.bytes()
    }

    /// Merged pages that the guest has written to, in total.
    pub fn broken_pages(&self) -> u64 {
        self.paged.counters.broken.get()
    }

    fn may_unmerge(&self, pages: u64) -> bool {
        self.paged.credit.may_unmerge(self.paged.charge_bytes(), pages * PAGE_SIZE)
    }

    fn each_mapped(&self, gfns: &Range<u64>, mut see: impl FnMut(u64, Mapped)) -> io::Result<()> {
        let start = self.paged.kernel().frames.ram_address(gfns.start);
        classify::for_each_entry(start..start + bytes(gfns), |address, page| {
            see(gfns.start + (address - start) / PAGE_SIZE, page);
        })
    }

    fn advise_kernel(&self, gfns: &Range<u64>, advice: i32) -> io::Result<()> {
        let address = self.paged.kernel().frames.ram_address(gfns.start);
        // SAFETY: the range lies in the mapping of guest RAM; the advice changes no content.
        let result = unsafe { libc::madvise(address as *mut libc::c_void, bytes(gfns) as usize, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
