//! What a scanner knows of each page from its last visit: 5 bytes a page. Pure.

use super::fingerprint::Fingerprint;
use super::layout::{Layout, REGION_PAGES};
use super::regions::Region;

/// The page had the same content at the two last visits, or was seen once: a content that others have too at its first
/// look is hardly ever gone at the next, and a second look before anything is done would double what finding costs.
const STABLE: u8 = 1;
/// There are others in the pool with its content.
const COPIED: u8 = 2;
/// The kernel had merged it.
const MERGED: u8 = 4;
/// It was seen at the running visit.
const SEEN: u8 = 8;

/// What a visit has shown. All in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// In guest RAM and not zero.
    pub present_pages: u32,
    /// With another content than at the visit before.
    pub volatile_pages: u32,
    /// Merged, or about to be, and written to since.
    pub broken_pages: u32,
    /// Not seen before.
    pub new_pages: u32,
    /// Of the volatile ones, those that were stable: it takes another look to know whether they are again.
    pub changed_pages: u32,
    /// Stable now and not before, or the other way round: others should be told.
    pub turned_pages: u32,
}

/// The pages of a guest. Memory is taken where pages are seen.
#[derive(Debug)]
pub(super) struct KnownPages {
    layout: Layout,
    fingerprints: Vec<Option<Fingerprint>>,
    flags: Vec<u8>,
}

impl KnownPages {
    /// Nothing is known.
    pub fn new(layout: Layout) -> Self {
        let pages = layout.count() as usize * REGION_PAGES as usize;
        Self { layout, fingerprints: vec![None; pages], flags: vec![0; pages] }
    }

    /// Begins a visit. It ends with [`Visiting::end`].
    pub fn visit<'a>(&'a mut self, region: &Region, is_advised: bool) -> Visiting<'a> {
        let start = region.number as usize * REGION_PAGES as usize;
        let pages = (region.gfns.end - region.gfns.start) as usize;
        Visiting {
            first_gfn: region.gfns.start,
            fingerprints: &mut self.fingerprints[start..start + pages],
            flags: &mut self.flags[start..start + pages],
            is_advised,
            counts: Counts::default(),
        }
    }

    /// Every stable page: its fingerprint and gfn.
    pub fn stable(&self) -> impl Iterator<Item = (Fingerprint, u32)> {
        let region_of = |at: usize| (at / REGION_PAGES as usize) as u32;
        self.flags.iter().enumerate().filter(|(_, flags)| **flags & STABLE != 0).filter_map(move |(at, _)| {
            let gfn = self.layout.gfns(region_of(at)).start + at as u64 % REGION_PAGES;
            Some((self.fingerprints[at]?, gfn as u32))
        })
    }

    /// Notes whether a stable page has copies in the pool. True when that is news.
    pub fn note_copies(&mut self, gfn: u64, has_copies: bool) -> bool {
        let Some(region) = self.layout.region_of(gfn) else { return false };
        let at = region as usize * REGION_PAGES as usize + (gfn - self.layout.gfns(region).start) as usize;
        let flags = &mut self.flags[at];
        let had_copies = *flags & COPIED != 0;
        *flags = if has_copies { *flags | COPIED } else { *flags & !COPIED };
        has_copies && !had_copies
    }
}

/// A visit of one region.
pub(super) struct Visiting<'a> {
    first_gfn: u64,
    fingerprints: &'a mut [Option<Fingerprint>],
    flags: &'a mut [u8],
    is_advised: bool,
    counts: Counts,
}

