//! Has the kernel merge what it pays to merge.
//!
//! It sees the pages that the scanner visits, tells the other members of the pool which contents are stable, learns of how
//! many there are copies, and advises regions by what that is worth. What is merged is looked at again and again: a region
//! that does not stay so is given up.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::cpu_time::thread_cpu_time;
use crate::pager::{Found, Mergeable, Scan, Sight};

use super::advice::{Advice, Advisor, RANGES_MAX};
use super::chore::{Chore, Terms};
use super::effort::Seen;
use super::exchange::Exchange;
use super::folder::FolderError;
use super::handle::MergingStatistics;
use super::known::{Counts, KnownPages};
use super::ksm::{KsmHost, KsmProcess};
use super::layout::{Layout, REGION_PAGES};
use super::profit::{Look, saving_bytes};
use super::regions::{Region, Yield};
use super::scanner::PoolPlace;
use super::sketch::LiveMember;

/// How often the kernel is asked what it has merged, and for which part of the CPU budget. A write to a page that it has
/// merged since costs no more room than was reckoned with.
const ACCOUNT: (Duration, f64) = (Duration::from_secs(1), 1.0 / 16.0);

/// A difference of one in so many merged pages between the kernel's count and one's own is worth a look at all of them.
const DIFFERENCE_PART: u64 = 64;

/// So many writes to merged pages since one last asked are reason to look which region churns; where many are merged, one in
/// so many of them.
const BROKEN_PAGES: u64 = 16;
const BROKEN_PART: u64 = 256;

/// Visits of each region, on average, that are kept until there is an exchange. Where none comes about they are forgotten.
const PENDING_VISITS: usize = 16;

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

/// What is known of a region.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    present_pages: u32,
    saving_bytes: u64,
    visited: Option<Instant>,
}

impl Standing {
    fn look(&self) -> Look {
        Look { present_pages: self.present_pages, saving_bytes: self.saving_bytes, ..Look::default() }
    }
}

/// A visit that was not weighed yet.
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
    exchange: Exchange,
    /// A part of a core.
    cpu_budget: f64,
    standings: Vec<Standing>,
    pending: Vec<Pending>,
    /// Since the last exchange, as in [`News`](super::chore::News).
    turned_pages: u64,
    /// Regions that are advised but for pages that it was taken back on.
    half_taken: BTreeSet<u32>,
    is_ending: bool,
    pressing_pages: u64,
    /// Advice was given or taken back, and it is not known yet what is merged there.
    has_new_advice: bool,
    /// There was no room to take all advice back.
    is_behind: bool,
    accounting: Chore,
    /// Pages that were there in advised regions at the last look at all of them.
    present_pages: u64,
    broken_pages: u64,
    statistics: MergingStatistics,
}

