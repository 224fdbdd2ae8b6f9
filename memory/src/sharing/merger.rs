//! Has the kernel merge what it pays to merge.
//!
//! It sees the pages that the scanner visits, tells the other members of the pool which contents are stable, learns of how
//! many there are copies, and advises regions by what that is worth. What is merged is looked at again and again: a region
//! that does not stay so is given up.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::pager::{Found, Mergeable, Scan, Sight};

use super::advice::{Advisor, RANGES_MAX};
use super::copies::StablePages;
use super::fingerprint::Salt;
use super::folder::FolderError;
use super::handle::MergingStatistics;
use super::known::{Counts, KnownPages};
use super::ksm::{KsmHost, KsmProcess};
use super::layout::{Layout, REGION_PAGES};
use super::profit::{Look, saving_bytes};
use super::regions::{Region, Yield};
use super::scanner::PoolPlace;
use super::sketch::{LiveMember, Sketches};

/// How often members exchange what they know at the most, and how often if nothing of one's own has changed: others' may
/// have.
const EXCHANGE: Duration = Duration::from_secs(1);
const EXCHANGE_AT_REST: Duration = Duration::from_secs(4);

/// How often is looked at what the kernel has merged.
const ACCOUNT: Duration = Duration::from_millis(500);

/// A difference of one in so many merged pages between the kernel's count and one's own is worth a look at all of them.
const DIFFERENCE_PART: u64 = 64;

/// Why pages cannot be merged.
#[derive(Debug, thiserror::Error)]
pub(super) enum MergerError {
    /// A file in the pool's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The kernel takes no advice.
    #[error("guest RAM: madvise(MADV_MERGEABLE): {0}")]
    Advice(std::io::Error),
    /// The process's page map.
    #[error("/proc/self/pagemap: {0}")]
    Look(std::io::Error),
}

/// What a visit has come to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Visit {
    /// Pages looked at, and given back.
    pub found: Found,
    /// Merged pages that were written to.
    pub broken_pages: u64,
    /// Pages that take another look.
    pub unsettled_pages: u64,
}

/// What an exchange has brought.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Pages that were not known to have copies.
    pub duplicate_pages: u64,
    /// By region, what the visits since the last exchange have brought.
    pub yields: Vec<(u32, Yield)>,
}

/// What is known of a region.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    present_pages: u32,
    saving_bytes: u64,
    visited: Option<Instant>,
}

/// The visits of one region since the last exchange.
#[derive(Debug, Clone, Copy)]
struct Pending {
    region: u32,
    found: Found,
    counts: Counts,
    period: Duration,
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Merger {
    mergeable: Mergeable,
    layout: Layout,
    pages: KnownPages,
    advisor: Advisor,
    place: PoolPlace,
    sketches: Sketches,
    salt: Option<Salt>,
    /// The bits of fingerprints that count: all.
    mask: u32,
    standings: Vec<Standing>,
    pending: Vec<Pending>,
    turned_pages: u64,
    /// Regions that are advised but for pages that it was taken back on.
    half_taken: BTreeSet<u32>,
    is_ending: bool,
    exchanged: Option<Instant>,
    accounted: Option<Instant>,
    statistics: MergingStatistics,
}

impl Merger {
    pub fn new(mergeable: Mergeable, layout: Layout, place: &PoolPlace) -> Self {
        Self {
            mergeable,
            pages: KnownPages::new(layout.clone()),
            advisor: Advisor::new(layout.clone(), RANGES_MAX),
            sketches: Sketches::new(&place.folder, place.id),
            place: place.clone(),
            salt: None,
            mask: u32::MAX,
            standings: vec![Standing::default(); layout.count() as usize],
            pending: Vec::new(),
            turned_pages: 0,
            half_taken: BTreeSet::new(),
            is_ending: false,
            exchanged: None,
            accounted: None,
            statistics: MergingStatistics::default(),
            layout,
        }
    }

    pub fn statistics(&self) -> MergingStatistics {
        self.statistics
    }

