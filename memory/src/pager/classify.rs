//! Which pages of guest RAM there are, as the kernel says.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::ram::PAGE_SIZE;

/// The file of this process (Documentation/admin-guide/mm/pagemap.rst).
pub(super) const PAGEMAP: &str = "/proc/self/pagemap";

/// The top two bits of an entry: present, swapped.
const ENTRY_PRESENT_OR_SWAPPED: u64 = 3 << 62;

const ENTRY_PRESENT: u64 = 1 << 63;
/// Mapped only once (Linux 4.2).
const ENTRY_EXCLUSIVE: u64 = 1 << 56;
/// Write-protected by a userfaultfd (Linux 5.13).
const ENTRY_WRITE_PROTECTED: u64 = 1 << 57;

/// Entries read in one go.
const ENTRIES: usize = 8192;

/// Ranges scanned in one go.
const REGIONS: usize = 512;

/// `_IOWR('f', 16, struct pm_scan_arg)` (Linux 6.7).
const PAGEMAP_SCAN: libc::c_ulong =
    3 << 30 | (size_of::<ScanArguments>() as libc::c_ulong) << 16 | (b'f' as libc::c_ulong) << 8 | 16;
/// `PAGE_IS_PRESENT | PAGE_IS_SWAPPED`.
const IS_PRESENT_OR_SWAPPED: u64 = 1 << 3 | 1 << 4;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<ScanArguments>() == 96 && size_of::<ScanRegion>() == 24);

/// Calls `found` with the pages of an address range that are mapped, ascending, in ranges of addresses. The kernel is asked
/// for ranges where it can be: holes cost nothing then.
pub(super) fn for_each_mapped(addresses: Range<u64>, mut found: impl FnMut(Range<u64>)) -> io::Result<()> {
    let pagemap = File::open(PAGEMAP)?;
    match scan(&pagemap, addresses.clone(), &mut found) {
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            read_entries(&pagemap, addresses, |address, entry| {
                if entry & ENTRY_PRESENT_OR_SWAPPED != 0 {
                    found(address..address + PAGE_SIZE);
                }
            })
        }
        outcome => outcome,
    }
}

/// A page that is mapped, as its entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Mapped more than once. Guest RAM is private and not inherited, so it is merged.
    pub is_shared: bool,
    /// A write is a fault of the userfaultfd's.
    pub is_protected: bool,
}

/// Calls `found` with every page of an address range that is mapped, ascending.
pub(super) fn for_each_entry(addresses: Range<u64>, mut found: impl FnMut(u64, Mapped)) -> io::Result<()> {
    read_entries(&File::open(PAGEMAP)?, addresses, |address, entry| {
        if entry & ENTRY_PRESENT != 0 {
            let page =
                Mapped { is_shared: entry & ENTRY_EXCLUSIVE == 0, is_protected: entry & ENTRY_WRITE_PROTECTED != 0 };
            found(address, page);
        }
    })
}

fn scan(pagemap: &File, addresses: Range<u64>, found: &mut impl FnMut(Range<u64>)) -> io::Result<()> {
    let mut regions = [ScanRegion::default(); REGIONS];
    let mut start = addresses.start;
    while start < addresses.end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            start,
            end: addresses.end,
            regions: regions.as_mut_ptr() as u64,
            region_count: REGIONS as u64,
            category_anyof_mask: IS_PRESENT_OR_SWAPPED,
            return_mask: IS_PRESENT_OR_SWAPPED,
            ..ScanArguments::default()
        };
        // SAFETY: the structure is the one the request expects; it and the regions it names outlive the call.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
        regions.iter().take(count).for_each(|region| found(region.start..region.end));
        // It stops where the regions are used up.
        start = if arguments.walk_end > start { arguments.walk_end } else { addresses.end };
    }
    Ok(())
}

fn read_entries(pagemap: &File, addresses: Range<u64>, mut see: impl FnMut(u64, u64)) -> io::Result<()> {
    let pages = (addresses.end - addresses.start) / PAGE_SIZE;
    let mut bytes = vec![0; ENTRIES.min(pages as usize) * 8];
    let mut next = addresses.start;
    while next < addresses.end {
        let count = ((addresses.end - next) / PAGE_SIZE).min(ENTRIES as u64);
        let part = &mut bytes[..count as usize * 8];
        pagemap.read_exact_at(part, next / PAGE_SIZE * 8)?;
        let (entries, _) = part.as_chunks::<8>();
        for (at, entry) in (0..).zip(entries) {
            see(next + at * PAGE_SIZE, u64::from_ne_bytes(*entry));
        }
        next += count * PAGE_SIZE;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::GuestRam;

    #[test]
    fn both_ways_find_the_pages_that_were_touched() {
        let ram = GuestRam::new(&[0..16 << 20]).unwrap();
        ram.mapping().advise("MADV_NOHUGEPAGE", libc::MADV_NOHUGEPAGE).unwrap();
        let touched: Vec<u64> = (0..4096).filter(|gfn| gfn % 7 < 3 || *gfn == 4095).collect();
        for &gfn in &touched {
            ram.memory().write_obj(1u8, GuestAddress(gfn * PAGE_SIZE)).unwrap();
        }
        let start = ram.mapping().address();
        let addresses = start..start + (16 << 20);
        let pagemap = File::open(PAGEMAP).unwrap();
        let pages_of = |ranges: Vec<Range<u64>>| -> Vec<u64> {
            let addresses = ranges.into_iter().flat_map(|range| range.step_by(PAGE_SIZE as usize));
            addresses.map(|address| (address - start) / PAGE_SIZE).collect()
        };
        let mut read = Vec::new();
        read_entries(&pagemap, addresses.clone(), |address, entry| {
            if entry & ENTRY_PRESENT_OR_SWAPPED != 0 {
                read.push(address..address + PAGE_SIZE);
            }
        })
        .unwrap();
        assert_eq!(pages_of(read), touched);
        let mut scanned = Vec::new();
        match scan(&pagemap, addresses, &mut |range| scanned.push(range)) {
            Ok(()) => assert_eq!(pages_of(scanned), touched),
            // A kernel before 6.7.
            Err(cause) => assert_eq!(cause.raw_os_error(), Some(libc::ENOTTY)),
        }
    }
}
