//! Open and armed: a VM's faults are the kernel's, or the pager's.
//!
//! Arming, classifying and opening never overlap; the write lock of `arming` sees to it. A page that is dropped from an
//! open VM behind the page table's back is dropped under the read lock.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::mapping::MappingError;
use crate::page_table::State;
use crate::ram::{GuestRam, PAGE_SIZE};
use crate::userfault::{UserfaultError, UserfaultSupport};

use super::PagerError;
use super::classify;
use super::config::EvictionMethod;
use super::descriptor::{Descriptor, FaultPort};
use super::frames::{Frames, bytes};
use super::merged::Merged;
use super::page_set::PageSet;
use super::paged::{Kernel, Paged};
use super::recency::Recency;
use super::sampling::Touched;

impl Kernel {
    /// Opens the userfaultfd and makes the side mapping. `port` stands a fault injector in the descriptor's place.
    pub fn open(
        ram: &Arc<GuestRam>,
        wanted: Option<EvictionMethod>,
        port: impl FnOnce(Descriptor) -> Box<dyn FaultPort>,
    ) -> Result<Self, PagerError> {
        let support = UserfaultSupport::probe()?;
        let method = match wanted {
            Some(EvictionMethod::Move) if !support.move_pages => return Err(PagerError::NoMove),
            Some(method) => method,
            None if support.move_pages => EvictionMethod::Move,
            None => EvictionMethod::Copy,
        };
        if !support.write_protect {
            return Err(PagerError::NoWriteProtect);
        }
        let frames = Frames::new(Arc::clone(ram))?;
        let port = port(Descriptor::open(method == EvictionMethod::Move)?);
        if method == EvictionMethod::Move {
            // Pages can be moved only to where this descriptor answers.
            port.register(frames.side()).map_err(|cause| UserfaultError::Register { cause })?;
        }
        let pages = ram.regions().last().map_or(0, |region| region.gfns().end);
        Ok(Self {
            frames,
            port,
            method,
            marks: PageSet::new(pages),
            merged: Merged::new(pages),
            touched: Touched::new(pages),
            recency: Recency::new(pages),
        })
    }
}

impl Paged {
    /// Arms the VM: every fault from here on is the pager's. Its threads run already.
    pub fn arm(&self) -> Result<(), PagerError> {
        let _arming = self.arming.write().unwrap_or_else(PoisonError::into_inner);
        self.may_open.store(false, Ordering::Relaxed);
        if self.table.is_armed() {
            return self.classify_all();
        }
        let Kernel { frames, port, .. } = self.kernel();
        let mapping = frames.ram().mapping();
        // A huge page would hold memory of pages that have left, and khugepaged fill holes. Kernels without huge pages
        // refuse this, and need it not.
        match mapping.advise("MADV_NOHUGEPAGE", libc::MADV_NOHUGEPAGE) {
            Ok(()) | Err(MappingError::Advise { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        port.register(mapping).map_err(|cause| UserfaultError::Register { cause })?;
        self.table.arm();
        self.is_classified.store(false, Ordering::Relaxed);
        self.classify_all()
    }

    /// Finds out which pages there are, unless that is known. The caller holds `arming`.
    fn classify_all(&self) -> Result<(), PagerError> {
        if !self.is_classified.load(Ordering::Relaxed) {
            for region in self.kernel().frames.ram().regions() {
                self.classify(region.gfns()).map_err(|cause| PagerError::Classify { cause })?;
            }
            self.is_classified.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Finds out which pages of an armed VM there are.
    fn classify(&self, gfns: Range<u64>) -> io::Result<()> {
        let frames = &self.kernel().frames;
        let start = frames.ram_address(gfns.start);
        classify::for_each_mapped(start..start + bytes(&gfns), |addresses| {
            let first = gfns.start + (addresses.start - start) / PAGE_SIZE;
            let pages = (addresses.end - addresses.start) / PAGE_SIZE;
            self.table.mark_present(first..first + pages, self.stamp()).expect("the range is RAM");
        })
    }

    /// Opens the VM again if it may be and no page is out. Nothing happens otherwise.
    pub fn open_if_home(&self) {
        let is_out = |state: &State| state.is_stored() || state.is_transient() || *state == State::Aside;
        if !self.table.is_armed()
            || !self.may_open.load(Ordering::Relaxed)
            || self.is_held.load(Ordering::Relaxed)
            || State::ALL.iter().filter(|state| is_out(state)).any(|&state| self.table.count(state) > 0)
        {
            return;
        }
        let _arming = self.arming.write().unwrap_or_else(PoisonError::into_inner);
        if !self.table.is_armed() || !self.may_open.load(Ordering::Relaxed) {
            return;
        }
        // A page that is in motion keeps the VM armed, and those looked at before it are forgotten.
        self.is_classified.store(false, Ordering::Relaxed);
        if self.table.open().is_err() {
            // What fails now is tried with the next limit.
            let _ = self.classify_all();
        } else {
            let Kernel { frames, port, marks, merged, .. } = self.kernel();
            marks.clear();
            merged.clear();
            // It wakes everybody: from here on the kernel answers. What it refuses leaves a VM whose first touches are still
            // answered here, which is slow but right.
            let _ = port.unregister(frames.ram().mapping());
        }
    }
}
