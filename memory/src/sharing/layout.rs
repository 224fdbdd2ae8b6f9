//! Guest RAM as regions of 2 MiB, by number: what scanning and advice are decided for.

use std::ops::Range;

/// Pages of a region: 2 MiB. The last of a range of RAM may have fewer.
pub const REGION_PAGES: u64 = 512;

/// Which regions there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pieces: Vec<Piece>,
}

/// A range of RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    gfns: Range<u64>,
    /// Its regions.
    regions: Range<u32>,
}

impl Layout {
    /// The regions of these ranges of gfns, which ascend and begin at multiples of [`REGION_PAGES`], as RAM does.
    ///
    /// # Panics
    /// If they do not, or there are more than 2^32 regions.
    pub fn new(ranges: &[Range<u64>]) -> Self {
        let (mut pieces, mut end) = (Vec::with_capacity(ranges.len()), Piece { gfns: 0..0, regions: 0..0 });
        for gfns in ranges {
            let is_sound = gfns.start.is_multiple_of(REGION_PAGES) && gfns.start >= end.gfns.end && !gfns.is_empty();
            assert!(is_sound, "guest RAM is in ranges that ascend and begin at 2 MiB: {gfns:?}");
            let count = u32::try_from((gfns.end - gfns.start).div_ceil(REGION_PAGES)).ok();
            let last = count.and_then(|count| end.regions.end.checked_add(count)).expect("regions fit their numbers");
            end = Piece { gfns: gfns.clone(), regions: end.regions.end..last };
            pieces.push(end.clone());
        }
        Self { pieces }
    }

    /// How many regions there are. They are numbered from 0.
    pub fn count(&self) -> u32 {
        self.pieces.last().map_or(0, |piece| piece.regions.end)
    }

    /// The pages of a region.
    ///
    /// # Panics
    /// If there is no such region.
    pub fn gfns(&self, region: u32) -> Range<u64> {
        let piece = self.piece(region).expect("it is one of the regions");
        piece.gfns_of(region..region + 1)
    }

    /// The region a page is in, if it is RAM.
    pub fn region_of(&self, gfn: u64) -> Option<u32> {
        let at = self.pieces.partition_point(|piece| piece.gfns.end <= gfn);
        let piece = self.pieces.get(at).filter(|piece| piece.gfns.start <= gfn)?;
        Some(piece.regions.start + ((gfn - piece.gfns.start) / REGION_PAGES) as u32)
    }

    /// Whether no hole is between this region and the next.
    pub(super) fn is_joined_to_next(&self, region: u32) -> bool {
        self.piece(region).is_some_and(|piece| region + 1 < piece.regions.end)
    }

    /// The pages of regions with no hole between them.
    pub(super) fn gfns_of_run(&self, run: Range<u32>) -> Range<u64> {
        let piece = self.piece(run.start).expect("they are of the regions");
        debug_assert!(run.end <= piece.regions.end, "no hole is between them");
        piece.gfns_of(run)
    }

    fn piece(&self, region: u32) -> Option<&Piece> {
        self.pieces.get(self.pieces.partition_point(|piece| piece.regions.end <= region))
    }
}

impl Piece {
    fn gfns_of(&self, regions: Range<u32>) -> Range<u64> {
        let start = |region: u32| self.gfns.start + u64::from(region - self.regions.start) * REGION_PAGES;
        start(regions.start)..start(regions.end).min(self.gfns.end)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn regions_cover_ram_and_nothing_else() {
        // 3 MiB, a hole up to 8 MiB, 2 MiB and one page, which touch another range.
        let layout = Layout::new(&[0..768, 2048..2561, 3072..3073]);
        let gfns: Vec<_> = (0..layout.count()).map(|region| layout.gfns(region)).collect();
        assert_eq!(gfns, [0..512, 512..768, 2048..2560, 2560..2561, 3072..3073]);
        let regions = [0, 511, 512, 767, 768, 2047, 2048, 2560, 2561, 3072, 3073].map(|gfn| layout.region_of(gfn));
        let expected = [Some(0), Some(0), Some(1), Some(1), None, None, Some(2), Some(3), None, Some(4), None];
        assert_eq!(regions, expected);
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(|region| layout.is_joined_to_next(region)),
            [true, false, true, false, false, false]
        );
        assert_eq!((layout.gfns_of_run(0..2), layout.gfns_of_run(2..4)), (0..768, 2048..2561));
        assert_eq!((Layout::new(&[]).count(), Layout::new(&[]).region_of(0)), (0, None));
    }

    #[test]
    #[should_panic(expected = "begin at 2 MiB: 100..612")]
    fn ram_begins_at_a_region() {
        Layout::new(&[0..10, 100..612]);
    }

    proptest! {
        #[test]
        fn a_page_is_in_its_region(sizes in proptest::collection::vec((0..4u64, 1..3000u64), 1..5), at: prop::sample::Index) {
            let mut end = 0;
            let ranges: Vec<Range<u64>> = sizes.iter().map(|(hole, pages)| {
                let start = (end + hole * REGION_PAGES).next_multiple_of(REGION_PAGES);
                end = start + pages;
                start..end
            }).collect();
            let layout = Layout::new(&ranges);
            let gfn = at.index(end as usize + 1000) as u64;
            let region = layout.region_of(gfn);
            prop_assert_eq!(region.is_some(), ranges.iter().any(|range| range.contains(&gfn)));
            prop_assert!(region.is_none_or(|region| layout.gfns(region).contains(&gfn)));
        }
    }
}
