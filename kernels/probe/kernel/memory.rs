//! Guest memory as the kernel divides it, from low to high:
//!
//! 1. the image at 1 MiB (code, tables, the boot processor's block and stacks),
//! 2. the arena: blocks, stacks and results of the other processors, page directories, and the write counts of every
//!    page there is, four bytes each, touched only where pages are filled,
//! 3. from the next 2 MiB boundary on the pool, which programs fill from its start.
//!
//! So what a guest costs its host is the pages it fills and about a megabyte. Fresh RAM is zero; this relies on it.

use core::ptr::{NonNull, addr_of_mut};

use cistern_probe::PAGE_SIZE;
use cistern_probe::pool::Range;

use crate::apic;
use crate::boot::Ram;
use crate::console::fail;

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
/// Present, writable, for CPL 3; and, in a directory, 2 MiB.
const TABLE_FLAGS: u64 = 0x7;
const LARGE_PAGE_FLAGS: u64 = 0x87;
/// Page directories kept for device registers, wherever they lie.
const DEVICE_DIRECTORIES: u64 = 4;
/// Addresses one table of directory pointers reaches.
const MAX_GIB: u64 = 512;

unsafe extern "C" {
    static _end: u8;
    static mut page_directory_pointers: [u64; 512];
}

/// Hands out memory behind the image, in whole pages, for good.
pub struct Arena {
    next: u64,
}

impl Arena {
    /// Starts behind the image.
    pub fn new() -> Self {
        Self { next: &raw const _end as u64 }
    }

    /// Memory for `count` values of a type for which zero is a value.
    pub fn take<T>(&mut self, count: u64) -> NonNull<T> {
        let start = self.next.next_multiple_of(PAGE_SIZE);
        self.next = start + (size_of::<T>() as u64 * count).next_multiple_of(PAGE_SIZE);
        NonNull::new(start as *mut T).expect("the arena starts behind the image")
    }

    /// Where the pool begins once nothing more is taken.
    pub fn end(&self) -> u64 {
        self.next.next_multiple_of(LARGE_PAGE)
    }

    /// Stops the guest if what was taken is not RAM.
    pub fn check(&self, ram: &Ram) {
        let start = &raw const _end as u64;
        if !ram.pieces().iter().any(|piece| piece.start <= start && piece.end >= self.next) {
            fail(format_args!("too little memory: the probe itself needs it up to {:#x}", self.next));
        }
    }
}

/// The page tables; they grow by themselves, at CPL 3.
pub struct PageTables {
    next_directory: NonNull<[u64; 512]>,
    directories_left: u64,
}

impl PageTables {
    /// Keeps room for all of RAM, of which entry.s has mapped the first GiB, and maps the interrupt controllers.
    pub fn new(ram: &Ram, arena: &mut Arena) -> Self {
        let directories_left = ram.end().div_ceil(GIB).min(MAX_GIB) + DEVICE_DIRECTORIES;
        Self { next_directory: arena.take(directories_left), directories_left }
    }

    /// Maps the 2 MiB pages the range lies in, one to one; false if there is no table for it.
    #[must_use]
    pub fn map(&mut self, range: Range) -> bool {
        let mut at = range.start / LARGE_PAGE * LARGE_PAGE;
        while at < range.end {
            let Some(mut directory) = self.directory(at / GIB) else { return false };
            // SAFETY: the directory is one of ours, and only the boot processor changes page tables. A page that was
            // absent needs no flush.
            let entry = unsafe { &mut directory.as_mut()[(at / LARGE_PAGE % 512) as usize] };
            // Where page tables are shadowed every write to one costs, so none is written twice.
            if *entry == 0 {
                *entry = at | LARGE_PAGE_FLAGS;
            }
            at += LARGE_PAGE;
        }
        true
    }

    fn directory(&mut self, gib: u64) -> Option<NonNull<[u64; 512]>> {
        if gib >= MAX_GIB {
            return None;
        }
        // SAFETY: only the boot processor uses this table from Rust.
        let entry = unsafe { &mut (*addr_of_mut!(page_directory_pointers))[gib as usize] };
        if *entry == 0 {
            self.directories_left = self.directories_left.checked_sub(1)?;
            *entry = self.next_directory.as_ptr() as u64 | TABLE_FLAGS;
            // SAFETY: the arena gave as many directories as are counted.
            self.next_directory = unsafe { self.next_directory.add(1) };
        }
        NonNull::new((*entry & !(PAGE_SIZE - 1)) as *mut [u64; 512])
    }
}

/// How often each page of the pool was written; 0 if it is not filled. Kept apart from the pages, so that a page and
/// its count go wrong together only if two different pages of the host do.
#[derive(Clone, Copy)]
pub struct WriteCounts {
    counts: NonNull<u32>,
}

impl WriteCounts {
    /// Room for every page of RAM.
    pub fn new(ram: &Ram, arena: &mut Arena) -> Self {
        Self { counts: arena.take(ram.end().min(MAX_GIB * GIB) / PAGE_SIZE) }
    }

    /// The count of a page of the pool.
    #[inline]
    pub fn get(&self, page: u32) -> u32 {
        // SAFETY: there is a count for each page of RAM, so for each of the pool; a page is one processor's at a time.
        unsafe { self.counts.add(page as usize).read() }
    }

    /// Sets the count of a page of the pool.
    #[inline]
    pub fn set(&self, page: u32, writes: u32) {
        // SAFETY: as above.
        unsafe { self.counts.add(page as usize).write(writes) }
    }
}

/// Maps the interrupt controllers' registers.
pub fn map_interrupt_controllers(tables: &mut PageTables) {
    for start in apic::REGISTER_PAGES {
        let mapped = tables.map(Range { start, end: start + PAGE_SIZE });
        assert!(mapped, "there are directories for device registers");
    }
}
