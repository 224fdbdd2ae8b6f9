//! Pages go aside: moved, or where the kernel cannot move them, write-protected, copied and dropped.

use std::io;
use std::ops::Range;

use crate::page_table::{Claim, CopyNext, Copying, DropNext, Dropping, Evicting, Run, State};
use crate::ram::PAGE_SIZE;

use super::config::EvictionMethod;
use super::frames::bytes;
use super::homes::Workbench;
use super::paged::{Kernel, Paged};

/// Failures of one call that may pass by themselves.
const ATTEMPTS: u32 = 16;

/// Which pages may go, of those in guest RAM that are neither pinned nor marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    /// Not those that came within the last so many arrivals.
    pub least_age_pages: u64,
    /// Also pages that are merged: each costs a page when it goes.
    pub takes_merged: bool,
}

impl Choice {
    /// Any.
    pub const ANY: Self = Self { least_age_pages: 0, takes_merged: true };
    /// Any but merged ones.
    pub const UNMERGED: Self = Self { takes_merged: false, ..Self::ANY };
}

impl Paged {
    /// Moves the pages of a range aside that may go. Returns how many went.
    pub fn move_aside(&self, gfns: Range<u64>, choice: Choice, bench: &mut Workbench) -> u64 {
        let Choice { least_age_pages, takes_merged } = choice;
        let Kernel { marks, merged, .. } = self.kernel();
        let mut moved = 0;
        let mut old: Option<Range<u64>> = None;
        let Ok(pages) = self.table.scan(gfns) else { return 0 };
        for (gfn, page) in pages {
            let is_old =
                page.stamp.is_none_or(|stamp| least_age_pages == 0 || !self.is_younger(stamp, least_age_pages));
            if page.state != State::Resident
                || page.pins > 0
                || !is_old
                || marks.contains(gfn)
                || (!takes_merged && merged.contains(gfn))
            {
                continue;
            }
            match &mut old {
                Some(run) if run.end == gfn => run.end += 1,
                _ => {
                    if let Some(run) = old.replace(gfn..gfn + 1) {
                        moved += self.move_run(run, takes_merged, bench);
                    }
                }
            }
        }
        moved + old.map_or(0, |run| self.move_run(run, takes_merged, bench))
    }

    /// Moves a page aside whatever else is known of it, if it is in guest RAM, not pinned and not merged.
    pub fn move_one_aside(&self, gfn: u64, bench: &mut Workbench) -> bool {
        let page = self.table.page(gfn);
        page.is_ok_and(|page| page.state == State::Resident && page.pins == 0)
            && !self.kernel().merged.contains(gfn)
            && self.move_run(gfn..gfn + 1, false, bench) > 0
    }

    fn move_run(&self, gfns: Range<u64>, takes_merged: bool, bench: &mut Workbench) -> u64 {
        let moved = match self.kernel().method {
            EvictionMethod::Move => match self.table.begin_evict_run(gfns) {
                Ok(runs) => runs.map(|run| self.move_out(run, takes_merged, bench)).sum(),
                Err(_) => 0,
            },
            EvictionMethod::Copy => self.copy_out(gfns, bench),
        };
        self.counters.aside.add(moved);
        moved
    }

    /// Moves a run that is claimed, as far as the kernel does it; the rest stays in guest RAM.
    fn move_out(&self, mut run: Run<Evicting>, takes_merged: bool, bench: &mut Workbench) -> u64 {
        let Kernel { frames, port, touched, merged, .. } = self.kernel();
        let (mut moved, mut attempts, mut unmerged) = (0, 0, None);
        // Moved in one call: all, unless a border between two mappings is in the way.
        let mut together = run.pages();
        while run.pages() > 0 {
            let gfns = run.gfns().start..run.gfns().end.min(run.gfns().start + together);
            let progress =
                port.move_pages(frames.side_address(gfns.start), frames.ram_address(gfns.start), bytes(&gfns));
            let rest = run.split_off(progress.bytes / PAGE_SIZE);
            let stamp = self.stamp();
            for claim in run {
                moved += 1;
                touched.note_left(claim.gfn());
                // It went, so it was not merged any more.
                merged.remove(claim.gfn());
                let after = self.table.finish_evict(claim, stamp).expect("the claim is of this table");
                self.after_out(after, bench);
            }
            run = rest;
            let Some(cause) = progress.cause else {
                together *= 2;
                continue;
            };
            if progress.bytes > 0 {
                attempts = 0;
                continue;
            }
            let gfn = run.gfns().start;
            attempts += 1;
            match cause.raw_os_error() {
                Some(libc::EAGAIN) if attempts < ATTEMPTS => self.counters.retried.add(1),
                Some(libc::EINVAL) if together > 1 => together /= 2,
                // A merged page is unmerged by a write that changes nothing. It is there, so this raises no fault.
                Some(libc::EBUSY) if takes_merged && unmerged != Some(gfn) => {
                    unmerged = Some(gfn);
                    if self.unmerge(gfn).is_ok() {
                        self.counters.unmerged.add(1);
                    }
                }
                _ => {
                    // This page stays, the others are tried.
                    let failed = if cause.raw_os_error() == Some(libc::EBUSY) {
                        &self.counters.busy
                    } else {
                        &self.counters.eviction_failed
                    };
                    failed.add(1);
                    attempts = 0;
                    let rest = run.split_off(1);
                    for claim in run {
                        let after = self.table.abort_evict(claim).expect("the claim is of this table");
                        self.after_in(gfn, after);
                    }
                    run = rest;
                }
            }
        }
        moved
    }

