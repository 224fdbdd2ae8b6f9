//! A disk that is full, fails or lies: pages stay where they have a home, and go to the file when it works again.

use std::os::unix::fs::FileExt;

use super::port::Plan;
use super::storm::{PAGES, check_emptied, storm, touches};
use super::*;
use crate::page_table::Stored;
use crate::store::swap::fault::{Fault, Faulty};
use crate::store::swap::{AlignedPage, Slot};

impl Guest {
    /// The file behind its pager.
    pub(super) fn file(&self) -> &Faulty {
        self.pager.paged.homes.swap.as_ref().unwrap().file()
    }

    /// Where a page is that is stored.
    pub(super) fn stored(&self, gfn: u64) -> Stored {
        let page = self.pager.paged.table.page(gfn).unwrap();
        match (page.state, page.location) {
            (State::Duplicate, Some(location)) => Stored::Duplicate(location),
            (State::Compressed, Some(location)) => Stored::Compressed(location),
            (State::Swapped, Some(location)) => Stored::Swapped(location),
            _ => panic!("page {gfn:#x} has no content: {page:?}"),
        }
    }

    fn slot(&self, gfn: u64) -> Slot {
        self.pager.paged.homes.slot(self.stored(gfn)).unwrap()
    }

    /// Flips a bit of a page in the file; once more, and it is as before.
    pub(super) fn damage_in_file(&self, gfn: u64) {
        let offset = u64::from(self.slot(gfn).index()) * PAGE_SIZE;
        let (mut page, file) = (AlignedPage::default(), &self.file().file);
        file.read_exact_at(&mut page.0, offset).unwrap();
        page.0[1234] ^= 8;
        file.write_all_at(&page.0, offset).unwrap();
    }

    /// Writes pages that do not compress.
    fn write_random(&self, gfns: Range<u64>) {
        self.soon(|| gfns.for_each(|gfn| self.write(gfn, &random(gfn))));
    }

    #[track_caller]
    fn check_random(&self, gfns: Range<u64>) {
        self.soon(|| gfns.for_each(|gfn| assert!(self.read(gfn) == random(gfn), "page {gfn:#x}")));
        self.check_no_failure();
    }
}

fn random(gfn: u64) -> Page {
    samples::page(Kind::Random, gfn as u32)
}

#[test]
fn pages_stay_where_they_are_when_the_file_is_full() {
    for method in methods() {
        let guest = Guest::new(&[0..MIB], PagerConfig { swap_limit_bytes: 100 * PAGE_SIZE, ..with_swap(method) });
        guest.pager.arm().unwrap();
        guest.write_random(0..256);
        assert_eq!((guest.evict(0..256), guest.store(0..256)), (256, 100));
        let statistics = guest.at_rest();
        assert_eq!((statistics.pages.swapped, statistics.pages.resident), (100, 156), "{method:?}");
        assert_eq!((statistics.pages.incompressible, statistics.failures.swap_full), (156, 3), "{method:?}");
        assert!(!statistics.swap.unwrap().unavailable, "full is no failure");
        guest.check_random(0..256);
        // Compressed pages find it full too.
        assert_eq!((guest.evict(0..100), guest.store(0..100)), (100, 100));
        (200..256).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
        guest.pager.paged.kernel().marks.clear();
        assert_eq!((guest.evict(200..256), guest.store(200..256)), (56, 56));
        assert_eq!(guest.pager.write_back(56).unwrap(), 0);
        assert_eq!(guest.at_rest().pages.compressed, 56);
        // Room for some.
        guest.ram.discard(0, 30 * PAGE_SIZE).unwrap();
        assert_eq!(guest.pager.write_back(56).unwrap(), 30);
        (200..256).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn), "page {gfn}"));
        guest.check_random(30..200);
    }
}

