//! The thread that answers page faults.
//!
//! It never touches guest RAM through its mapping, reads no file, and waits for nobody: a page that another thread is at
//! is left to that thread, a page in the swap file to a reader, and a guest that may not grow waits in a queue.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::page_table::{Claim, Place, RefaultNext, Refaulting, State};
use crate::ram::PAGE_SIZE;
use crate::store::codec::Decompressor;

use super::PagerFailure;
use super::affinity::Affinity;
use super::config::EvictionMethod;
use super::counters::Source;
use super::credit::Growth;
use super::descriptor::{EVENTS, Fault};
use super::fetcher::needs_reader;
use super::paged::{Kernel, Paged, source_of};
use super::reads::Job;
use super::refault::Batch;
use super::streams::Streams;

/// Pages of a cluster: what a first touch brings.
pub(super) const CLUSTER_PAGES: u64 = 16;

/// The fault handler of one VM.
pub(super) struct Handler {
    paged: Arc<Paged>,
    streams: Streams,
    batch: Batch,
    decompressor: Decompressor,
    affinity: Affinity,
    /// When there was something to do last.
    busy: Instant,
    /// Faults of a guest that may not grow, oldest first. Each is a thread that waits in the kernel: KVM has at most 64 a
    /// CPU (`ASYNC_PF_PER_VCPU`).
    waiting: VecDeque<(Fault, Instant)>,
}

/// What became of a fault.
enum Answer {
    Done,
    Waits,
}

impl Handler {
    pub fn new(paged: Arc<Paged>) -> Self {
        Self {
            paged,
            streams: Streams::default(),
            batch: Batch::default(),
            decompressor: Decompressor::new(),
            affinity: Affinity::new(),
            busy: Instant::now(),
            waiting: VecDeque::new(),
        }
    }

    /// Answers faults until the pager stops.
    pub fn run(mut self) {
        let mut faults = Vec::new();
        while !self.paged.is_stopping() {
            if self.wait_for_events() {
                self.paged.handler.clear();
            }
            let mut is_needed = !self.waiting.is_empty();
            loop {
                // An error here is a descriptor that does not work: nobody would ever be answered.
                if let Err(cause) = self.paged.kernel().port.read(&mut faults) {
                    self.paged.fail(&PagerFailure::Descriptor { cause });
                    return;
                }
                let count = faults.len();
                is_needed |= count > 0;
                let since = Instant::now();
                // Those who waited longest come first.
                self.try_waiting();
                for fault in faults.drain(..) {
                    if let Answer::Waits = self.answer_or_fail(fault, since, true) {
                        self.paged.counters.waited.add(1);
                        self.paged.counters.refaults_waited.add(u64::from(self.is_on_stored(&fault)));
                        self.waiting.push_back((fault, since));
                        self.paged.set_guest_waits(true);
                        self.paged.reclaim.wake();
                    }
                }
                if count < EVENTS {
                    break;
                }
            }
            self.try_waiting();
            if is_needed {
                self.busy = Instant::now();
                self.affinity.follow(self.paged.vcpu_threads());
            } else if self.batch.holds_memory() && self.busy.elapsed() >= Batch::PATIENCE {
                self.batch.rest();
            }
        }
        // Whoever is left looks again, and finds a VM without a pager.
        for (fault, _) in self.waiting.drain(..) {
            self.paged.wake(self.paged.kernel().frames.ram().gfn_at(fault.address).unwrap_or(0));
        }
    }

    /// Waits for faults or a kick, no longer than it is right to hold what answers were held in; true when there was a kick.
    fn wait_for_events(&self) -> bool {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut descriptors = [poll(self.paged.kernel().port.fd()), poll(self.paged.handler.fd())];
        let patience_ms = if self.batch.holds_memory() { Batch::PATIENCE.as_millis() as libc::c_int } else { -1 };
        // SAFETY: an array of two, as said. Interrupted or not, both descriptors are looked at next.
        unsafe { libc::poll(descriptors.as_mut_ptr(), descriptors.len() as libc::nfds_t, patience_ms) };
        descriptors[1].revents != 0
    }

