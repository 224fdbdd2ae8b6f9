//! The pages a program may fill: guest RAM above the kernel's own, numbered in ascending guest-physical order.

use crate::PAGE_SIZE;

/// Pieces of RAM the pool can have; more in the memory map are left unused.
pub const MAX_RANGES: usize = 16;

/// Where RAM above this would need more page tables than the kernel keeps; it is left unused.
pub const MAX_ADDRESS: u64 = 512 << 30;

/// A piece of guest-physical memory, in bytes; the end is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

impl Range {
    /// Its length.
    pub const fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The numbered pages. Page 0 is the first page at or above the pool's start.
#[derive(Debug, Default)]
pub struct Pool {
    ranges: [(u32, Range); MAX_RANGES],
    count: usize,
    pages: u32,
}

impl Pool {
    /// Numbers the pages of `ram` (any order, not overlapping) from `start` on.
    pub fn new(ram: &[Range], start: u64) -> Self {
        let mut pool = Self::default();
        let mut above = start.next_multiple_of(PAGE_SIZE);
        // Ascending without sorting: there are few pieces.
        while let Some(range) = ram.iter().filter(|range| range.end > above).min_by_key(|range| range.start) {
            let first = range.start.max(above).next_multiple_of(PAGE_SIZE);
            let end = range.end.min(MAX_ADDRESS) / PAGE_SIZE * PAGE_SIZE;
            above = range.end;
            if end > first && pool.count < MAX_RANGES {
                pool.ranges[pool.count] = (pool.pages, Range { start: first, end });
                pool.count += 1;
                pool.pages += ((end - first) / PAGE_SIZE) as u32;
            }
        }
        pool
    }

    /// Number of pages.
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Guest-physical address of a page; the page must be one of the pool.
    #[inline]
    pub fn address(&self, page: u32) -> u64 {
        let mut at = 0;
        while at + 1 < self.count && self.ranges[at + 1].0 <= page {
            at += 1;
        }
        let (first_page, range) = self.ranges[at];
        range.start + u64::from(page - first_page) * PAGE_SIZE
    }

    /// How many pages from `page` on follow each other in guest-physical memory, `page` included.
    pub fn run(&self, page: u32) -> u32 {
        let ends = self.ranges[..self.count].iter().map(|(first, range)| first + (range.bytes() / PAGE_SIZE) as u32);
        ends.into_iter().find(|&end| end > page).map_or(0, |end| end - page)
    }

    /// The pieces that hold the first `pages` pages.
    pub fn prefix(&self, pages: u32) -> impl Iterator<Item = Range> {
        self.ranges[..self.count].iter().filter(move |(first, _)| *first < pages).map(move |&(first, range)| {
            let end = range.start + u64::from(pages - first) * PAGE_SIZE;
            Range { start: range.start, end: end.min(range.end) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn pages_ascend_over_the_hole_below_four_gigabytes() {
        let ram = [
            Range { start: 4 * GIB, end: 5 * GIB },
            Range { start: 0, end: 0x9_fc00 },
            Range { start: 0x10_0000, end: 3 * GIB + 0x234 },
        ];
        let pool = Pool::new(&ram, 0x20_0000);
        let low_pages = ((3 * GIB - 0x20_0000) / PAGE_SIZE) as u32;
        assert_eq!(pool.pages(), low_pages + (GIB / PAGE_SIZE) as u32);
        assert_eq!(pool.address(0), 0x20_0000);
        assert_eq!(pool.address(low_pages - 1), 3 * GIB - PAGE_SIZE);
        assert_eq!(pool.address(low_pages), 4 * GIB);
        assert_eq!((pool.run(low_pages - 2), pool.run(low_pages)), (2, (GIB / PAGE_SIZE) as u32));
        assert_eq!(pool.run(pool.pages()), 0);
        let prefix: Vec<Range> = pool.prefix(low_pages + 1).collect();
        let expected = [Range { start: 0x20_0000, end: 3 * GIB }, Range { start: 4 * GIB, end: 4 * GIB + PAGE_SIZE }];
        assert_eq!(prefix, expected);
        assert_eq!(pool.prefix(1).collect::<Vec<_>>(), [Range { start: 0x20_0000, end: 0x20_1000 }]);
    }

    #[test]
    fn a_pool_without_ram_is_empty() {
        assert_eq!(Pool::new(&[], 0).pages(), 0);
        assert_eq!(Pool::new(&[Range { start: 0, end: 0x10_0000 }], 0x20_0000).pages(), 0);
    }

    #[test]
    fn memory_the_page_tables_cannot_reach_is_left_out() {
        let pool = Pool::new(&[Range { start: MAX_ADDRESS - PAGE_SIZE, end: u64::MAX }], 0);
        assert_eq!(pool.pages(), 1);
    }
}
