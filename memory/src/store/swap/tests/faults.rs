//! Each fault once, by name.

use super::super::fault::Fault;
use super::*;

#[test]
fn a_failed_write_loses_nothing_and_waits_for_a_retry() {
    let cases = [
        (Fault::Errno(libc::ENOSPC), libc::ENOSPC),
        (Fault::Errno(libc::EIO), libc::EIO),
        (Fault::Errno(libc::EDQUOT), libc::EDQUOT),
        (Fault::Errno(libc::EFBIG), libc::EFBIG),
    ];
    for (fault, errno) in cases {
        let swap = faulty(1000, Caching::Direct);
        let kept = pages(0..10);
        let slots = swap.write(&references(&kept)).unwrap();
        // The first run of 256 goes well, the second ends after 100 of its pages.
        lock(&swap.file.writes).extend([Fault::None, Fault::Short(100 * PAGE_BYTES), fault]);
        let more = pages(100..700);
        let error = swap.write(&references(&more)).unwrap_err();
        assert_eq!((error.written.len(), error.refused), (256, 344));
        assert!(
            matches!(&error.cause, SwapError::Write { pages: 256, cause, .. } if cause.raw_os_error() == Some(errno))
        );
        assert_eq!(swap.statistics().pages, 266, "the refused pages take up slots");
        assert!(matches!(swap.write(&references(&kept)).unwrap_err().cause, SwapError::Unavailable));
        assert_eq!(swap.statistics().write_errors, 1, "the disk was tried again unasked");
        for (slot, page) in slots.iter().chain(&error.written).zip(kept.iter().chain(&more)) {
            assert!(read_one(&swap, *slot).unwrap().0 == page.0);
        }
        swap.retry();
        let rest = swap.write(&references(&more[256..])).unwrap();
        for (slot, page) in rest.iter().zip(&more[256..]) {
            assert!(read_one(&swap, *slot).unwrap().0 == page.0);
        }
    }
}

#[test]
fn interrupted_and_short_calls_are_continued() {
    let swap = faulty(1000, Caching::Direct);
    let kept = pages(0..64);
    let interrupted = [Fault::Errno(libc::EINTR); 50];
    lock(&swap.file.writes).extend(interrupted);
    lock(&swap.file.writes).extend([Fault::Short(PAGE_BYTES), Fault::Short(3 * PAGE_BYTES + 512)]);
    let slots = swap.write(&references(&kept)).unwrap();
    lock(&swap.file.reads).extend(interrupted);
    lock(&swap.file.reads).extend([Fault::Short(5 * PAGE_BYTES + 1), Fault::Short(PAGE_BYTES)]);
    let mut back = vec![AlignedPage::default(); 64];
    swap.read(slots[0], &mut back.iter_mut().map(|page| &mut page.0).collect::<Vec<_>>()).unwrap();
    assert!(back.iter().zip(&kept).all(|(back, kept)| back.0 == kept.0));
    assert!(lock(&swap.file.reads).is_empty() && lock(&swap.file.writes).is_empty());
}

#[test]
fn calls_that_do_nothing_end() {
    let swap = faulty(1000, Caching::Direct);
    let slots = swap.write(&references(&pages(0..4))).unwrap();
    for bytes in [0, 1, PAGE_BYTES - 1] {
        swap.retry();
        lock(&swap.file.writes).push_back(Fault::Short(bytes));
        assert!(matches!(swap.write(&references(&pages(0..4))).unwrap_err().cause, SwapError::Write { .. }));
        lock(&swap.file.reads).extend([Fault::Short(bytes); READ_ATTEMPTS]);
        assert!(matches!(read_one(&swap, slots[0]), Err(SwapError::Read { pages: 1, .. })));
    }
}

#[test]
fn a_read_is_tried_again_once() {
    let swap = faulty(1000, Caching::Direct);
    let slots = swap.write(&references(&pages(7..8))).unwrap();
    for fault in [Fault::Errno(libc::EIO), Fault::Short(0), Fault::Flip(12_345)] {
        lock(&swap.file.reads).push_back(fault);
        assert!(read_one(&swap, slots[0]).unwrap().0 == page(7).0);
        lock(&swap.file.reads).extend([fault; READ_ATTEMPTS]);
        assert!(matches!(read_one(&swap, slots[0]), Err(SwapError::Read { .. } | SwapError::Checksum { .. })));
    }
    let statistics = swap.statistics();
    assert_eq!((statistics.read_errors, statistics.checksum_errors, statistics.reads), (6, 3, 3));
    assert!(!statistics.unavailable, "a failed read says nothing about writes");
}

#[test]
fn a_failed_write_back_is_a_failed_write() {
    let swap = faulty(1000, Caching::Buffered);
    lock(&swap.file.syncs).extend([Fault::None, Fault::Errno(libc::EIO)]);
    let error = swap.write(&references(&pages(0..300))).unwrap_err();
    assert_eq!((error.written.len(), error.refused, swap.statistics().pages), (256, 44, 256));
    assert!(swap.statistics().unavailable);
}

#[test]
fn a_refused_hole_is_tried_again() {
    let swap = faulty(1000, Caching::Direct);
    for slot in swap.write(&references(&pages(0..100))).unwrap() {
        swap.free(slot).unwrap();
    }
    lock(&swap.file.holes).push_back(Fault::Errno(libc::EOPNOTSUPP));
    assert_eq!(swap.punch_holes(1), 0);
    assert_eq!((swap.statistics().hole_errors, swap.statistics().reclaimable_bytes), (1, 100 * 4096));
    assert_eq!(swap.punch_holes(101), 0);
    assert_eq!(swap.punch_holes(100), 100 * 4096);
    assert_eq!((swap.statistics().punched_bytes, swap.statistics().reclaimable_bytes), (100 * 4096, 0));
}

#[test]
fn every_flipped_bit_is_found() {
    for (slot, mut page) in [(0, AlignedPage::default()), (1, page(1)), (u32::MAX - 1, page(2))] {
        let good = checksum(slot, &page.0);
        for bit in 0..PAGE_BYTES * 8 {
            page.0[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(slot, &page.0), good, "slot {slot}, bit {bit}");
            page.0[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_page_in_the_wrong_place_is_found() {
    let swap = faulty(1000, Caching::Direct);
    let pages = [page(1), page(1)];
    let slots = swap.write(&references(&pages)).unwrap();
    assert_ne!(checksum(slots[0].index(), &pages[0].0), checksum(slots[1].index(), &pages[1].0));
}
