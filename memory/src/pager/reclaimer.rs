//! The threads that keep a VM within its limit: they look, let `plan` decide, and move pages.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cpu_share::CpuShare;
use crate::policy::tiers::Tiers;
use crate::store::PAGE_BYTES;
use crate::store::compressed::CompressedStatistics;
use crate::store::swap::SwapStatistics;

use super::config::EvictionMethod;
use super::counters::Source;
use super::evict::Choice;
use super::hands::{Hands, STEP_PAGES};
use super::homes::Workbench;
use super::pace::Pace;
use super::paged::{Kernel, Paged};
use super::plan::View;
use super::signal::Seen;
use super::store::{StoreOutcome, Storer, WRITE_PAGES};

/// How often what is at rest is looked after: cold pages, holes, a swap file that failed.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How long a swap file is left alone after a write failed.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Rounds without a page stored after which nothing more can be.
const FRUITLESS_ROUNDS: u64 = 3;

/// Rounds without a page stored after which pages of any age go, and after which merged ones do.
const ANY_AGE_ROUNDS: u64 = 1;
const MERGED_ROUNDS: u64 = 2;

/// Pages moved, and pages stored, before a decision is looked at again.
const PAGES_PER_STEP: u64 = 4 * STEP_PAGES;

/// How often a hand goes on in a step, whatever comes of it.
const LOOKS_PER_STEP: u32 = 1024;

/// Slabs tidied between two steps.
const TIDY_SLABS: usize = 4;

/// Freed pages of the swap file in a row that are worth a hole.
const HOLE_PAGES: u32 = 16;

/// What the reclaimers of a VM have in common.
#[derive(Debug)]
pub(super) struct Progress {
    hands: Hands,
    /// Rounds of the first hand when a page was last stored.
    fruitful_round: u64,
    swap_failed: Option<Instant>,
    housekept: Instant,
    pace: Pace,
    marks_forgotten: Instant,
    /// Marked pages were tried again since one was last stored.
    marks_tried: bool,
}

impl Progress {
    pub fn new(hands: Hands) -> Self {
        Self {
            hands,
            fruitful_round: 0,
            swap_failed: None,
            housekept: Instant::now(),
            pace: Pace::default(),
            marks_forgotten: Instant::now(),
            marks_tried: false,
        }
    }
}

/// One thread's part. The lock is held to move the hands only.
pub(super) struct Reclaimer {
    paged: Arc<Paged>,
    progress: Arc<Mutex<Progress>>,
    bench: Workbench,
    storer: Storer,
    share: CpuShare,
}

impl Reclaimer {
    /// For the calling thread, which may use `percent` of a CPU.
    pub fn new(paged: Arc<Paged>, progress: Arc<Mutex<Progress>>, bench: Workbench, percent: u32) -> Self {
        Self { paged, progress, bench, storer: Storer::default(), share: CpuShare::new(percent) }
    }

    /// Works until the pager stops.
    pub fn run(mut self) {
        let mut seen = Seen::default();
        while !self.paged.is_stopping() {
            let worked = self.step() | self.keep_house();
            if let Some(pause) = self.share.pause() {
                self.paged.reclaim_pause(pause);
            } else if !worked {
                self.bench.rest();
                // An open VM wakes nobody. In an armed one pages grow cold, and come home.
                let is_armed = self.paged.table.is_armed();
                self.paged.reclaim.wait(&mut seen, is_armed.then_some(HOUSEKEEPING));
            }
        }
    }