impl Visiting<'_> {
    /// A page with this content.
    pub fn see(&mut self, gfn: u64, fingerprint: Fingerprint) {
        let at = (gfn - self.first_gfn) as usize;
        let (known, flags) = (&mut self.fingerprints[at], &mut self.flags[at]);
        let (is_new, is_same) = (known.is_none(), *known == Some(fingerprint));
        let (is_stable, was_stable) = (is_new || is_same, *flags & STABLE != 0);
        let counts = &mut self.counts;
        counts.present_pages += 1;
        counts.new_pages += u32::from(is_new);
        counts.volatile_pages += u32::from(!is_stable);
        counts.changed_pages += u32::from(!is_stable && was_stable);
        // One that was to be merged and was written to before it was is as good as broken.
        let was_to_be = self.is_advised && *flags & COPIED != 0 && !is_same;
        counts.broken_pages += u32::from(*flags & MERGED != 0 || was_to_be);
        counts.turned_pages += u32::from(is_stable != was_stable);
        *known = Some(fingerprint);
        *flags = match (is_same, is_stable) {
            (true, _) => *flags & COPIED | STABLE | SEEN,
            (false, true) => STABLE | SEEN,
            (false, false) => SEEN,
        };
    }

    /// A page that the kernel has merged: its content is what it was. True if that is not known, as where the page was merged
    /// before it was looked at.
    pub fn see_merged(&mut self, gfn: u64) -> bool {
        let flags = &mut self.flags[(gfn - self.first_gfn) as usize];
        self.counts.present_pages += 1;
        *flags |= MERGED | SEEN;
        *flags & STABLE == 0
    }

    /// The content of a page that was just seen to be merged.
    pub fn learn_merged(&mut self, gfn: u64, fingerprint: Fingerprint) {
        let at = (gfn - self.first_gfn) as usize;
        self.counts.turned_pages += u32::from(self.flags[at] & STABLE == 0);
        self.fingerprints[at] = Some(fingerprint);
        self.flags[at] |= STABLE;
    }

    /// Forgets the pages that were not seen.
    pub fn end(self) -> Counts {
        let mut counts = self.counts;
        for (known, flags) in self.fingerprints.iter_mut().zip(self.flags) {
            if *flags & SEEN == 0 {
                counts.turned_pages += u32::from(*flags & STABLE != 0);
                (*known, *flags) = (None, 0);
            }
            *flags &= !SEEN;
        }
        counts
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn print(number: u32) -> Fingerprint {
        Fingerprint::from_number(number).unwrap()
    }

    #[test]
    fn pages_become_stable_and_stop_to_be() {
        // Two regions, the second of few pages, beyond a hole.
        let layout = Layout::new(&[0..512, 1024..1030]);
        let mut pages = KnownPages::new(layout.clone());
        let region = Region { number: 1, gfns: layout.gfns(1) };
        let mut visit = |numbers: &[(u64, u32)], merged: &[u64]| {
            let mut visiting = pages.visit(&region, true);
            numbers.iter().for_each(|&(gfn, number)| visiting.see(gfn, print(number)));
            merged.iter().for_each(|&gfn| assert!(!visiting.see_merged(gfn), "its content is known"));
            let counts = visiting.end();
            (counts, pages.stable().map(|(print, gfn)| (gfn, print.number())).collect::<Vec<_>>())
        };
        let (counts, stable) = visit(&[(1024, 7), (1025, 8), (1029, 9)], &[]);
        assert_eq!(counts, Counts { present_pages: 3, new_pages: 3, turned_pages: 3, ..Counts::default() });
        assert_eq!(stable, [(1024, 7), (1025, 8), (1029, 9)], "until it is seen that they are not");
        let (counts, stable) = visit(&[(1024, 7), (1025, 5), (1029, 9)], &[]);
        let changed =
            Counts { present_pages: 3, volatile_pages: 1, changed_pages: 1, turned_pages: 1, ..Counts::default() };
        assert_eq!(counts, changed);
        assert_eq!(stable, [(1024, 7), (1029, 9)]);
        // One is merged, one has left.
        let (counts, stable) = visit(&[(1025, 5)], &[1024]);
        assert_eq!(counts, Counts { present_pages: 2, turned_pages: 2, ..Counts::default() });
        assert_eq!(stable, [(1024, 7), (1025, 5)]);
        // Written to, with what it held: it was merged in vain.
        let (counts, stable) = visit(&[(1024, 7), (1025, 5)], &[]);
        assert_eq!(counts, Counts { present_pages: 2, broken_pages: 1, ..Counts::default() });
        assert_eq!(stable, [(1024, 7), (1025, 5)]);
    }

    #[test]
    fn what_always_changes_is_volatile_and_not_news() {
        let layout = Layout::new(&[0..512]);
        let mut pages = KnownPages::new(layout.clone());
        let region = Region { number: 0, gfns: layout.gfns(0) };
        let changed: Vec<_> = (1..6)
            .map(|number| {
                let mut visiting = pages.visit(&region, false);
                visiting.see(3, print(number));
                let counts = visiting.end();
                (counts.volatile_pages, counts.changed_pages)
            })
            .collect();
        assert_eq!(changed, [(0, 0), (1, 1), (1, 0), (1, 0), (1, 0)]);
    }

    #[test]
    fn what_was_merged_before_it_was_looked_at_is_learnt() {
        let layout = Layout::new(&[0..512]);
        let mut pages = KnownPages::new(layout.clone());
        let region = Region { number: 0, gfns: layout.gfns(0) };
        let mut visiting = pages.visit(&region, true);
        assert!(visiting.see_merged(3));
        visiting.learn_merged(3, print(7));
        assert_eq!(visiting.end(), Counts { present_pages: 1, turned_pages: 1, ..Counts::default() });
        assert_eq!(pages.stable().collect::<Vec<_>>(), [(print(7), 3)]);
        let mut visiting = pages.visit(&region, true);
        assert!(!visiting.see_merged(3));
        assert_eq!(visiting.end(), Counts { present_pages: 1, ..Counts::default() });
        // Written to, it is broken.
        let mut visiting = pages.visit(&region, true);
        visiting.see(3, print(8));
        assert_eq!(visiting.end().broken_pages, 1);
    }

    #[test]
    fn what_has_copies_and_is_written_to_where_it_was_to_be_merged_counts_as_broken() {
        let layout = Layout::new(&[0..512]);
        let mut pages = KnownPages::new(layout.clone());
        let region = Region { number: 0, gfns: layout.gfns(0) };
        let visit = |pages: &mut KnownPages, number, is_advised| {
            let mut visiting = pages.visit(&region, is_advised);
            visiting.see(3, print(number));
            visiting.end().broken_pages
        };
        assert_eq!([visit(&mut pages, 1, true), visit(&mut pages, 1, true)], [0, 0]);
        assert!(pages.note_copies(3, true) && !pages.note_copies(3, true) && !pages.note_copies(600, true));
        assert_eq!(visit(&mut pages, 2, true), 1);
        // It is another content: nothing is known of its copies.
        assert_eq!(visit(&mut pages, 3, true), 0);
        visit(&mut pages, 3, true);
        pages.note_copies(3, true);
        assert_eq!(visit(&mut pages, 4, false), 0, "nobody wanted to merge it");
    }
}
