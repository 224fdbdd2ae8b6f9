//! Tests of the swap file on real files of a real disk.

#![allow(clippy::unwrap_used)]

mod faults;
mod host;
mod hostile;
mod model;
mod slots;

use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::fault::Faulty;
use super::folder;
use super::*;

/// A folder on a disk: /tmp may be memory.
fn folder() -> TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

/// A page no other seed gives, and that looks random.
fn page(seed: u64) -> AlignedPage {
    let mut page = AlignedPage::default();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for chunk in page.0.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    page.0[..8].copy_from_slice(&seed.to_le_bytes());
    page
}

fn pages(seeds: Range<u64>) -> Vec<AlignedPage> {
    seeds.map(page).collect()
}

fn references(pages: &[AlignedPage]) -> Vec<&Page> {
    pages.iter().map(|page| &page.0).collect()
}

fn read_one<F: FileIo>(swap: &SwapFile<F>, slot: Slot) -> Result<AlignedPage, SwapError> {
    let mut page = AlignedPage::default();
    swap.read(slot, &mut [&mut page.0])?;
    Ok(page)
}

/// A swap file with faults to order, in its usual mode or buffered.
fn faulty(limit_pages: u64, caching: Caching) -> SwapFile<Faulty> {
    let (file, found) = folder::create(folder().path()).unwrap();
    assert_eq!(found, Caching::Direct, "the tests want a disk that does direct I/O");
    if caching == Caching::Buffered {
        folder::set_direct(&file, false).unwrap();
        folder::refuse_read_ahead(&file);
    }
    SwapFile::over(Faulty::over(file), caching, limit_pages * PAGE_BYTES as u64)
}

#[test]
fn pages_come_back() {
    let swap = SwapFile::open(folder().path(), 64 << 20).unwrap();
    let pages = pages(0..1000);
    let slots = swap.write(&references(&pages)).unwrap();
    for (slot, page) in slots.iter().zip(&pages) {
        assert!(read_one(&swap, *slot).unwrap().0 == page.0);
    }
    let mut back = vec![AlignedPage::default(); 700];
    swap.read(slots[100], &mut back.iter_mut().map(|page| &mut page.0).collect::<Vec<_>>()).unwrap();
    assert!(back.iter().zip(&pages[100..]).all(|(a, b)| a.0 == b.0));
    let statistics = swap.statistics();
    assert_eq!((statistics.pages, statistics.held_bytes), (1000, 1000 * 4096));
    // Clusters: four runs out; a thousand single reads and three runs back.
    assert_eq!((statistics.writes, statistics.reads), (4, 1003));
    assert_eq!((statistics.written_bytes, statistics.read_bytes), (1000 * 4096, 1700 * 4096));
    assert!(statistics.bookkeeping_bytes < 32 << 10);
}

#[test]
fn unaligned_pages_come_back() {
    let swap = SwapFile::open(folder().path(), 1 << 20).unwrap();
    let mut bytes = vec![0; 3 * PAGE_BYTES + 1];
    let start = usize::from(bytes.as_ptr().addr().is_multiple_of(PAGE_BYTES));
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    let (pages, _) = bytes[start..].as_chunks_mut::<PAGE_BYTES>();
    let kept: Vec<Page> = pages.to_vec();
    let slots = swap.write(&pages.iter().collect::<Vec<_>>()).unwrap();
    pages.iter_mut().for_each(|page| page.fill(0));
    swap.read(slots[0], &mut pages.iter_mut().collect::<Vec<_>>()).unwrap();
    assert!(pages == kept);
}

#[test]
fn the_limit_holds_and_freed_slots_are_used_again() {
    let swap = SwapFile::open(folder().path(), 100 * 4096 + 4095).unwrap();
    assert_eq!(swap.statistics().limit_bytes, 100 * 4096);
    let first = pages(0..150);
    let error = swap.write(&references(&first)).unwrap_err();
    assert_eq!((error.written.len(), error.refused), (100, 50));
    assert!(matches!(error.cause, SwapError::Full { limit_bytes: 409_600 }));
    assert!(!swap.statistics().unavailable, "full is no failure");
    for slot in &error.written[10..30] {
        swap.free(*slot).unwrap();
    }
    let second = pages(1000..1020);
    let slots = swap.write(&references(&second)).unwrap();
    for (slot, page) in slots.iter().zip(&second) {
        assert!(read_one(&swap, *slot).unwrap().0 == page.0);
    }
    assert!(read_one(&swap, error.written[9]).unwrap().0 == first[9].0);
    assert_eq!(swap.file.metadata().unwrap().len(), 100 * 4096);
}

#[test]
fn a_slot_that_holds_nothing_is_refused() {
    let swap = SwapFile::open(folder().path(), 1 << 20).unwrap();
    let held = swap.write(&references(&pages(0..3))).unwrap();
    swap.free(held[1]).unwrap();
    assert!(matches!(swap.free(held[1]), Err(SwapError::NotHeld { slot }) if slot == held[1]));
    let mut back = vec![AlignedPage::default(); 3];
    let outcome = swap.read(held[0], &mut back.iter_mut().map(|page| &mut page.0).collect::<Vec<_>>());
    assert!(matches!(outcome, Err(SwapError::NotHeld { slot }) if slot == held[1]));
    for index in [3, 255, 256, 4096, u32::MAX] {
        assert!(matches!(read_one(&swap, Slot::from_index(index)), Err(SwapError::NotHeld { .. })));
        assert!(matches!(swap.free(Slot::from_index(index)), Err(SwapError::NotHeld { .. })));
    }
}

#[test]
fn many_threads_at_once() {
    for caching in [Caching::Direct, Caching::Buffered] {
        let swap = faulty(2000, caching);
        let done = AtomicU64::new(0);
        let rounds = if caching == Caching::Direct { 300 } else { 40 };
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (swap, done) = (&swap, &done);
                scope.spawn(move || {
                    let mut held: Vec<(Slot, u64)> = Vec::new();
                    for round in 0..rounds {
                        let base = (thread << 32) + round * 64;
                        let count = base * 7 % 50 + 1;
                        let slots = swap.write(&references(&pages(base..base + count))).unwrap();
                        held.extend(slots.into_iter().zip(base..));
                        for step in 0..8 {
                            let (slot, seed) = held[(round as usize * 31 + step * 17) % held.len()];
                            assert!(read_one(swap, slot).unwrap().0 == page(seed).0);
                        }
                        while held.len() > 300 {
                            let (slot, seed) = held.swap_remove(round as usize * 13 % held.len());
                            assert!(read_one(swap, slot).unwrap().0 == page(seed).0);
                            swap.free(slot).unwrap();
                        }
                    }
                    for (slot, seed) in held {
                        assert!(read_one(swap, slot).unwrap().0 == page(seed).0);
                        swap.free(slot).unwrap();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            // Holes are punched all the while: into slots just freed, about to be written again.
            scope.spawn(|| {
                while done.load(Ordering::Relaxed) < 4 {
                    swap.punch_holes(1);
                    swap.statistics();
                    std::thread::yield_now();
                }
            });
        });
        swap.punch_holes(1);
        let statistics = swap.statistics();
        assert_eq!((statistics.pages, statistics.reclaimable_bytes, statistics.checksum_errors), (0, 0, 0));
        assert!(statistics.punched_bytes > 0);
    }
}