    /// Evicts a little if there is reason to. False when there was nothing to do.
    fn step(&mut self) -> bool {
        let table = &self.paged.table;
        let mut view = self.paged.view();
        let mut plan = view.plan();
        if plan.is_idle() || !table.is_armed() {
            self.recover();
            self.paged.offer_room();
            self.paged.open_if_home();
            return false;
        }
        self.make_room();
        if self.demote(&view) > 0 {
            view = self.paged.view();
            plan = view.plan();
        }
        let round = self.rounds();
        let fruitless = round.saturating_sub(self.lock().fruitful_round);
        // Pages that came during the last half of a round are passed over, unless there are no others.
        let choice = Choice {
            least_age_pages: if fruitless <= ANY_AGE_ROUNDS {
                self.lock().pace.least_age_pages(view.resident_pages)
            } else {
                0
            },
            takes_merged: fruitless > MERGED_ROUNDS,
        };
        let wanted = plan.aside_pages.min(PAGES_PER_STEP);
        let (mut moved, mut looks) = (0, 0);
        // Once round at most: what is left there is looked at with other eyes then.
        while moved < wanted && looks < LOOKS_PER_STEP && self.rounds() == round {
            let gfns = self.lock().hands.next_to_evict();
            moved += self.paged.move_aside(gfns, choice, &mut self.bench);
            looks += 1;
        }
        // What is aside has its time there as long as there are others to store.
        let aside_pages = self.paged.view().aside_pages;
        let spare_pages =
            if moved < wanted || fruitless > 0 { aside_pages } else { aside_pages.saturating_sub(plan.reserve_pages) };
        let wanted = plan.store_pages.min(spare_pages).min(PAGES_PER_STEP);
        let (mut outcome, mut looks) = (StoreOutcome::default(), 0);
        while outcome.stored < wanted && looks < LOOKS_PER_STEP {
            let Some(gfns) = self.next_to_store(round) else { break };
            self.storer.store(&self.paged, gfns, &mut self.bench);
            outcome = self.storer.gathered();
            looks += 1;
        }
        let outcome = self.storer.finish(&self.paged, &mut self.bench);
        self.paged.homes.compressed.tidy(TIDY_SLABS);
        self.paged.homes.count_bookkeeping();
        let exhausted = self.note(moved, outcome.stored);
        if outcome.stored > 0 || exhausted {
            // Who waits for room may find it.
            self.paged.offer_room();
        }
        if exhausted && moved == 0 && outcome.stored == 0 {
            return false;
        }
        true
    }

    /// Where to store next. Samples are aside wherever the first hand is: where they are all that is wanted it goes on over
    /// them and moves nothing, once round at most.
    fn next_to_store(&self, round: u64) -> Option<Range<u64>> {
        let hands = &mut self.lock().hands;
        if let Some(gfns) = hands.next_to_store() {
            return Some(gfns);
        }
        if hands.rounds() != round {
            return None;
        }
        hands.next_to_evict();
        hands.next_to_store()
    }

    /// Notes what came of a step; true when nothing more can be evicted.
    fn note(&self, moved: u64, stored: u64) -> bool {
        let mut progress = self.lock();
        let round = progress.hands.rounds();
        if stored > 0 {
            (progress.fruitful_round, progress.marks_tried) = (round, false);
        }
        let mut exhausted = round.saturating_sub(progress.fruitful_round) > FRUITLESS_ROUNDS && moved == 0;
        let Kernel { method, marks, .. } = self.paged.kernel();
        // Where pages are copied nobody tells that marked ones were written to: they are tried again before giving up.
        if exhausted && *method == EvictionMethod::Copy && !progress.marks_tried {
            marks.clear();
            (progress.fruitful_round, progress.marks_tried) = (round, true);
            exhausted = false;
        }
        drop(progress);
        self.paged.credit.set_exhausted(exhausted);
        exhausted
    }

    /// Below the limit again.
    fn recover(&self) {
        let mut progress = self.lock();
        progress.fruitful_round = progress.hands.rounds();
        drop(progress);
        self.paged.credit.set_exhausted(false);
    }

    /// Keeps the compressed store below its limit by what is oldest there.
    fn make_room(&mut self) {
        if !self.can_swap() {
            return;
        }
        let reserve_bytes = 2 * STEP_PAGES * PAGE_BYTES as u64;
        for _ in 0..4 {
            let store = self.paged.homes.compressed.statistics();
            if store.held_bytes + reserve_bytes <= store.limit_bytes || store.pages == 0 {
                break;
            }
            if Storer::write_back(&self.paged, WRITE_PAGES, u64::MAX, &mut self.bench) == 0 {
                break;
            }
            self.paged.homes.compressed.tidy(TIDY_SLABS);
        }
    }