    /// Looks over a region.
    pub fn visit(
        &mut self,
        region: &Region,
        scan: &mut Scan,
        frees_zeroes: bool,
        now: Instant,
    ) -> Result<Visit, MergerError> {
        if self.salt.is_none() {
            self.salt = Some(self.salt_of_pool()?);
        }
        let salt = self.salt.as_ref().expect("it was just made");
        let is_advised = self.advisor.is_advised(region.number);
        if is_advised {
            // Also finds what was written to: such a page is read below like any other.
            self.mergeable.look(region.gfns.clone()).map_err(MergerError::Look)?;
        }
        let mut visiting = self.pages.visit(region, is_advised);
        let found = scan.show(region.gfns.clone(), frees_zeroes, |gfn, sight| match sight {
            Sight::Merged => visiting.see_merged(gfn),
            Sight::Content(page) => {
                if let Some(fingerprint) = salt.fingerprint(page) {
                    visiting.see(gfn, fingerprint);
                }
            }
        });
        let counts = visiting.end();
        let standing = &mut self.standings[region.number as usize];
        standing.present_pages = counts.present_pages;
        let period = standing.visited.replace(now).map_or(Duration::MAX, |visited| now.duration_since(visited));
        self.pending.push(Pending { region: region.number, found, counts, period });
        self.turned_pages += u64::from(counts.turned_pages);
        Ok(Visit {
            found,
            broken_pages: counts.broken_pages.into(),
            unsettled_pages: u64::from(counts.new_pages + counts.volatile_pages),
        })
    }

    /// A beat of visits is over: tells the others, and acts on what there is to know.
    pub fn end_beat(&mut self, live: &[LiveMember], now: Instant) -> Result<News, MergerError> {
        let is_due = |last: Option<Instant>, period| last.is_none_or(|last| now.duration_since(last) >= period);
        if is_due(self.accounted, ACCOUNT) {
            self.accounted = Some(now);
            self.account()?;
        }
        let period = if self.turned_pages > 0 { EXCHANGE } else { EXCHANGE_AT_REST };
        if !is_due(self.exchanged, period) {
            return Ok(News::default());
        }
        self.exchanged = Some(now);
        let duplicate_pages = self.exchange(live)?;
        let yields = self.note_visits(&duplicate_pages);
        self.advise()?;
        Ok(News { duplicate_pages: duplicate_pages.iter().map(|&pages| u64::from(pages)).sum(), yields })
    }

    /// Takes all advice back, as far as there is room for pages of their own. True when nothing is left.
    pub fn end(&mut self) -> Result<bool, MergerError> {
        if !std::mem::replace(&mut self.is_ending, true) {
            self.sketches.withdraw()?;
        }
        let is_over = self.take_all_back();
        self.mergeable.set_waiting(matches!(is_over, Ok(false)));
        self.note_merged();
        self.statistics.waiting_pages = 0;
        is_over
    }

