//! The guest's RAM: one lazily populated private anonymous mapping.
//!
//! Private anonymous memory is the only kind for which lazy population, `UFFDIO_MOVE`, KSM and swap are all possible.
//! Nothing is populated here: a page costs the host nothing until the guest or a device first touches it.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmm_sys_util::rand::xor_pseudo_rng_u32;

use crate::mapping::{HUGE_PAGE_SIZE, Mapping, MappingError};
use crate::page_table::PageTableError;

/// Size of a page, the unit in which guest memory is mapped and given back.
pub const PAGE_SIZE: u64 = 4096;

/// The view devices use for guest memory access: bounds-checked, volatile.
pub type Memory = GuestMemoryMmap<()>;

/// Why guest RAM could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host refused the mapping, or advice on it.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// A range is empty, unaligned or overlaps another.
    #[error("guest RAM: bad layout at {guest_address:#x}, {bytes} bytes")]
    Layout {
        /// Guest-physical start of the range.
        guest_address: u64,
        /// Its length.
        bytes: u64,
    },
    /// A range to give back is not whole pages of RAM.
    #[error("guest RAM: {guest_address:#x}, {bytes} bytes is not whole pages of RAM")]
    NotRam {
        /// Guest-physical start of the range.
        guest_address: u64,
        /// Its length.
        bytes: u64,
    },
    /// The pager cannot hold a page for a device.
    #[error("guest RAM: pinning {guest_address:#x}, {bytes} bytes: {cause}")]
    Pin {
        /// Guest-physical start of the range.
        guest_address: u64,
        /// Its length.
        bytes: u64,
        /// What stands against it.
        cause: PageTableError,
    },
}

/// What a pager does for guest RAM: it knows where each page is. Ranges are gfns inside one region of RAM.
pub trait Paging: Send + Sync + fmt::Debug {
    /// Drops pages in whatever form they are held; they read as zero when this returns. Returns how many of them are known
    /// to have been in host memory, uncompressed: what others can use now.
    ///
    /// # Errors
    /// [`RamError::Mapping`].
    fn discard(&self, gfns: Range<u64>) -> Result<u64, RamError>;

    /// Brings pages into guest RAM and keeps them there until as many calls of [`Paging::unpin`].
    ///
    /// # Errors
    /// [`PageTableError::TooManyPins`]; no page of the range is pinned then.
    fn pin(&self, gfns: Range<u64>) -> Result<(), PageTableError>;

    /// Ends one [`Paging::pin`] of the same range.
    fn unpin(&self, gfns: Range<u64>);
}

/// Pages that a device uses: they stay in guest RAM for as long as this lives. Device code holds one over every range it
/// gives to an asynchronous or O_DIRECT operation, which reaches the frames behind the page tables.
#[derive(Debug)]
#[must_use = "the pages are let go when this is dropped"]
pub struct Pin {
    paging: Option<Arc<dyn Paging>>,
    gfns: Range<u64>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(paging) = &self.paging {
            paging.unpin(self.gfns.clone());
        }
    }
}

/// One contiguous piece of guest-physical RAM and where it lies in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// Guest-physical start, 2 MiB aligned.
    pub guest_address: u64,
    /// Length in bytes, a multiple of the page size.
    pub bytes: u64,
    /// Host virtual address of the first byte, 2 MiB aligned.
    pub host_address: u64,
}

/// Guest RAM. Cheap to share; the mapping lives as long as any `Arc` to it.
#[derive(Debug)]
pub struct GuestRam {
    memory: Memory,
    regions: Vec<RamRegion>,
    mapping: Mapping,
    /// The pager, from when it was made. It holds the RAM, not the other way round.
    paging: OnceLock<Weak<dyn Paging>>,
}

impl GuestRam {
    /// Maps RAM for the given guest-physical ranges (ascending, 2 MiB aligned starts, whole pages). No page is populated.
    ///
    /// # Errors
    /// [`RamError::Layout`] for unusable ranges, [`RamError::Mapping`] when the host cannot map that much.
    pub fn new(ranges: &[Range<u64>]) -> Result<Arc<Self>, RamError> {
        let mut total_bytes: usize = 0;
        let mut previous_end = 0;
        for range in ranges {
            let bytes = range.end.saturating_sub(range.start);
            let layout = || RamError::Layout { guest_address: range.start, bytes };
            if bytes == 0
                || range.start < previous_end
                || range.start % HUGE_PAGE_SIZE as u64 != 0
                || bytes % PAGE_SIZE != 0
            {
                return Err(layout());
            }
            previous_end = range.end;
            total_bytes = usize::try_from(bytes)
                .ok()
                .and_then(|bytes| bytes.checked_next_multiple_of(HUGE_PAGE_SIZE))
                .and_then(|bytes| total_bytes.checked_add(bytes))
                .ok_or_else(layout)?;
        }
        let mapping = Mapping::new(total_bytes)?;

        let mut regions = Vec::with_capacity(ranges.len());
        let mut host_regions = Vec::with_capacity(ranges.len());
        let mut offset = 0;
        for range in ranges {
            let bytes = (range.end - range.start) as usize;
            let host = mapping.pointer().wrapping_add(offset);
            // SAFETY: [host, host + bytes) lies inside `mapping`, which this struct keeps for as long as the regions.
            let region = unsafe { MmapRegionBuilder::new(bytes).with_raw_mmap_pointer(host) }
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(Mapping::FLAGS)
                .build()
                .map_err(|_| RamError::Layout { guest_address: range.start, bytes: bytes as u64 })?;
            host_regions.push(
                GuestRegionMmap::new(region, GuestAddress(range.start))
                    .ok_or(RamError::Layout { guest_address: range.start, bytes: bytes as u64 })?,
            );
            regions.push(RamRegion { guest_address: range.start, bytes: bytes as u64, host_address: host as u64 });
            offset += bytes.next_multiple_of(HUGE_PAGE_SIZE);
        }
        let memory = GuestMemoryMmap::from_regions(host_regions)
            .map_err(|_| RamError::Layout { guest_address: 0, bytes: total_bytes as u64 })?;
        Ok(Arc::new(Self { memory, regions, mapping, paging: OnceLock::new() }))
    }

