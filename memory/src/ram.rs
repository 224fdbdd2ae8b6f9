//! The guest's RAM: one lazily populated private anonymous mapping.
//!
//! Private anonymous memory is the only kind for which lazy population, `UFFDIO_MOVE`, KSM and swap are all possible.
//! Nothing is populated here: a page costs the host nothing until the guest or a device first touches it.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Size of a page, the unit in which guest memory is mapped and given back.
pub const PAGE_SIZE: u64 = 4096;

/// Alignment of the mapping in host and guest addresses, so that both sides may use 2 MiB pages.
const HUGE_PAGE_SIZE: usize = 2 << 20;

/// The view devices use for guest memory access: bounds-checked, volatile.
pub type Memory = GuestMemoryMmap<()>;

/// Why guest RAM could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host refused the mapping.
    #[error("guest RAM: mapping {} MiB: {cause}: use a smaller --memory, or raise 'ulimit -v'", bytes >> 20)]
    Map {
        /// Size asked for.
        bytes: u64,
        /// What the kernel said.
        cause: io::Error,
    },
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
    /// The kernel refused advice on the mapping.
    #[error("guest RAM: madvise({advice}): {cause}")]
    Advise {
        /// The advice by its kernel name.
        advice: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
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
    _mapping: Mapping,
}

impl GuestRam {
    /// Maps RAM for the given guest-physical ranges (ascending, 2 MiB aligned starts, whole pages). No page is populated.
    ///
    /// # Errors
    /// [`RamError::Layout`] for unusable ranges, [`RamError::Map`] when the host cannot map that much.
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
            let host = mapping.start.as_ptr().wrapping_add(offset);
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
        Ok(Arc::new(Self { memory, regions, _mapping: mapping }))
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

    /// Gives whole pages back to the host: they read as zero from now on and cost nothing until touched again. This is
    /// what a balloon or free page reporting does with pages the guest does not need.
    ///
    /// # Errors
    /// [`RamError::NotRam`] when the range is not whole pages inside one region, [`RamError::Advise`] when the kernel
    /// refuses; nothing was given back then.
    pub fn discard(&self, guest_address: u64, bytes: u64) -> Result<(), RamError> {
        let not_ram = || RamError::NotRam { guest_address, bytes };
        if !guest_address.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) || bytes == 0 {
            return Err(not_ram());
        }
        let end = guest_address.checked_add(bytes).ok_or_else(not_ram)?;
        let region = self
            .regions
            .iter()
            .find(|region| guest_address >= region.guest_address && end <= region.guest_address + region.bytes)
            .ok_or_else(not_ram)?;
        let host = region.host_address + (guest_address - region.guest_address);
        // SAFETY: the range was checked to lie inside the mapping. Dropping its pages changes guest-visible bytes only,
        // which are volatile by nature and never borrowed as Rust references.
        let result = unsafe { libc::madvise(host as *mut libc::c_void, bytes as usize, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(RamError::Advise { advice: "MADV_DONTNEED", cause: io::Error::last_os_error() });
        }
        Ok(())
    }
}

/// An owned, 2 MiB aligned anonymous mapping.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory, valid from any thread; all access goes through volatile views.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself hands out no references.
unsafe impl Sync for Mapping {}

impl Mapping {
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

    fn new(bytes: usize) -> Result<Self, RamError> {
        let failed = |cause| RamError::Map { bytes: bytes as u64, cause };
        // Reserve one huge page more than asked, then cut both ends off to align the rest.
        let reserved =
            bytes.checked_add(HUGE_PAGE_SIZE).ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let raw =
            unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_READ | libc::PROT_WRITE, Self::FLAGS, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let start = (raw as usize).next_multiple_of(HUGE_PAGE_SIZE);
        let (head, tail) = (start - raw as usize, raw as usize + reserved - (start + bytes));
        // SAFETY: both pieces belong to the mapping made above and nothing points into them.
        unsafe {
            if head > 0 {
                libc::munmap(raw, head);
            }
            if tail > 0 {
                libc::munmap((start + bytes) as *mut libc::c_void, tail);
            }
        }
        let mapping = Self { start: NonNull::new(start as *mut u8).expect("mmap never returns page zero"), bytes };
        // A forked child must not share guest pages copy-on-write, and a core dump must not hold a guest's secrets.
        mapping.advise("MADV_DONTFORK", libc::MADV_DONTFORK)?;
        mapping.advise("MADV_DONTDUMP", libc::MADV_DONTDUMP)?;
        Ok(mapping)
    }

    fn advise(&self, name: &'static str, advice: i32) -> Result<(), RamError> {
        // SAFETY: the range is exactly this mapping; the advice used here changes no content.
        let result = unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, advice) };
        if result != 0 {
            return Err(RamError::Advise { advice: name, cause: io::Error::last_os_error() });
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this struct owns the mapping and is its last user.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
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
        assert!(matches!(error, RamError::Map { .. }), "{error}");
    }
}