    /// Those who waited get what they want in their order, as far as there is room.
    fn try_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        while let Some((fault, since)) = self.waiting.pop_front() {
            if let Answer::Waits = self.answer_or_fail(fault, since, false) {
                self.waiting.push_front((fault, since));
                // Not more: a reclaimer without anything to do sends those who wait here.
                self.paged.ask_for_room();
                return;
            }
        }
        self.paged.set_guest_waits(false);
    }

    fn answer_or_fail(&mut self, fault: Fault, since: Instant, is_new: bool) -> Answer {
        self.answer(fault, since, is_new).unwrap_or_else(|failure| {
            self.paged.fail(&failure);
            Answer::Done
        })
    }

    fn answer(&mut self, fault: Fault, since: Instant, is_new: bool) -> Result<Answer, PagerFailure> {
        let paged = Arc::clone(&self.paged);
        // Only owners of a claim look at the side mapping, and they look where the page is.
        let Some(gfn) = paged.kernel().frames.ram().gfn_at(fault.address) else { return Ok(Answer::Done) };
        let Some(room_bytes) = self.room(gfn, &fault, is_new) else { return Ok(Answer::Waits) };
        let next = paged.table.begin_refault(gfn).expect("the page is RAM");
        match next {
            RefaultNext::Won(claim) => self.bring(claim, since, room_bytes)?,
            // Protected, so it is there: from a time before the VM was opened, if that could not be undone.
            RefaultNext::FirstTouch if fault.is_protected => self.answer_present(gfn, &fault),
            RefaultNext::FirstTouch => self.touch(gfn, since, room_bytes)?,
            RefaultNext::Joined => paged.counters.joined.add(1),
            RefaultNext::Present => {
                paged.counters.joined.add(1);
                self.answer_present(gfn, &fault);
            }
        }
        if !paged.view().plan().is_idle() {
            paged.reclaim.wake();
        }
        Ok(Answer::Done)
    }

    /// By how many bytes memory may grow for this fault; `None` to wait. A page that is in memory already costs nothing.
    fn room(&self, gfn: u64, fault: &Fault, is_new: bool) -> Option<u64> {
        let paged = &self.paged;
        let state = paged.table.page(gfn).expect("the page is RAM").state;
        let thread = fault.thread;
        // A merged page that is written to becomes one of its own.
        let is_merged = fault.is_protected && paged.kernel().merged.contains(gfn);
        if !(state.is_stored() || matches!(state, State::Unknown | State::Untouched) || is_merged) {
            return Some(u64::MAX);
        }
        match paged.ask_for_page() {
            // Room is for those who wait for it already.
            Growth::Granted(_) if is_new && !self.waiting.is_empty() && !paged.is_exempt(thread) => None,
            Growth::Granted(bytes) => Some(bytes),
            Growth::Wait if paged.is_exempt(thread) => {
                paged.counters.device_pages.add(1);
                Some(PAGE_SIZE)
            }
            Growth::Wait => None,
            Growth::BeyondLimit => {
                paged.counters.over_limit_pages.add(1);
                Some(PAGE_SIZE)
            }
        }
    }

    /// Whether a fault is on a page that has left, and not on one that would be new.
    fn is_on_stored(&self, fault: &Fault) -> bool {
        let gfn = self.paged.kernel().frames.ram().gfn_at(fault.address);
        gfn.and_then(|gfn| self.paged.table.page(gfn).ok()).is_some_and(|page| page.state.is_stored())
    }

    /// The page came while the fault was on its way here, or it is there and write-protected because it was found not worth
    /// storing: from now on it may be tried again.
    fn answer_present(&self, gfn: u64, fault: &Fault) {
        let Kernel { frames, port, method, marks, merged, .. } = self.paged.kernel();
        if fault.is_protected && *method == EvictionMethod::Move {
            marks.remove(gfn);
            if merged.remove(gfn) {
                self.paged.counters.broken.add(1);
            }
            // Pages are moved whole and nobody copies from behind a protection, so taking it off is always right. It fails
            // where the page has left again: then the writer faults once more.
            let _ = port.unprotect(frames.ram_address(gfn), PAGE_SIZE);
        }
        self.paged.wake(gfn);
    }

    /// A page that holds nothing: it comes with the rest of its cluster, as far as there is room.
    fn touch(&mut self, gfn: u64, since: Instant, room_bytes: u64) -> Result<(), PagerFailure> {
        let paged = Arc::clone(&self.paged);
        let cluster =
            if room_bytes >= CLUSTER_PAGES * PAGE_SIZE { self.clip(cluster_of(gfn), gfn) } else { gfn..gfn + 1 };
        let mut found = false;
        for run in paged.table.touch_first_run(cluster).expect("the cluster is RAM") {
            let gfns = run.gfns();
            paged.bring(&gfns, run.kind().from, &mut self.decompressor)?;
            run.for_each(|claim| paged.finish_in(claim));
            let asked = gfns.contains(&gfn);
            found |= asked;
            paged.counters.came_along(Source::FirstTouch, gfns.end - gfns.start - u64::from(asked));
        }
        if found {
            paged.counters.came(Source::FirstTouch, Some(since.elapsed()));
        } else {
            // Somebody was faster. It may be gone again by now: the thread looks for itself.
            paged.wake(gfn);
        }
        Ok(())
    }

    /// A page that is aside or stored: it comes with what a walk would touch next.
    fn bring(&mut self, claim: Claim<Refaulting>, since: Instant, room_bytes: u64) -> Result<(), PagerFailure> {
        let paged = Arc::clone(&self.paged);
        let (gfn, from) = (claim.gfn(), claim.kind().from);
        if from == Place::Resident {
            paged.bring(&(gfn..gfn + 1), from, &mut self.decompressor)?;
            paged.finish_in(claim);
            return Ok(());
        }
        let window = self.streams.observe(gfn);
        let window = self.clip(window, gfn);
        // What comes along takes room too, but for pages that are aside.
        let room_pages = match paged.ask_for_page() {
            Growth::Granted(bytes) => bytes.min(room_bytes) / PAGE_SIZE,
            Growth::Wait | Growth::BeyondLimit => 0,
        };
        let to_read = if needs_reader(&paged, from) {
            let claims = vec![claim];
            self.bring_along(gfn + 1..window.end, claims, room_pages)?
        } else {
            self.gather(claim, true)?;
            let to_read = self.bring_along(gfn + 1..window.end, Vec::new(), room_pages)?;
            paged.counters.came(source_of(from), Some(since.elapsed()));
            to_read
        };
        if !to_read.is_empty() {
            let asked = (to_read[0].gfn() == gfn).then_some((gfn, since));
            paged.readers.push(Job { claims: to_read, asked });
        }
        Ok(())
    }

    /// Brings in what a walk will touch next and whatever was gathered before: as many stored pages as there is room for.
    /// Returns what must be read from the swap file.
    fn bring_along(
        &mut self,
        gfns: Range<u64>,
        mut to_read: Vec<Claim<Refaulting>>,
        mut room_pages: u64,
    ) -> Result<Vec<Claim<Refaulting>>, PagerFailure> {
        let paged = Arc::clone(&self.paged);
        for run in paged.table.begin_refault_run(gfns).expect("the window is RAM") {
            let (run_gfns, from) = (run.gfns(), run.kind().from);
            let count = run_gfns.end - run_gfns.start;
            if from != Place::Aside {
                if count > room_pages {
                    run.for_each(|claim| paged.abort_in(claim));
                    break;
                }
                room_pages -= count;
            }
            if needs_reader(&paged, from) {
                to_read.extend(run);
                continue;
            }
            paged.counters.came_along(source_of(from), count);
            if from == Place::Aside {
                paged.bring(&run_gfns, from, &mut self.decompressor)?;
                run.for_each(|claim| paged.finish_in(claim));
            } else {
                for claim in run {
                    self.gather(claim, false)?;
                }
            }
        }
        self.batch.flush(&paged)?;
        Ok(to_read)
    }

    /// Takes one page into the batch, or brings it in at once if it is not stored. `is_asked`: it is the page of the fault;
    /// another that cannot be had stays where it is.
    fn gather(&mut self, claim: Claim<Refaulting>, is_asked: bool) -> Result<(), PagerFailure> {
        let paged = Arc::clone(&self.paged);
        let (gfn, from) = (claim.gfn(), claim.kind().from);
        let Place::Stored(stored) = from else {
            paged.bring(&(gfn..gfn + 1), from, &mut self.decompressor)?;
            paged.finish_in(claim);
            return Ok(());
        };
        if !self.batch.takes(gfn) {
            self.batch.flush(&paged)?;
        }
        match paged.homes.fetch(stored, &mut self.decompressor, self.batch.buffer()) {
            Ok(()) => self.batch.push(claim),
            Err(cause) if is_asked => return Err(PagerFailure::Lost { gfn, cause: cause.to_string() }),
            Err(_) => paged.abort_in(claim),
        }
        Ok(())
    }

    /// The part of a range that is in the same region as one of its pages.
    fn clip(&self, gfns: Range<u64>, gfn: u64) -> Range<u64> {
        let region = self.paged.kernel().frames.region(gfn);
        gfns.start.max(region.start)..gfns.end.min(region.end)
    }
}

fn cluster_of(gfn: u64) -> Range<u64> {
    let start = gfn - gfn % CLUSTER_PAGES;
    start..start + CLUSTER_PAGES
}