    /// Writes compressed pages to the swap file that are worth less than those in guest RAM that would have to go. Returns how
    /// many: few, as whoever waits for room need not wait for a disk where there are other pages to take.
    fn demote(&mut self, view: &View) -> u64 {
        let store = self.paged.homes.compressed.statistics();
        let swap = self.paged.homes.swap.as_ref();
        if store.pages == 0 || !self.can_swap() || !swap.is_some_and(|swap| has_room(swap.statistics())) {
            return 0;
        }
        let residence = self.lock().pace.residence(view.resident_pages);
        let Some(by_seconds) = self.worth_less_by_seconds(residence, store) else { return 0 };
        let moved = Storer::write_back(&self.paged, WRITE_PAGES, by_seconds, &mut self.bench);
        if moved > 0 {
            self.paged.homes.compressed.tidy(TIDY_SLABS);
        }
        moved
    }

    /// Until when compressed pages must not have been touched to be worth less than those that stay for `residence`, in this
    /// guest's RAM or another's.
    fn worth_less_by_seconds(&self, residence: Duration, store: CompressedStatistics) -> Option<u64> {
        let tiers = Tiers {
            residence: residence.min(self.paged.pool_residence()),
            page_bytes: PAGE_BYTES as u64,
            compressed_page_bytes: store.held_bytes / store.pages.max(1),
            compressed_refault: self.paged.counters.usual_latency(Source::Compressed),
            swapped_refault: self.paged.counters.usual_latency(Source::Swapped),
        };
        let age_seconds = tiers.demotion_age(self.paged.config.cold_after).as_secs_f64().ceil() as u64;
        self.paged.homes.now_seconds().checked_sub(age_seconds)
    }

    /// What need not be done at once. True when there is more of it.
    fn keep_house(&mut self) -> bool {
        {
            let mut progress = self.lock();
            if progress.housekept.elapsed() < HOUSEKEEPING {
                return false;
            }
            let passed = progress.housekept.elapsed();
            progress.pace.second(&self.paged, passed);
            progress.housekept = Instant::now();
        }
        // Where pages come back by themselves, nobody else gives back what they have left; where pages are to leave, that is
        // more urgent.
        while self.paged.homes.compressed.tidy(TIDY_SLABS * 16) > 0
            && self.paged.view().plan().is_idle()
            && !self.paged.is_stopping()
        {
            if let Some(pause) = self.share.pause() {
                self.paged.reclaim_pause(pause);
            }
        }
        self.paged.homes.count_bookkeeping();
        self.paged.offer_room();
        if !self.can_swap() {
            return false;
        }
        if let Some(swap) = &self.paged.homes.swap {
            swap.punch_holes(HOLE_PAGES);
            self.forget_marks(swap.statistics());
        }
        let mut moved = 0;
        // Its own pages need not leave now; another's may.
        if let Some(by_seconds) = self.worth_less_by_seconds(Duration::MAX, self.paged.homes.compressed.statistics()) {
            while moved < 64 * WRITE_PAGES as u64 && !self.paged.is_stopping() {
                match Storer::write_back(&self.paged, WRITE_PAGES, by_seconds, &mut self.bench) {
                    0 => break,
                    pages => moved += pages,
                }
                if let Some(pause) = self.share.pause() {
                    self.paged.reclaim_pause(pause);
                }
            }
        }
        moved > 0
    }

    /// Whether there is a swap file that takes pages. One that failed is tried again later.
    fn can_swap(&self) -> bool {
        let Some(swap) = &self.paged.homes.swap else { return false };
        if !swap.statistics().unavailable {
            return true;
        }
        let mut progress = self.lock();
        let failed = *progress.swap_failed.get_or_insert_with(Instant::now);
        if failed.elapsed() < RETRY_AFTER {
            return false;
        }
        progress.swap_failed = None;
        drop(progress);
        swap.retry();
        // What had no other home may have one now.
        self.paged.kernel().marks.clear();
        true
    }

    /// Pages that found the swap file full are tried again when it has room.
    fn forget_marks(&self, swap: SwapStatistics) {
        let mut progress = self.lock();
        if has_room(swap) && progress.marks_forgotten.elapsed() >= RETRY_AFTER {
            progress.marks_forgotten = Instant::now();
            self.paged.kernel().marks.clear();
        }
    }

    fn rounds(&self) -> u64 {
        self.lock().hands.rounds()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the file may take what is written together.
fn has_room(swap: SwapStatistics) -> bool {
    swap.held_bytes + (WRITE_PAGES * PAGE_BYTES) as u64 <= swap.limit_bytes
}