impl Merger {
    /// With this part of a core as the budget of the whole scanner.
    pub fn new(mergeable: Mergeable, layout: Layout, place: &PoolPlace, cpu_budget: f64) -> Self {
        Self {
            broken_pages: mergeable.broken_pages(),
            mergeable,
            pages: KnownPages::new(layout.clone()),
            advisor: Advisor::new(layout.clone(), RANGES_MAX),
            exchange: Exchange::new(place, cpu_budget),
            cpu_budget,
            standings: vec![Standing::default(); layout.count() as usize],
            pending: Vec::new(),
            turned_pages: 0,
            half_taken: BTreeSet::new(),
            is_ending: false,
            pressing_pages: 0,
            has_new_advice: false,
            is_behind: false,
            accounting: Chore::default(),
            present_pages: 0,
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
    ) -> Result<Seen, MergerError> {
        let is_advised = self.advisor.is_advised(region.number);
        if is_advised {
            // Also finds what was written to: such a page is read below like any other.
            self.mergeable.look(region.gfns.clone()).map_err(MergerError::Look)?;
        }
        let salt = self.exchange.salt()?;
        let mut visiting = self.pages.visit(region, is_advised);
        let found = scan.show(region.gfns.clone(), frees_zeroes, |gfn, sight| match sight {
            Sight::Merged => visiting.see_merged(gfn),
            Sight::Content(page) => {
                if let Some(fingerprint) = salt.fingerprint(page) {
                    visiting.see(gfn, fingerprint);
                }
                false
            }
            Sight::MergedContent(page) => {
                if let Some(fingerprint) = salt.fingerprint(page) {
                    visiting.learn_merged(gfn, fingerprint);
                }
                false
            }
        });
        let counts = visiting.end();
        let standing = &mut self.standings[region.number as usize];
        standing.present_pages = counts.present_pages;
        let period = standing.visited.replace(now).map_or(Duration::MAX, |visited| now.duration_since(visited));
        if self.pending.len() > PENDING_VISITS * self.standings.len() {
            self.pending.clear();
        }
        self.pending.push(Pending { region: region.number, found, counts, period });
        self.turned_pages += u64::from(counts.turned_pages);
        // Where all is advised as it is, what is new is what was expected.
        let (new_pages, pressing_pages) = match self.advisor.is_all() {
            true => (0, counts.changed_pages),
            false => (counts.new_pages, counts.turned_pages),
        };
        self.pressing_pages += u64::from(pressing_pages);
        Ok(Seen {
            scanned_pages: found.scanned_pages,
            found_pages: found.freed_pages,
            broken_pages: counts.broken_pages.into(),
            unsettled_pages: u64::from(new_pages + counts.changed_pages),
        })
    }

    /// Whether so much that was merged was written to since the last call that one should look where.
    pub fn has_broken(&mut self) -> bool {
        let broken_pages = self.mergeable.broken_pages();
        let since_pages = broken_pages.saturating_sub(std::mem::replace(&mut self.broken_pages, broken_pages));
        since_pages > BROKEN_PAGES.max(self.mergeable.merged_pages() / BROKEN_PART)
    }

    /// Between visits, now and then: tells the others, and acts on what there is to know. Returns by region what visits have
    /// brought, as far as that is known.
    pub fn tend(&mut self, live: &[LiveMember], now: Instant) -> Result<Vec<(u32, Yield)>, MergerError> {
        self.account_if_due(now)?;
        let is_all = self.advisor.is_all();
        let yields = match self.exchange.terms(self.turned_pages, self.pressing_pages, is_all, now)? {
            Some(terms) if self.exchange.may(terms, now) => {
                let duplicate_pages = self.exchange(live, now)?;
                let yields = self.weigh(|_| true, &duplicate_pages);
                self.weigh_news();
                yields
            }
            // What has broken need not wait for news.
            Some(_) => self.weigh(|visit| visit.counts.broken_pages > 0, &[]),
            None => self.weigh(|_| true, &[]),
        };
        if !yields.is_empty() || self.is_behind {
            self.advise()?;
        }
        Ok(yields)
    }

    /// Takes all advice back, as far as there is room for pages of their own. True when nothing is left.
    pub fn end(&mut self, now: Instant) -> Result<bool, MergerError> {
        if !std::mem::replace(&mut self.is_ending, true) {
            self.exchange.withdraw()?;
        }
        // Others end too: what is merged still saves less by that.
        self.account_if_due(now)?;
        let is_over = self.take_all_back();
        self.set_waiting(matches!(is_over, Ok(false)));
        self.note_merged();
        self.statistics.waiting_pages = 0;
        is_over
    }

    /// From now on the whole scanner may use this part of a core.
    pub fn set_cpu_budget(&mut self, cpu_budget: f64) {
        self.cpu_budget = cpu_budget;
        self.exchange.set_cpu_budget(cpu_budget);
    }

    /// Goes on after all.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.is_ending) {
            self.set_waiting(false);
        }
    }

    fn set_waiting(&mut self, waits_for_room: bool) {
        self.mergeable.set_waiting(waits_for_room);
        self.statistics.waits_for_room = waits_for_room;
    }

    fn take_all_back(&mut self) -> Result<bool, MergerError> {
        for gfns in self.advisor.advised() {
            if !self.take_back(gfns)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Publishes what is stable and learns what has copies. Returns by region how many pages are newly known to have.
    fn exchange(&mut self, live: &[LiveMember], now: Instant) -> Result<Vec<u32>, MergerError> {
        let mut duplicate_pages = vec![0; self.standings.len()];
        let has_turned = self.turned_pages > 0;
        let Self { exchange, pages, layout, standings, .. } = self;
        standings.iter_mut().for_each(|standing| standing.saving_bytes = 0);
        let exchanged = exchange.run(pages, has_turned, live, now, |pages, gfn, copies| {
            let is_news = pages.note_copies(gfn, copies > 0);
            if let Some(region) = layout.region_of(gfn) {
                standings[region as usize].saving_bytes += saving_bytes(copies);
                duplicate_pages[region as usize] += u32::from(is_news);
            }
        })?;
        (self.turned_pages, self.pressing_pages) = (0, 0);
        let Some(exchanged) = exchanged else {
            self.pages = KnownPages::new(self.layout.clone());
            self.pending.clear();
            return Ok(duplicate_pages);
        };
        let statistics = &mut self.statistics;
        (statistics.stable_pages, statistics.duplicate_pages) = (exchanged.stable_pages, exchanged.copied_pages);
        statistics.exchanges += 1;
        statistics.sketches = exchanged.sketches;
        Ok(duplicate_pages)
    }

    /// Weighs those visits that are meant. Where nothing is known of a region's duplicates there are no new ones.
    fn weigh(&mut self, are_meant: impl Fn(&Pending) -> bool, duplicate_pages: &[u32]) -> Vec<(u32, Yield)> {
        let weigh = |Pending { region, found, counts, period }: Pending| {
            let look = Look { broken_pages: counts.broken_pages, period, ..self.standings[region as usize].look() };
            self.advisor.note(region, &look);
            let seen = Yield {
                scanned_pages: found.scanned_pages as u32,
                zero_pages: found.freed_pages as u32,
                duplicate_pages: duplicate_pages.get(region as usize).copied().unwrap_or(0),
                volatile_pages: counts.volatile_pages,
            };
            (region, seen)
        };
        self.pending.extract_if(.., |visit| are_meant(visit)).map(weigh).collect()
    }

    /// Weighs all others: somebody may have copies of their pages by now.
    fn weigh_news(&mut self) {
        for (region, standing) in (0..).zip(&self.standings) {
            self.advisor.note_news(region, &standing.look());
        }
    }

    fn advise(&mut self) -> Result<(), MergerError> {
        let advice = self.advisor.advice();
        let half_taken = std::mem::take(&mut self.half_taken);
        self.is_behind = false;
        self.has_new_advice |= advice != Advice::default();
        for gfns in advice.unadvise {
            let regions = (gfns.end - gfns.start).div_ceil(REGION_PAGES);
            if self.take_back(gfns)? {
                self.statistics.given_up_regions += regions;
            } else {
                self.is_behind = true;
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

    /// Finds out now and then what is merged, where anything may be.
    fn account_if_due(&mut self, now: Instant) -> Result<(), MergerError> {
        let (least, part) = ACCOUNT;
        let has_merged = self.has_new_advice || self.statistics.advised_pages > 0;
        if !has_merged || !self.accounting.may(now, Terms { least, cpu_part: part * self.cpu_budget }) {
            return Ok(());
        }
        let before = thread_cpu_time();
        let accounted = self.account();
        self.accounting.note(now, thread_cpu_time().saturating_sub(before));
        accounted
    }

    /// Finds out what is merged, and what that saves.
    fn account(&mut self) -> Result<(), MergerError> {
        let kernel = KsmProcess::read().unwrap_or_default();
        let advised = self.advisor.advised();
        let known_pages = self.mergeable.merged_pages();
        let differs = |pages: u64| pages.abs_diff(known_pages) > pages.max(known_pages) / DIFFERENCE_PART;
        if self.has_new_advice || kernel.merging_pages.is_none_or(differs) {
            self.present_pages = 0;
            for gfns in &advised {
                self.present_pages += self.mergeable.look(gfns.clone()).map_err(MergerError::Look)?.present;
            }
            self.has_new_advice = false;
        }
        if let Ok(host) = KsmHost::read() {
            self.mergeable.set_saved_part(host.pages_sharing as f64 / host.merged_pages().max(1) as f64);
        }
        let statistics = &mut self.statistics;
        statistics.kernel = kernel;
        statistics.advised_pages = advised.iter().map(|gfns| gfns.end - gfns.start).sum();
        let merging_pages = kernel.merging_pages.unwrap_or(self.mergeable.merged_pages());
        statistics.waiting_pages = self.present_pages.saturating_sub(merging_pages);
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
            // Long enough for whatever it costs.
            *now += Duration::from_secs(60);
            merger.tend(&[], *now).unwrap();
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
        let mut merger = Merger::new(mergeable, Layout::new(&[0..PAGES]), &place, 1.0);
        merger.exchange.set_mask(0);
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
        assert!(merger.end(now).unwrap());
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
        let mut merger = Merger::new(mergeable, Layout::new(&[0..PAGES]), &place, 1.0);
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
            let look =
                Look { present_pages: 512, saving_bytes: 1 << 20, broken_pages: 0, period: Duration::from_secs(1) };
            merger.advisor.note(region, &look);
        }
        assert!(!is_advised(99) && is_advised(100));
        merger.advise().unwrap();
        assert!(is_advised(0) && is_advised(99) && is_advised(100));
        assert!(merger.half_taken.is_empty());
    }
}