    /// Lets the host's KSM merge any page with an equal one, of whatever process. The pages must never be paged here.
    ///
    /// # Errors
    /// [`RamError::Mapping`]: the kernel has no KSM.
    pub fn offer_to_ksm(&self) -> Result<(), RamError> {
        Ok(self.mapping.advise("MADV_MERGEABLE", libc::MADV_MERGEABLE)?)
    }

    /// The view through which devices and loaders read and write guest memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The pieces of RAM, ascending.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Size of all RAM.
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// A page of RAM, each as likely as any other.
    pub(crate) fn random_gfn(&self) -> u64 {
        let random = u64::from(xor_pseudo_rng_u32()) << 32 | u64::from(xor_pseudo_rng_u32());
        let mut number = random % (self.size_bytes() / PAGE_SIZE);
        for gfns in self.regions.iter().map(RamRegion::gfns) {
            let pages = gfns.end - gfns.start;
            if number < pages {
                return gfns.start + number;
            }
            number -= pages;
        }
        unreachable!("a number below that of all pages is in some region")
    }

    /// Lets a pager answer for the pages from now on. Before the guest runs and before any page is pinned; only the first
    /// pager counts.
    pub fn attach(&self, paging: Weak<dyn Paging>) {
        let _ = self.paging.set(paging);
    }

