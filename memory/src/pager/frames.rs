//! Where pages lie in this process: in guest RAM, or aside.

use std::ops::Range;
use std::sync::Arc;

use crate::mapping::{Mapping, MappingError};
use crate::ram::{GuestRam, PAGE_SIZE, RamError};
use crate::store::{PAGE_BYTES, Page};

/// Guest RAM and the side mapping, laid out alike: a page has the same offset in both.
#[derive(Debug)]
pub(super) struct Frames {
    ram: Arc<GuestRam>,
    side: Mapping,
}

/// A range of pages in bytes.
pub(super) fn bytes(gfns: &Range<u64>) -> u64 {
    (gfns.end - gfns.start) * PAGE_SIZE
}

impl Frames {
    /// Makes the side mapping: address space, no memory.
    pub fn new(ram: Arc<GuestRam>) -> Result<Self, MappingError> {
        let side = Mapping::new(ram.mapping().bytes() as usize)?;
        // A huge page aside would hold memory of pages that have left again.
        match side.advise("MADV_NOHUGEPAGE", libc::MADV_NOHUGEPAGE) {
            Ok(()) | Err(MappingError::Advise { .. }) => Ok(Self { ram, side }),
            Err(other) => Err(other),
        }
    }

    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    pub fn side(&self) -> &Mapping {
        &self.side
    }

    /// Where a page is in guest RAM. Every gfn that reaches the pager was checked to be RAM.
    pub fn ram_address(&self, gfn: u64) -> u64 {
        self.ram.host_address(gfn).expect("the page is RAM")
    }

    /// Where it is when it is aside.
    pub fn side_address(&self, gfn: u64) -> u64 {
        self.ram_address(gfn) - self.ram.mapping().address() + self.side.address()
    }

    /// The page aside.
    ///
    /// # Safety
    /// The page is aside and the caller owns its claim for as long as the reference lives: nobody else moves, writes or
    /// drops it then. (A page that is not there would raise a fault that this thread itself has to answer.)
    pub unsafe fn side_page(&self, gfn: u64) -> &Page {
        // SAFETY: inside the mapping, which lives as long as `self`; a page is bytes; the caller keeps others away.
        unsafe { &*(self.side_address(gfn) as *const Page) }
    }

    /// Copies a page of guest RAM aside. Both lie in this process; the guest may write to the page meanwhile.
    ///
    /// # Safety
    /// The page is in guest RAM and stays there, and the side page is the caller's.
    pub unsafe fn copy_aside(&self, gfn: u64) {
        let (from, to) = (self.ram_address(gfn) as *const u8, self.side_address(gfn) as *mut u8);
        // SAFETY: both are whole pages of live mappings that do not overlap. Bytes that the guest changes meanwhile may come
        // out either way: the caller throws such a copy away.
        unsafe { std::ptr::copy_nonoverlapping(from, to, PAGE_BYTES) };
    }

    /// Whether the first word of a page of guest RAM is zero.
    ///
    /// # Safety
    /// As for [`Frames::copy_out`].
    pub unsafe fn begins_with_zero(&self, gfn: u64) -> bool {
        // SAFETY: the page is mapped, aligned, and any bytes are a number; the guest may change it at any time.
        unsafe { (self.ram_address(gfn) as *const u64).read_volatile() == 0 }
    }

    /// Copies a page of guest RAM out. The guest may write to it meanwhile.
    ///
    /// # Safety
    /// The page is in guest RAM and stays there, or the thread may wait for it to come.
    pub unsafe fn copy_out(&self, gfn: u64, page: &mut Page) {
        let from = self.ram_address(gfn) as *const u8;
        // SAFETY: a whole page of a live mapping, and one of this process's own. Bytes that the guest changes meanwhile may
        // come out either way.
        unsafe { std::ptr::copy_nonoverlapping(from, page.as_mut_ptr(), PAGE_BYTES) };
    }

    /// Drops pages aside.
    pub fn drop_side(&self, gfns: &Range<u64>) -> Result<(), MappingError> {
        self.side.drop_pages(self.side_address(gfns.start), bytes(gfns))
    }

    /// Drops pages in guest RAM.
    pub fn drop_ram(&self, gfns: &Range<u64>) -> Result<(), RamError> {
        self.ram.drop_pages(gfns.clone())
    }

    /// The region that a page is in, as pages.
    pub fn region(&self, gfn: u64) -> Range<u64> {
        self.ram.regions().iter().map(|region| region.gfns()).find(|gfns| gfns.contains(&gfn)).expect("the page is RAM")
    }
}