#[test]
fn pages_stay_where_they_are_when_a_write_fails() {
    let failures = [
        Fault::Errno(libc::ENOSPC),
        Fault::Errno(libc::EIO),
        Fault::Errno(libc::EDQUOT),
        Fault::Short(0),
        Fault::Short(PAGE_BYTES - 512),
    ];
    for (method, failure) in methods().into_iter().flat_map(|method| failures.map(|failure| (method, failure))) {
        let guest = Guest::new(&[0..MIB], with_swap(method));
        guest.pager.arm().unwrap();
        guest.write_random(0..256);
        guest.evict(0..256);
        // Of four writes the third fails, in the middle of it.
        guest.file().writes.lock().unwrap().extend([
            Fault::None,
            Fault::None,
            Fault::Short(7 * PAGE_BYTES + 100),
            failure,
        ]);
        assert_eq!(guest.store(0..256), 128, "{method:?}: {failure:?}");
        let statistics = guest.at_rest();
        assert_eq!((statistics.pages.swapped, statistics.pages.resident), (128, 128), "{method:?}: {failure:?}");
        assert_eq!((statistics.pages.incompressible, statistics.failures.swap_write), (128, 1));
        let swap = statistics.swap.unwrap();
        assert_eq!((swap.unavailable, swap.write_errors, swap.pages), (true, 1, 128), "{method:?}: {failure:?}");
        guest.check_random(0..256);
        // What compresses has another home, and keeps it.
        (0..64).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
        assert_eq!((guest.evict(0..64), guest.store(0..64)), (64, 64));
        assert_eq!((guest.pager.write_back(64).unwrap(), guest.at_rest().pages.compressed), (0, 64));
        guest.pager.paged.homes.swap.as_ref().unwrap().retry();
        guest.file().writes.lock().unwrap().push_back(failure);
        assert_eq!((guest.pager.write_back(64).unwrap(), guest.at_rest().pages.compressed), (0, 64));
        guest.pager.paged.homes.swap.as_ref().unwrap().retry();
        assert_eq!((guest.pager.write_back(64).unwrap(), guest.at_rest().pages.compressed), (64, 0));
        (0..64).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn), "page {gfn}"));
        guest.check_random(64..256);
    }
}

#[test]
fn a_file_that_failed_is_tried_again_in_time() {
    let guest = Guest::new(&[0..32 * MIB], with_swap(methods()[0]));
    guest.file().writes.lock().unwrap().push_back(Fault::Errno(libc::EIO));
    guest.pager.set_limits(Limits::alone(Some(8 * MIB))).unwrap();
    let since = Instant::now();
    guest.write_random(0..4096);
    let statistics = guest.pager.statistics();
    // Nowhere to go: the guest goes on beyond its limit, and everybody can see why.
    assert!(statistics.failures.over_limit_pages > 1000, "{statistics:#?}");
    let swap = statistics.swap.unwrap();
    assert!(swap.unavailable && swap.pages == 0, "{swap:?}");
    guest.wait_until("below the limit", |statistics| statistics.charge_bytes <= 8 * MIB);
    assert!(since.elapsed() > Duration::from_secs(9), "a disk that fails is not asked all the time");
    guest.check_random(0..4096);
}

#[test]
fn pages_that_found_the_file_full_are_tried_again_in_time() {
    let config = PagerConfig { swap_limit_bytes: 4 * MIB, ..with_swap(methods()[0]) };
    let guest = Guest::new(&[0..32 * MIB], config);
    guest.pager.set_limits(Limits::alone(Some(10 * MIB))).unwrap();
    guest.write_random(0..4096);
    let statistics = guest.wait_until("full", |statistics| statistics.pages.swapped == 1024);
    assert!(statistics.charge_bytes > 11 * MIB, "{statistics:#?}");
    // What is given back makes room, in the file and in memory.
    let swapped: Vec<u64> = (0..4096).filter(|gfn| guest.state(*gfn) == State::Swapped).collect();
    for gfn in &swapped {
        guest.ram.discard(gfn * PAGE_SIZE, PAGE_SIZE).unwrap();
    }
    guest.wait_until("below the limit", |statistics| statistics.charge_bytes <= 10 * MIB);
    for gfn in 0..4096 {
        let expected = if swapped.contains(&gfn) { [0; PAGE_BYTES] } else { random(gfn) };
        assert!(guest.read(gfn) == expected, "page {gfn:#x}");
    }
    guest.check_no_failure();
}

