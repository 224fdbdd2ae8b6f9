//! One page's life: out, stored, back, freed, pinned.

use super::*;

#[test]
fn every_kind_of_page_comes_back() {
    for method in methods() {
        let guest = Guest::new(&[0..4 * MIB, 8 * MIB..12 * MIB], with_swap(method));
        let gfns: Vec<u64> = (0..1024).chain(2048..3072).collect();
        for &gfn in &gfns {
            guest.write(gfn, &page_of(gfn, 0));
        }
        guest.pager.arm().unwrap();
        let statistics = guest.at_rest();
        assert_eq!((statistics.pages.resident, statistics.pages.unknown), (2048, 0), "{method:?}");
        for range in [0..1024, 2048..3072] {
            assert_eq!(guest.evict(range.clone()), 1024);
            assert_eq!(guest.state(range.start), State::Aside);
            assert_eq!(guest.store(range), 1024);
        }
        let pages = guest.at_rest().pages;
        assert_eq!((pages.zero, pages.duplicate, pages.swapped), (512, 511, 512), "{pages:?}");
        assert_eq!((pages.compressed, pages.resident, pages.aside), (513, 0, 0), "{pages:?}");
        for &gfn in &gfns {
            assert!(guest.read(gfn) == page_of(gfn, 0), "{method:?}: page {gfn:#x}");
        }
        let statistics = guest.at_rest();
        let refaults = &statistics.refaults;
        for source in [&refaults.zero, &refaults.duplicate, &refaults.compressed, &refaults.swapped] {
            assert!(source.pages + source.around_pages >= 511, "{statistics:#?}");
        }
        assert_eq!(statistics.pages.resident, 2048);
        assert_eq!((statistics.compressed.pages, statistics.swap.unwrap().pages), (0, 0), "every home is empty");
        assert_eq!(statistics.duplicates.references, 0);
        guest.check_no_failure();
    }
}

#[test]
fn a_page_that_was_written_is_new_when_it_comes_back() {
    for method in methods() {
        let guest = Guest::new(&[0..MIB], with_swap(method));
        guest.pager.arm().unwrap();
        for version in 0..20 {
            for gfn in 0..256 {
                assert!(version == 0 || guest.read(gfn) == page_of(gfn, version - 1), "{method:?}: {gfn} {version}");
                guest.write(gfn, &page_of(gfn, version));
            }
            guest.evict(0..256);
            guest.store(0..256);
        }
        guest.check_no_failure();
    }
}

#[test]
fn cold_pages_go_to_the_file() {
    for method in methods() {
        let guest = Guest::new(&[0..MIB], with_swap(method));
        guest.pager.arm().unwrap();
        (0..256).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
        guest.evict(0..256);
        guest.store(0..256);
        // One page of text that 64 share, and 64 others.
        assert_eq!(guest.pager.write_back(1000).unwrap(), 65);
        let statistics = guest.at_rest();
        assert_eq!((statistics.compressed.pages, statistics.swap.unwrap().pages), (0, 65 + 64));
        assert_eq!((statistics.pages.swapped, statistics.pages.compressed, statistics.pages.duplicate), (129, 0, 63));
        (0..256).for_each(|gfn| assert!(guest.read(gfn) == page_of(gfn, 0), "{method:?}: page {gfn}"));
        guest.check_no_failure();
    }
}

#[test]
fn without_a_file_pages_that_do_not_compress_stay_until_they_are_written() {
    let config = PagerConfig { compressed_limit_bytes: PAGE_BYTES * 3 / 4, ..PagerConfig::default() };
    let guest = Guest::new(&[0..MIB], config);
    guest.pager.arm().unwrap();
    (0..256).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
    guest.evict(0..256);
    assert_eq!(guest.store(0..256), 192);
    let pages = guest.at_rest().pages;
    assert_eq!((pages.resident, pages.incompressible, pages.aside), (64, 64, 0), "{pages:?}");
    assert_eq!(guest.evict(0..256), 0, "not tried again");
    assert!(guest.read(3) == page_of(3, 0));
    assert_eq!(guest.evict(0..256), 0, "read is not written");
    guest.write(3, &page_of(2, 1));
    if guest.pager.paged.kernel().method == EvictionMethod::Move {
        assert_eq!(guest.at_rest().pages.incompressible, 63);
        assert_eq!((guest.evict(0..256), guest.store(0..256)), (1, 1));
    }
    assert!(guest.read(3) == page_of(2, 1));
    guest.check_no_failure();
}

#[test]
fn whatever_state_a_page_is_in_it_can_be_given_back() {
    for method in methods() {
        let guest = Guest::new(&[0..8 * MIB], with_swap(method));
        (0..1024).for_each(|gfn| guest.write(gfn, &page_of(gfn, 1)));
        // Open, and behind the table's back.
        guest.ram.discard(0, MIB).unwrap();
        assert!(guest.read(0) == [0; PAGE_BYTES]);
        guest.pager.arm().unwrap();
        guest.evict(256..1024);
        guest.store(256..768);
        // Resident, stored each way, aside, untouched.
        guest.ram.discard(0, 8 * MIB).unwrap();
        let statistics = guest.at_rest();
        assert_eq!(statistics.pages.untouched, 2048, "{:?}", statistics.pages);
        assert_eq!((statistics.compressed.pages, statistics.swap.unwrap().pages), (0, 0));
        assert_eq!(statistics.duplicates.references, 0);
        (0..2048).for_each(|gfn| assert!(guest.read(gfn) == [0; PAGE_BYTES], "{method:?}: page {gfn}"));
        guest.check_no_failure();
    }
}