    /// Goes on after all.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.is_ending) {
            self.mergeable.set_waiting(false);
        }
    }

    fn take_all_back(&mut self) -> Result<bool, MergerError> {
        for gfns in self.advisor.advised() {
            if !self.take_back(gfns)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn salt_of_pool(&self) -> Result<Salt, FolderError> {
        Ok(Salt::of_pool(&self.place.folder, self.place.id)?.with_mask(self.mask))
    }

    /// Publishes what is stable and learns what has copies. Returns by region how many pages are newly known to have.
    fn exchange(&mut self, live: &[LiveMember]) -> Result<Vec<u32>, MergerError> {
        let salt = self.salt_of_pool()?;
        let mut duplicate_pages = vec![0; self.standings.len()];
        if self.salt.as_ref() != Some(&salt) {
            // What was made with another says nothing to anybody.
            self.pages = KnownPages::new(self.layout.clone());
            self.salt = Some(salt);
            return Ok(duplicate_pages);
        }
        let stable = StablePages::new(self.pages.stable());
        stable.publish(&mut self.sketches, &salt)?;
        let survey = stable.survey(&self.sketches, &salt, live)?;
        self.standings.iter_mut().for_each(|standing| standing.saving_bytes = 0);
        let mut copied_pages = 0;
        for (gfn, copies) in survey.copies() {
            let gfn = u64::from(gfn);
            copied_pages += u64::from(copies > 0);
            let is_news = self.pages.note_copies(gfn, copies > 0);
            if let Some(region) = self.layout.region_of(gfn) {
                self.standings[region as usize].saving_bytes += saving_bytes(copies);
                duplicate_pages[region as usize] += u32::from(is_news);
            }
        }
        self.turned_pages = 0;
        let statistics = &mut self.statistics;
        (statistics.stable_pages, statistics.duplicate_pages) = (stable.count() as u64, copied_pages);
        statistics.exchanges += 1;
        statistics.sketches = survey.statistics;
        Ok(duplicate_pages)
    }

    /// Weighs the regions that were visited.
    fn note_visits(&mut self, duplicate_pages: &[u32]) -> Vec<(u32, Yield)> {
        let mut yields = Vec::with_capacity(self.pending.len());
        for Pending { region, found, counts, period } in self.pending.drain(..) {
            self.advisor.note(
                region,
                &Look {
                    present_pages: counts.present_pages,
                    saving_bytes: self.standings[region as usize].saving_bytes,
                    broken_pages: counts.broken_pages,
                    period,
                },
            );
            let seen = Yield {
                scanned_pages: found.scanned_pages as u32,
                zero_pages: found.freed_pages as u32,
                duplicate_pages: duplicate_pages[region as usize],
                volatile_pages: counts.volatile_pages,
            };
            yields.push((region, seen));
        }
        yields
    }

    fn advise(&mut self) -> Result<(), MergerError> {
        let advice = self.advisor.advice();
        let half_taken = std::mem::take(&mut self.half_taken);
        for gfns in advice.unadvise {
            let regions = (gfns.end - gfns.start).div_ceil(REGION_PAGES);
            if self.take_back(gfns)? {
                self.statistics.given_up_regions += regions;
            }
        }
        for gfns in advice.advise {
            self.mergeable.advise(gfns.clone()).map_err(MergerError::Advice)?;
            self.advisor.done(&gfns, true);
        }
        // It is to be merged after all: the whole of it.
        for region in half_taken {
            if self.advisor.is_advised(region) && !self.half_taken.contains(&region) {
                self.mergeable.advise(self.layout.gfns(region)).map_err(MergerError::Advice)?;
            }
        }
        self.statistics.advises_all = self.advisor.is_all();
        Ok(())
    }

    /// Takes advice back on a range of whole regions, as far as there is room. True when that is all of it.
    fn take_back(&mut self, gfns: Range<u64>) -> Result<bool, MergerError> {
        let mut start = gfns.start;
        while start < gfns.end {
            let region = start..gfns.end.min(start + REGION_PAGES);
            if self.mergeable.take_back(region.clone()).map_err(MergerError::Advice)? < region.end {
                self.half_taken.extend(self.layout.region_of(start));
                return Ok(false);
            }
            self.advisor.done(&region, false);
            start = region.end;
        }
        Ok(true)
    }

    /// Finds out what is merged, and what that saves.
    fn account(&mut self) -> Result<(), MergerError> {
        let kernel = KsmProcess::read().unwrap_or_default();
        let advised = self.advisor.advised();
        let known_pages = self.mergeable.merged_pages();
        let differs = |pages: u64| pages.abs_diff(known_pages) > pages.max(known_pages) / DIFFERENCE_PART;
        if kernel.merging_pages.is_none_or(differs) {
            for gfns in &advised {
                self.mergeable.look(gfns.clone()).map_err(MergerError::Look)?;
            }
        }
        if let Ok(KsmHost { pages_shared, pages_sharing, .. }) = KsmHost::read() {
            self.mergeable.set_saved_part(pages_sharing as f64 / (pages_shared + pages_sharing).max(1) as f64);
        }
        let advised_regions = (0..self.layout.count()).filter(|&region| self.advisor.is_advised(region));
        let present_pages: u64 =
            advised_regions.map(|region| u64::from(self.standings[region as usize].present_pages)).sum();
        let statistics = &mut self.statistics;
        statistics.kernel = kernel;
        statistics.advised_pages = advised.iter().map(|gfns| gfns.end - gfns.start).sum();
        statistics.waiting_pages = present_pages.saturating_sub(self.mergeable.merged_pages());
        self.note_merged();
        Ok(())
    }

    fn note_merged(&mut self) {
        self.statistics.merged_pages = self.mergeable.merged_pages();
        self.statistics.saved_bytes = self.mergeable.saved_bytes();
        self.statistics.broken_pages = self.mergeable.broken_pages();
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::Arc;
    use std::thread;

    use cistern_probe::content::Kind;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::ledger::MemberId;
    use crate::pager::{Pager, PagerConfig};
    use crate::ram::{GuestRam, PAGE_SIZE};
    use crate::store::{PAGE_BYTES, Page, samples};

    const PAGES: u64 = 4 * REGION_PAGES;

    fn page_of(gfn: u64) -> Page {
        samples::page(Kind::Text, gfn as u32)
    }

    /// One region after the other, as often as it takes for what is said of them to be acted on.
    fn visit_all(merger: &mut Merger, scan: &mut Scan, now: &mut Instant, beats: u32) {
        for _ in 0..beats {
            for number in 0..merger.layout.count() {
                let region = Region { number, gfns: merger.layout.gfns(number) };
                merger.visit(&region, scan, false, *now).unwrap();
            }
            *now += EXCHANGE_AT_REST;
            merger.end_beat(&[], *now).unwrap();
        }
    }

    #[test]
    fn pages_that_differ_are_not_merged_whatever_their_fingerprints() {
        let ksm = Path::new("/sys/kernel/mm/ksm");
        let lock = File::open(ksm.join("run")).expect("a kernel with KSM");
        lock.lock().unwrap();
        let ram = GuestRam::new(&[0..PAGES * PAGE_SIZE]).unwrap();
        let pager = Pager::new(Arc::clone(&ram), PagerConfig::default(), Box::new(|page| panic!("{page}"))).unwrap();
        pager.arm().unwrap();
        let Some(mergeable) = pager.mergeable() else { return };
        (0..PAGES).for_each(|gfn| ram.memory().write_slice(&page_of(gfn), GuestAddress(gfn * PAGE_SIZE)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let place = PoolPlace { folder: folder.path().to_owned(), id: MemberId { slot: 0, generation: 1 } };
        let mut merger = Merger::new(mergeable, Layout::new(&[0..PAGES]), &place);
        merger.mask = 0;
        let mut scan = pager.scan().unwrap();
        let mut now = Instant::now();
        visit_all(&mut merger, &mut scan, &mut now, 4);
        let statistics = merger.statistics();
        assert_eq!((statistics.duplicate_pages, statistics.advised_pages), (PAGES, PAGES), "{statistics:?}");
        // ksmd comes by, twice: it compares what it does not merge.
        let setting = |name: &str| fs::read_to_string(ksm.join(name)).unwrap().trim().to_owned();
        let found = ["pages_to_scan", "run"].map(|name| (name, setting(name)));
        for (name, value) in [("pages_to_scan", "10000"), ("run", "1")] {
            fs::write(ksm.join(name), value).unwrap();
        }
        let scans = || setting("full_scans").parse::<u64>().unwrap();
        let (first, deadline) = (scans(), Instant::now() + Duration::from_secs(60));
        while scans() < first + 3 {
            assert!(Instant::now() < deadline, "ksmd has stopped");
            thread::sleep(Duration::from_millis(10));
        }
        for (name, value) in found {
            fs::write(ksm.join(name), value).unwrap();
        }
        visit_all(&mut merger, &mut scan, &mut now, 1);
        assert_eq!(merger.statistics().merged_pages, 0);
        let mut page = [0; PAGE_BYTES];
        for gfn in 0..PAGES {
            ram.memory().read_slice(&mut page, GuestAddress(gfn * PAGE_SIZE)).unwrap();
            assert!(page == page_of(gfn), "page {gfn}");
        }
        // What is advised in vain is taken back at the end.
        assert!(merger.end().unwrap());
        assert_eq!(merger.advisor.advised(), []);
    }

    #[test]
    fn a_region_that_is_half_taken_back_is_advised_again_as_a_whole() {
        let ram = GuestRam::new(&[0..PAGES * PAGE_SIZE]).unwrap();
        let pager = Pager::new(Arc::clone(&ram), PagerConfig::default(), Box::new(|page| panic!("{page}"))).unwrap();
        pager.arm().unwrap();
        let Some(mergeable) = pager.mergeable() else { return };
        let folder = tempfile::tempdir().unwrap();
        let place = PoolPlace { folder: folder.path().to_owned(), id: MemberId { slot: 0, generation: 1 } };
        let mut merger = Merger::new(mergeable, Layout::new(&[0..PAGES]), &place);
        let start = ram.host_address(0).unwrap();
        let is_advised = |gfn: u64| {
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
            let (mut is_here, mut flags) = (false, None);
            for line in smaps.lines() {
                if let Some((from, to)) = line.split_whitespace().next().and_then(|word| word.split_once('-'))
                    && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
                {
                    is_here = (from..to).contains(&(start + gfn * PAGE_SIZE));
                } else if is_here && line.starts_with("VmFlags:") {
                    flags = Some(line.split_whitespace().any(|flag| flag == "mg"));
                }
            }
            flags.unwrap()
        };
        // As it is where there was room for the first pages only, and another look says that all are worth it.
        merger.mergeable.advise(0..PAGES).unwrap();
        merger.advisor.done(&(0..PAGES), true);
        merger.mergeable.take_back(0..100).unwrap();
        merger.half_taken.insert(0);
        for region in 0..4 {
            let look = Look { present_pages: 512, saving_bytes: 1 << 20, broken_pages: 0, period: EXCHANGE };
            merger.advisor.note(region, &look);
        }
        assert!(!is_advised(99) && is_advised(100));
        merger.advise().unwrap();
        assert!(is_advised(0) && is_advised(99) && is_advised(100));
        assert!(merger.half_taken.is_empty());
    }
}