#[test]
fn a_read_that_fails_once_costs_nothing_but_time() {
    for fault in [Fault::Errno(libc::EIO), Fault::Flip(100_003), Fault::Short(0), Fault::Short(PAGE_BYTES / 2)] {
        let guest = Guest::new(&[0..MIB], with_swap(methods()[0]));
        guest.pager.arm().unwrap();
        guest.write_random(0..256);
        assert_eq!((guest.evict(0..256), guest.store(0..256)), (256, 256));
        for gfn in [200, 0, 1, 100] {
            guest.file().reads.lock().unwrap().push_back(fault);
            guest.check_random(gfn..gfn + 1);
            guest.at_rest();
            assert!(guest.file().reads.lock().unwrap().is_empty(), "{fault:?}: page {gfn} was not read");
        }
        let swap = guest.pager.statistics().swap.unwrap();
        assert!(swap.read_errors + swap.checksum_errors == 4, "{fault:?}: {swap:?}");
        guest.check_random(0..256);
    }
}

#[test]
fn pages_that_nobody_asked_for_may_be_unreadable() {
    let guest = Guest::new(&[0..MIB], with_swap(methods()[0]));
    guest.pager.arm().unwrap();
    guest.write_random(0..128);
    (128..256).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
    assert_eq!((guest.evict(0..256), guest.store(0..256)), (256, 256));
    let homes = &guest.pager.paged.homes;
    let damage = |gfn| match guest.stored(gfn) {
        Stored::Compressed(_) => homes.damage(guest.stored(gfn)),
        _ => guest.damage_in_file(gfn),
    };
    let damaged = [40, 41, 90, 170, 201];
    damaged.iter().for_each(|gfn| damage(*gfn));
    let check = |gfn| {
        let expected = if gfn < 128 { random(gfn) } else { page_of(2, gfn) };
        assert!(guest.read(gfn) == expected, "page {gfn}");
    };
    guest.soon(|| (0..256).filter(|gfn| !damaged.contains(gfn)).for_each(check));
    let statistics = guest.at_rest();
    assert!(statistics.refaults.swapped.around_pages > 64, "{statistics:#?}");
    assert!(statistics.refaults.compressed.around_pages > 64, "{statistics:#?}");
    assert!(statistics.swap.unwrap().checksum_errors >= 6, "nobody came across them: {statistics:#?}");
    guest.check_no_failure();
    // They are where they were, and come when they can be read.
    damaged.iter().for_each(|gfn| damage(*gfn));
    guest.soon(|| damaged.into_iter().for_each(check));
    guest.check_no_failure();
}

#[test]
fn no_page_is_lost_in_a_storm_over_a_failing_disk() {
    for method in methods() {
        println!("{method:?}");
        let (guest, plan) = (Guest::new(&[0..PAGES * PAGE_SIZE], with_swap(method)), Arc::new(Plan::default()));
        guest.arm_through(&plan);
        guest.pager.set_limits(Limits::alone(Some(4 * MIB))).unwrap();
        guest.file().set_weather(Some(7));
        plan.set_weather(Some(8));
        // A failed write stops writing for ten seconds: too long for a storm.
        storm(&guest, touches(30_000), || guest.pager.paged.homes.swap.as_ref().unwrap().retry());
        guest.file().set_weather(None);
        plan.set_weather(None);
        let statistics = guest.pager.statistics();
        let swap = statistics.swap.unwrap();
        for failures in [swap.write_errors, swap.read_errors, swap.checksum_errors, statistics.failures.swap_write] {
            assert!(failures > 10, "{method:?}: {statistics:#?}");
        }
        check_emptied(&guest);
    }
}