    /// Gives whole pages back to the host: they read as zero from now on and cost nothing until touched again. This is
    /// what a balloon or free page reporting does with pages the guest does not need.
    ///
    /// # Errors
    /// [`RamError::NotRam`] when the range is not whole pages inside one region, [`RamError::Mapping`] when the kernel
    /// refuses; nothing was given back then.
    pub fn discard(&self, guest_address: u64, bytes: u64) -> Result<u64, RamError> {
        if !guest_address.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) || bytes == 0 {
            return Err(RamError::NotRam { guest_address, bytes });
        }
        let gfns = self.gfns(guest_address, bytes)?;
        match self.paging() {
            Some(paging) => Ok(paging.discard(gfns)? * PAGE_SIZE),
            None => self.drop_pages(gfns).map(|()| 0),
        }
    }

    /// Holds the pages of a range in guest RAM for a device; the range need not be whole pages.
    ///
    /// # Errors
    /// [`RamError::NotRam`] when the range is empty or not inside one region, [`RamError::Pin`] when a page of it has
    /// all the pins it can have.
    pub fn pin(&self, guest_address: u64, bytes: u64) -> Result<Pin, RamError> {
        let gfns = self.gfns(guest_address, bytes)?;
        let paging = self.paging();
        if let Some(paging) = &paging {
            paging.pin(gfns.clone()).map_err(|cause| RamError::Pin { guest_address, bytes, cause })?;
        }
        Ok(Pin { paging, gfns })
    }

    fn paging(&self) -> Option<Arc<dyn Paging>> {
        self.paging.get().and_then(Weak::upgrade)
    }

    /// The pages that a range touches.
    fn gfns(&self, guest_address: u64, bytes: u64) -> Result<Range<u64>, RamError> {
        let not_ram = || RamError::NotRam { guest_address, bytes };
        let end = guest_address.checked_add(bytes).filter(|_| bytes > 0).ok_or_else(not_ram)?;
        let inside = |region: &RamRegion| guest_address >= region.guest_address && end <= region.end();
        self.regions.iter().find(|region| inside(region)).ok_or_else(not_ram)?;
        Ok(guest_address / PAGE_SIZE..end.div_ceil(PAGE_SIZE))
    }

    /// Drops pages of one region from the mapping, whoever else may know of them.
    ///
    /// # Errors
    /// [`RamError::Mapping`].
    pub(crate) fn drop_pages(&self, gfns: Range<u64>) -> Result<(), RamError> {
        let host = self.host_address(gfns.start).ok_or(RamError::NotRam {
            guest_address: gfns.start * PAGE_SIZE,
            bytes: (gfns.end - gfns.start) * PAGE_SIZE,
        })?;
        Ok(self.mapping.drop_pages(host, (gfns.end - gfns.start) * PAGE_SIZE)?)
    }

    /// Where a page lies in this process; `None` when it is not RAM.
    pub(crate) fn host_address(&self, gfn: u64) -> Option<u64> {
        let region = self.regions.iter().find(|region| region.gfns().contains(&gfn))?;
        Some(region.host_address + (gfn * PAGE_SIZE - region.guest_address))
    }

    /// The page at an address of this process; `None` when it is not RAM.
    pub(crate) fn gfn_at(&self, host_address: u64) -> Option<u64> {
        let region = self
            .regions
            .iter()
            .find(|region| (region.host_address..region.host_address + region.bytes).contains(&host_address))?;
        Some((region.guest_address + (host_address - region.host_address)) / PAGE_SIZE)
    }

    /// The whole mapping that RAM lies in: alignment may leave holes between regions.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl RamRegion {
    /// Guest-physical end.
    fn end(&self) -> u64 {
        self.guest_address + self.bytes
    }

    /// Its pages.
    pub fn gfns(&self) -> Range<u64> {
        self.guest_address / PAGE_SIZE..self.end() / PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Pages of a range that are in memory, as the kernel says.
    fn resident_pages(ram: &GuestRam) -> usize {
        ram.regions()
            .iter()
            .map(|region| {
                let mut residency = vec![0u8; (region.bytes / PAGE_SIZE) as usize];
                // SAFETY: the range is mapped, and the vector has a byte for each of its pages.
                let result = unsafe {
                    libc::mincore(
                        region.host_address as *mut libc::c_void,
                        region.bytes as usize,
                        residency.as_mut_ptr(),
                    )
                };
                assert_eq!(result, 0, "mincore: {}", io::Error::last_os_error());
                residency.iter().filter(|page| *page & 1 != 0).count()
            })
            .sum()
    }

    #[test]
    fn nothing_is_populated_until_it_is_touched() {
        let ram = GuestRam::new(&[0..64 * MIB, 4096 * MIB..4160 * MIB]).expect("RAM");
        assert_eq!((ram.size_bytes(), resident_pages(&ram)), (128 * MIB, 0));
        ram.memory().write_obj(7u8, GuestAddress(4096 * MIB + 12345)).expect("in RAM");
        // One page, or one huge page where the host hands those out.
        assert!((1..=512).contains(&resident_pages(&ram)));
        assert!(ram.memory().write_obj(7u8, GuestAddress(64 * MIB)).is_err(), "between the regions");
    }

    #[test]
    fn regions_are_aligned_for_huge_pages_on_both_sides() {
        let ram = GuestRam::new(&[0..3 * MIB, 16 * MIB..17 * MIB]).expect("RAM");
        for region in ram.regions() {
            assert_eq!(region.guest_address % HUGE_PAGE_SIZE as u64, 0);
            assert_eq!(region.host_address % HUGE_PAGE_SIZE as u64, 0);
        }
    }

    #[test]
    fn pages_given_back_read_as_zero_and_cost_nothing() {
        let ram = GuestRam::new(&[0..8 * MIB]).expect("RAM");
        ram.memory().write_slice(&vec![0xaa; 8 * MIB as usize], GuestAddress(0)).expect("in RAM");
        assert_eq!(resident_pages(&ram), 2048);
        ram.discard(MIB, 4 * MIB).expect("whole pages of RAM");
        assert_eq!(resident_pages(&ram), 1024);
        let byte = |address| ram.memory().read_obj::<u8>(GuestAddress(address)).expect("in RAM");
        assert_eq!([MIB - 1, MIB, 5 * MIB - 1, 5 * MIB].map(byte), [0xaa, 0, 0, 0xaa]);
    }

    #[test]
    fn only_whole_pages_of_ram_can_be_given_back() {
        let ram = GuestRam::new(&[0..4 * MIB, 8 * MIB..12 * MIB]).expect("RAM");
        for (address, bytes) in [
            (1, PAGE_SIZE),
            (0, PAGE_SIZE + 1),
            (0, 0),
            (4 * MIB - PAGE_SIZE, 2 * PAGE_SIZE),
            (4 * MIB, PAGE_SIZE),
            (u64::MAX - PAGE_SIZE + 1, PAGE_SIZE),
            (0, u64::MAX - PAGE_SIZE + 1),
        ] {
            assert!(matches!(ram.discard(address, bytes), Err(RamError::NotRam { .. })), "{address:#x}, {bytes}");
        }
    }

    #[test]
    fn impossible_layouts_are_refused() {
        for ranges in [
            &[0..0][..],
            &[PAGE_SIZE..2 * MIB],
            &[0..MIB + 1],
            &[0..4 * MIB, 2 * MIB..8 * MIB],
            &[4 * MIB..8 * MIB, 0..2 * MIB],
        ] {
            assert!(matches!(GuestRam::new(ranges), Err(RamError::Layout { .. })), "{ranges:?}");
        }
        let error = GuestRam::new(&[0..1 << 60]).expect_err("more than any address space");
        assert!(matches!(error, RamError::Mapping(MappingError::Map { .. })), "{error}");
    }
}
