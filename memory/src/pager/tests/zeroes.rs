//! Zero pages that a scan gives back.

use super::*;

fn zero_every_fourth(guest: &Guest) {
    (0..2048).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
}

#[test]
fn zero_pages_go_back_to_the_host_and_read_as_zero() {
    for method in methods() {
        let guest = Guest::new(&[0..8 * MIB], in_memory(method));
        zero_every_fourth(&guest);
        let mut scan = guest.pager.scan().unwrap();
        assert_eq!(scan.free_zeroes(0..2048), Found::default(), "an open VM is left alone");
        guest.pager.arm().unwrap();
        assert_eq!(scan.free_zeroes(0..2048), Found { scanned_pages: 2048, freed_pages: 512 });
        let statistics = guest.at_rest();
        assert_eq!((statistics.pages.untouched, statistics.pages.resident), (512, 1536));
        assert_eq!(statistics.evictions.zero_freed, 512);
        guest.soon(|| (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(gfn, 0), "page {gfn}")));
        assert_eq!(guest.at_rest().pages.resident, 2048);
        guest.check_no_failure();
    }
}

#[test]
fn what_is_not_zero_is_shown() {
    let guest = Guest::new(&[0..8 * MIB], PagerConfig::default());
    zero_every_fourth(&guest);
    guest.pager.arm().unwrap();
    guest.evict(0..16);
    let mut seen = Vec::new();
    let found = guest.pager.scan().unwrap().show(0..64, false, |gfn, sight| {
        assert_eq!(sight, Sight::Content(&page_of(gfn, 0)));
        seen.push(gfn);
        false
    });
    assert_eq!(found, Found { scanned_pages: 48, freed_pages: 0 });
    assert_eq!(seen, (16..64).filter(|gfn| gfn % 4 != 0).collect::<Vec<_>>());
}

#[test]
fn a_zero_page_that_is_touched_again_is_shown_and_kept_for_a_time() {
    let guest = Guest::new(&[0..8 * MIB], PagerConfig::default());
    zero_every_fourth(&guest);
    guest.pager.arm().unwrap();
    let mut scan = guest.pager.scan().unwrap().sparing();
    assert_eq!(scan.free_zeroes(0..64).freed_pages, 16);
    guest.soon(|| assert_eq!(guest.read(4), [0; PAGE_BYTES]));
    guest.at_rest();
    let mut shown = Vec::new();
    let found = scan.show(0..64, true, |gfn, _| {
        shown.push(gfn);
        false
    });
    assert!(shown.contains(&4), "{shown:?}");
    assert_eq!(found.freed_pages, 0);
    // Elsewhere pages are zero for the first time.
    assert_eq!(scan.free_zeroes(64..128).freed_pages, 16);
}

/// Guests write and devices pin while zero pages are given back: nothing is lost.
#[test]
fn pages_that_change_while_they_are_scanned_are_kept() {
    for method in methods() {
        let guest = Guest::new(&[0..MIB], in_memory(method));
        guest.pager.arm().unwrap();
        let rounds = 300;
        guest.soon(|| {
            thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    for round in 1..=rounds {
                        for gfn in 0..256 {
                            let _pin = (gfn % 16 == 0).then(|| guest.ram.pin(gfn * PAGE_SIZE, PAGE_SIZE).unwrap());
                            guest.write(gfn, &[round as u8; PAGE_BYTES]);
                            assert_eq!(guest.read(gfn), [round as u8; PAGE_BYTES]);
                            guest.write(gfn, &[0; PAGE_BYTES]);
                        }
                        (0..256).step_by(3).for_each(|gfn| guest.write(gfn, &[round as u8; PAGE_BYTES]));
                        (0..256).step_by(3).for_each(|gfn| assert_eq!(guest.read(gfn), [round as u8; PAGE_BYTES]));
                    }
                });
                let mut scan = guest.pager.scan().unwrap();
                let mut freed_pages = 0;
                while !writer.is_finished() {
                    freed_pages += scan.free_zeroes(0..256).freed_pages;
                }
                assert!(freed_pages > 0);
                writer.join().unwrap();
            });
        });
        for gfn in 0..256 {
            let version = if gfn % 3 == 0 { rounds as u8 } else { 0 };
            assert_eq!(guest.read(gfn), [version; PAGE_BYTES], "page {gfn}");
        }
        guest.check_no_failure();
    }
}
