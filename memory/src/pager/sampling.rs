//! Which pages the guest touches in a period: those that come into guest RAM, and of those that were there, a sample.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::page_table::State;

use super::homes::Workbench;
use super::page_set::PageSet;
use super::paged::Paged;

/// Pages looked at for each page of the sample, where most are not in guest RAM.
const TRIES_PER_PAGE: usize = 64;

/// The pages that came into guest RAM in this period. Of pages that were there when it began the sample tells: those that
/// left and come back are not counted a second time.
#[derive(Debug)]
pub(super) struct Touched {
    pages: PageSet,
    left: PageSet,
    // A page that comes while this changes is in neither period or in both.
    is_watched: AtomicBool,
    // What is moved aside meanwhile is the sample.
    is_sampling: AtomicBool,
}

impl Touched {
    pub fn new(pages: u64) -> Self {
        Self {
            pages: PageSet::new(pages),
            left: PageSet::new(pages),
            is_watched: AtomicBool::new(false),
            is_sampling: AtomicBool::new(false),
        }
    }

    /// A page came that was asked for, or that a walk is about to touch.
    pub fn note(&self, gfn: u64) {
        if self.is_watched.load(Ordering::Relaxed) && !self.left.contains(gfn) {
            self.pages.insert(gfn);
        }
    }

    /// A page leaves guest RAM. Of one that came in this period the arrival stays counted.
    pub fn note_left(&self, gfn: u64) {
        if self.is_watched.load(Ordering::Relaxed)
            && !self.is_sampling.load(Ordering::Relaxed)
            && !self.pages.contains(gfn)
        {
            self.left.insert(gfn);
        }
    }
}

/// Pages that were moved aside to see whether they come back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    gfns: Vec<u64>,
    resident_pages: u64,
}

/// What came of a sample. All in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Touches {
    /// In guest RAM when the sample was taken.
    pub resident_pages: u64,
    /// Of those, in the sample.
    pub sampled_pages: u64,
    /// Of the sample, touched since.
    pub sampled_touched_pages: u64,
    /// Others that were not in guest RAM then and came since, each counted once.
    pub arrived_pages: u64,
}

impl Paged {
    /// Begins a period: moves up to `pages` random pages of guest RAM aside, each alone, and notes which pages come from now
    /// on.
    pub fn begin_sample(&self, pages: usize, bench: &mut Workbench) -> Sample {
        let touched = &self.kernel().touched;
        let ram = self.kernel().frames.ram();
        touched.is_watched.store(true, Ordering::Relaxed);
        touched.is_sampling.store(true, Ordering::Relaxed);
        touched.pages.clear();
        touched.left.clear();
        let mut sample = Sample { gfns: Vec::with_capacity(pages), resident_pages: self.table.count(State::Resident) };
        for _ in 0..pages.saturating_mul(TRIES_PER_PAGE) {
            if sample.gfns.len() == pages {
                break;
            }
            let gfn = ram.random_gfn();
            if self.move_one_aside(gfn, bench) {
                sample.gfns.push(gfn);
            }
        }
        touched.is_sampling.store(false, Ordering::Relaxed);
        sample.gfns.sort_unstable();
        sample.gfns.dedup();
        sample
    }

    /// Whether pages that nobody has touched are to come back: where they can be merged only in guest RAM, and no page has to
    /// leave. Elsewhere they stay aside: whoever has to leave next is known then.
    pub fn wants_untouched(&self) -> bool {
        self.is_offered.load(Ordering::Relaxed) && self.view().reclaim_to_bytes.is_none()
    }

    /// Brings those pages of a sample back that nobody has touched.
    pub fn return_untouched(&self, sample: &Sample, bench: &mut Workbench) {
        let is_aside = |gfn: u64| self.table.page(gfn).is_ok_and(|page| page.state == State::Aside);
        for &gfn in sample.gfns.iter().filter(|&&gfn| is_aside(gfn)) {
            self.put_in_place(gfn..gfn + 1, bench, |_| {});
        }
    }

    /// What came of a sample so far.
    pub fn touches(&self, sample: &Sample) -> Touches {
        let touched = &self.kernel().touched.pages;
        let sampled_touched_pages = sample.gfns.iter().filter(|&&gfn| touched.contains(gfn)).count() as u64;
        Touches {
            resident_pages: sample.resident_pages,
            sampled_pages: sample.gfns.len() as u64,
            sampled_touched_pages,
            arrived_pages: touched.count().saturating_sub(sampled_touched_pages),
        }
    }

    /// Ends the watch: pages that come cost nothing beside that.
    pub fn end_sample(&self) {
        if let Some(kernel) = self.connected() {
            kernel.touched.is_watched.store(false, Ordering::Relaxed);
        }
    }
}