    fn unmerge(&self, gfn: u64) -> io::Result<()> {
        let Kernel { frames, port, merged, .. } = self.kernel();
        let address = frames.ram_address(gfn);
        merged.remove(gfn);
        // It may still be protected from a time when it was marked: then this thread's write would wait for this thread.
        port.unprotect(address, PAGE_SIZE)?;
        // SAFETY: the page lies in the mapping of guest RAM; making it private and writable changes no content.
        let result =
            unsafe { libc::madvise(address as *mut libc::c_void, PAGE_SIZE as usize, libc::MADV_POPULATE_WRITE) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Copies pages aside and drops them where no writer came in between.
    fn copy_out(&self, gfns: Range<u64>, bench: &mut Workbench) -> u64 {
        let mut claims: Vec<Claim<Copying>> = Vec::with_capacity((gfns.end - gfns.start) as usize);
        let mut copied = 0;
        for gfn in gfns {
            match self.table.begin_copy(gfn) {
                Ok(CopyNext::Won(claim)) => claims.push(claim),
                _ => copied += self.copy_run(&mut claims, bench),
            }
        }
        copied + self.copy_run(&mut claims, bench)
    }

    /// Copies and drops pages that lie one after the other.
    fn copy_run(&self, claims: &mut Vec<Claim<Copying>>, bench: &mut Workbench) -> u64 {
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else { return 0 };
        let gfns = first.gfn()..last.gfn() + 1;
        let frames = &self.kernel().frames;
        let protected = self.protect(&gfns);
        let mut won: Vec<Claim<Dropping>> = Vec::with_capacity(claims.len());
        for claim in claims.drain(..) {
            let gfn = claim.gfn();
            if !protected {
                self.counters.eviction_failed.add(1);
                self.give_up_copy(claim);
                continue;
            }
            // SAFETY: while *copying* is set nobody drops the page from guest RAM, and the side page of a page that is not
            // aside is its copier's.
            unsafe { frames.copy_aside(gfn) };
            match self.table.win_drop(claim).expect("the claim is of this table") {
                DropNext::Won(claim) => won.push(claim),
                DropNext::Lost(claim) => {
                    self.drop_copy(gfn);
                    self.give_up_copy(claim);
                }
                DropNext::Drop(claim) => {
                    self.drop_copy(gfn);
                    self.free_one(claim);
                }
            }
        }
        let mut dropped = 0;
        let stamp = self.stamp();
        for claim in won {
            let gfn = claim.gfn();
            // Nobody writes to a page that is protected and whose faults wait for this claim. A drop that the kernel refuses
            // for want of memory is tried until it does it: there is no way back from here.
            while frames.drop_ram(&(gfn..gfn + 1)).is_err() {
                self.counters.retried.add(1);
                std::thread::yield_now();
            }
            dropped += 1;
            self.kernel().touched.note_left(gfn);
            let after = self.table.finish_drop(claim, stamp).expect("the claim is of this table");
            self.after_out(after, bench);
        }
        dropped
    }

    fn protect(&self, gfns: &Range<u64>) -> bool {
        let Kernel { frames, port, .. } = self.kernel();
        for _ in 0..ATTEMPTS {
            match port.protect(frames.ram_address(gfns.start), bytes(gfns)) {
                Ok(()) => return true,
                Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) => self.counters.retried.add(1),
                Err(_) => return false,
            }
        }
        false
    }

    fn drop_copy(&self, gfn: u64) {
        let _ = self.kernel().frames.drop_side(&(gfn..gfn + 1));
    }

    /// A copier lost the page, or could not protect it.
    fn give_up_copy(&self, claim: Claim<Copying>) {
        let Kernel { frames, port, .. } = self.kernel();
        let gfn = claim.gfn();
        // Tried until it is done, whatever the kernel says: nobody else takes it off, and a writer would fault for ever. Of
        // a page that is not there any more it costs nothing.
        while port.unprotect(frames.ram_address(gfn), PAGE_SIZE).is_err() && !self.is_stopping() {
            self.counters.retried.add(1);
            std::thread::yield_now();
        }
        let after = self.table.abort_copy(claim).expect("the claim is of this table");
        self.after_in(gfn, after);
    }
}