#[test]
fn pinned_pages_come_back_and_stay() {
    for method in methods() {
        let guest = Guest::new(&[0..MIB], with_swap(method));
        guest.pager.arm().unwrap();
        (0..128).for_each(|gfn| guest.write(gfn, &page_of(gfn, 1)));
        guest.evict(0..128);
        guest.store(0..64);
        let pin = guest.ram.pin(0, 128 * PAGE_SIZE).unwrap();
        assert_eq!(guest.at_rest().pages.resident, 128, "{method:?}");
        assert_eq!(guest.evict(0..128), 0);
        let second = guest.ram.pin(4 * PAGE_SIZE + 1, 2).unwrap();
        drop(pin);
        assert_eq!(guest.evict(0..128), 127);
        drop(second);
        assert_eq!(guest.evict(0..128), 1);
        // One that holds nothing may be pinned, and is touched by whoever uses it.
        let fresh = guest.ram.pin(200 * PAGE_SIZE, PAGE_SIZE).unwrap();
        guest.write(200, &page_of(3, 1));
        assert_eq!(guest.evict(200..201), 0);
        drop(fresh);
        (0..128).for_each(|gfn| assert!(guest.read(gfn) == page_of(gfn, 1), "{method:?}: page {gfn}"));
        guest.check_no_failure();
    }
}

#[test]
fn pins_from_before_arming_count() {
    let guest = Guest::new(&[0..MIB], PagerConfig::default());
    guest.write(5, &page_of(2, 1));
    let pin = guest.ram.pin(5 * PAGE_SIZE, PAGE_SIZE).unwrap();
    guest.pager.arm().unwrap();
    assert_eq!(guest.evict(0..256), 0);
    drop(pin);
    assert_eq!(guest.evict(0..256), 1);
    let pins: Vec<_> = (0..crate::page_table::PINS_MAX).map(|_| guest.ram.pin(0, PAGE_SIZE).unwrap()).collect();
    assert!(matches!(guest.ram.pin(0, 1), Err(RamError::Pin { .. })));
    drop(pins);
    assert!(guest.ram.pin(0, 1).is_ok());
}

#[test]
fn first_touches_come_in_clusters_and_read_as_zero() {
    let guest = Guest::new(&[0..MIB, 2 * MIB..2 * MIB + 5 * PAGE_SIZE], PagerConfig::default());
    guest.pager.arm().unwrap();
    assert!(guest.read(35) == [0; PAGE_BYTES]);
    assert_eq!(guest.at_rest().pages.resident, 16);
    assert!(guest.read(47) == [0; PAGE_BYTES]);
    let statistics = guest.at_rest();
    let touched = &statistics.refaults.first_touch;
    assert_eq!((statistics.pages.resident, touched.pages, touched.around_pages), (16, 1, 15));
    // The last cluster of a region ends with it.
    assert!(guest.read(512 + 3) == [0; PAGE_BYTES]);
    assert_eq!(guest.at_rest().pages.resident, 16 + 5);
    guest.check_no_failure();
}

#[test]
fn a_vm_whose_pages_are_home_is_opened_when_the_limit_goes() {
    let guest = Guest::new(&[0..4 * MIB], PagerConfig::default());
    (0..1024).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
    guest.pager.set_limits(Limits::alone(Some(64 * MIB))).unwrap();
    assert!(guest.at_rest().armed);
    guest.evict(0..16);
    guest.pager.set_limits(Limits::alone(None)).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(guest.at_rest().armed, "pages are out");
    (0..16).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn)));
    guest.pager.set_limits(Limits::alone(None)).unwrap();
    guest.wait_until("open", |statistics| !statistics.armed);
    (0..1024).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn)));
    // And armed again, with what is there now.
    guest.ram.discard(0, MIB).unwrap();
    guest.pager.set_limits(Limits::alone(Some(64 * MIB))).unwrap();
    assert_eq!(guest.at_rest().pages.resident, 768);
    guest.check_no_failure();
}

#[test]
fn a_walk_is_served_ahead() {
    let guest = Guest::new(&[0..8 * MIB], with_swap(methods()[0]));
    guest.pager.arm().unwrap();
    (0..1024).for_each(|gfn| guest.write(gfn, &page_of(if gfn < 512 { 2 } else { 3 }, gfn)));
    guest.evict(0..1024);
    guest.store(0..1024);
    (0..1024).for_each(|gfn| assert!(guest.read(gfn) == page_of(if gfn < 512 { 2 } else { 3 }, gfn), "{gfn}"));
    let refaults = guest.at_rest().refaults;
    for source in [&refaults.compressed, &refaults.swapped] {
        assert!(source.pages < 64 && source.around_pages > 448, "{refaults:#?}");
    }
    guest.check_no_failure();
}
