//! Threads at full speed, runs, bad requests, and what the table costs.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::host::Host;
use super::*;

/// Real threads on a few pages: each page has one guest that knows what it must read; the others push pages around.
#[test]
fn threads_at_full_speed_lose_nothing() {
    const PAGES: u64 = 4;
    const ROUNDS: u64 = 40_000;
    let host = Host::new(PAGES);
    // Present before the VM was armed, not yet classified.
    host.populate(PAGES - 1, 0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let guests: Vec<_> = (0..2)
            .map(|guest| {
                let host = &host;
                scope.spawn(move || {
                    let mut random = fastrand(guest);
                    let mut expected = [0; PAGES as usize];
                    for round in 0..ROUNDS {
                        let gfn = random(PAGES / 2) * 2 + guest;
                        let page = &mut expected[gfn as usize];
                        match random(8) {
                            0 => {
                                host.free(gfn);
                                *page = 0;
                            }
                            1..4 => {
                                host.write(gfn, round + 1);
                                *page = round + 1;
                            }
                            4 => {
                                host.pinned_write(gfn, round + 1, false);
                                *page = round + 1;
                            }
                            _ => assert_eq!(host.read(gfn), *page, "page {gfn}, round {round}"),
                        }
                    }
                })
            })
            .collect();
        for worker in 0..2 {
            let (host, stop) = (&host, &stop);
            scope.spawn(move || {
                let mut random = fastrand(worker + 2);
                while !stop.load(Ordering::Relaxed) {
                    let gfn = random(PAGES);
                    match random(11) {
                        0 | 1 => host.evict(gfn),
                        2 | 3 => host.copy(gfn),
                        4 | 5 => host.store(gfn),
                        6 => host.evict_busy(gfn),
                        7 => host.copy_given_up(gfn),
                        8 => host.free_zero(gfn),
                        // The guests free pages under the reader.
                        9 => host.scan(gfn, true),
                        _ => host.refault_failing(gfn),
                    }
                }
            });
        }
        let results: Vec<_> = guests.into_iter().map(|guest| guest.join()).collect();
        stop.store(true, Ordering::Relaxed);
        for result in results {
            result.expect("a guest read what it did not write");
        }
    });
    host.check_at_rest();
}

/// Random numbers below a bound (xorshift), the same in every run.
fn fastrand(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (seed + 1);
    move |bound| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % bound
    }
}

fn make_resident(table: &PageTable, gfns: Range<u64>) {
    for run in table.touch_first_run(gfns).unwrap() {
        for claim in run {
            assert_eq!(table.finish_refault(claim, 1).unwrap(), AfterIn::AtRest { wake: false });
        }
    }
}

#[test]
fn runs_break_at_what_cannot_be_won() {
    let table = PageTable::new(4096).unwrap();
    table.arm();
    make_resident(&table, 100..200);
    assert_eq!(table.pin(150).unwrap(), PinNext::Pinned);
    let mut runs: Vec<_> = table.begin_evict_run(0..4096).unwrap().collect();
    assert_eq!(runs.iter().map(Run::gfns).collect::<Vec<_>>(), [100..150, 151..200]);
    // The call moved ten pages of the first run and failed on the rest.
    let second = runs.pop().unwrap();
    let mut first = runs.pop().unwrap();
    let rest = first.split_off(10);
    assert_eq!((first.pages(), rest.pages()), (10, 40));
    for claim in first.chain(second) {
        assert_eq!(table.finish_evict(claim, 2).unwrap(), AfterOut::AtRest);
    }
    for claim in rest {
        assert_eq!(table.abort_evict(claim).unwrap(), AfterIn::AtRest { wake: false });
    }
    assert_eq!((table.count(State::Aside), table.count(State::Resident)), (59, 41));
    assert_eq!(table.count(State::Unknown), 4096 - 100);

    // Stored in two kinds: runs of refaults and of frees are of one kind each.
    for run in table.begin_store_run(100..110).unwrap() {
        for claim in run {
            let home = if claim.gfn() < 105 { Stored::Zero } else { Stored::Swapped(Location::new(9).unwrap()) };
            assert_eq!(table.finish_store(claim, home).unwrap(), AfterOut::AtRest);
        }
    }
    let runs: Vec<_> = table.begin_refault_run(96..112).unwrap().collect();
    assert_eq!(runs.iter().map(Run::gfns).collect::<Vec<_>>(), [100..105, 105..110]);
    for claim in runs.into_iter().flatten() {
        assert_eq!(table.abort_refault(claim).unwrap(), AfterIn::AtRest { wake: false });
    }
    let runs: Vec<_> = table.begin_free_run(100..160).unwrap().collect();
    assert_eq!(runs.iter().map(Run::gfns).collect::<Vec<_>>(), [100..105, 105..110, 110..151, 151..160]);
    for claim in runs.into_iter().flatten() {
        let _ = table.finish_free(claim).unwrap();
    }
    assert_eq!(table.count(State::Untouched), 60);
    assert_eq!(table.begin_free_run(100..160).unwrap().count(), 0);
}

#[test]
fn lazy_runs_claim_only_what_is_taken() {
    let table = PageTable::new(64).unwrap();
    table.arm();
    make_resident(&table, 0..8);
    make_resident(&table, 16..24);
    let run = table.begin_evict_run(0..64).unwrap().next().unwrap();
    assert_eq!(run.gfns(), 0..8);
    assert_eq!((table.count(State::Evicting), table.count(State::Resident)), (8, 8));
    run.for_each(|claim| assert_eq!(table.abort_evict(claim).unwrap(), AfterIn::AtRest { wake: false }));
}

#[test]
fn bad_requests_are_errors() {
    let table = PageTable::new(4).unwrap();
    table.arm();
    assert!(matches!(table.begin_evict(4), Err(PageTableError::OutOfRange { gfn: 4, pages: 4 })));
    assert!(matches!(table.page(u64::MAX), Err(PageTableError::OutOfRange { .. })));
    assert!(matches!(table.scan(0..5).err(), Some(PageTableError::OutOfRange { gfn: 4, .. })));
    assert!(matches!(PageTable::new(u64::MAX), Err(PageTableError::Map { .. })));
    assert!(matches!(PageTable::new(0), Err(PageTableError::Map { .. })));
    for _ in 0..PINS_MAX {
        assert_eq!(table.pin(0).unwrap(), PinNext::FirstTouch);
    }
    assert!(matches!(table.pin(0), Err(PageTableError::TooManyPins { gfn: 0 })));
    assert_eq!(table.page(0).unwrap().pins, PINS_MAX);

    // A claim of another table.
    let other = PageTable::new(4).unwrap();
    let RefaultNext::Won(claim) = table.touch_first(1).unwrap() else { panic!("page 1 is unknown") };
    assert!(matches!(
        other.finish_refault(claim, 0),
        Err(PageTableError::Unexpected { gfn: 1, event: "finish_refault", state: State::Unknown })
    ));
}

#[test]
fn opening_forgets_and_refuses_while_a_page_is_out() {
    let table = PageTable::new(1000).unwrap();
    table.arm();
    assert_eq!(table.mark_present(10..20, 3).unwrap(), 10);
    assert_eq!(table.mark_present(15..25, 4).unwrap(), 5);
    assert_eq!(table.page(15).unwrap().stamp, Some(3));
    assert_eq!(table.pin(12).unwrap(), PinNext::Pinned);
    let EvictNext::Won(claim) = table.begin_evict(20).unwrap() else { panic!("page 20 is resident") };
    assert!(matches!(table.open(), Err(PageTableError::NotHome { gfn: 20, state: State::Evicting })));
    assert!(table.is_armed());
    assert_eq!(table.abort_evict(claim).unwrap(), AfterIn::AtRest { wake: false });
    table.open().unwrap();
    assert!(!table.is_armed());
    assert_eq!(table.count(State::Unknown), 1000);
    // Only the pin is remembered, and what is freed or touched now stays unknown.
    let known: Vec<_> = table.scan(0..1000).unwrap().map(|(gfn, page)| (gfn, page.state, page.pins)).collect();
    assert_eq!(known, [(12, State::Unknown, 1)]);
    let FreeNext::Won(claim) = table.begin_free(30).unwrap() else { panic!("page 30 is unknown") };
    assert_eq!(table.finish_free(claim).unwrap(), Freed { acknowledge: false, wake: false });
    assert_eq!(table.count(State::Unknown), 1000);
}

/// Anonymous memory of this process between two addresses, in bytes.
fn resident_bytes(range: std::ops::Range<usize>) -> usize {
    let pages = (range.end - range.start) / 4096;
    let mut present = vec![0_u8; pages];
    // SAFETY: the range is a mapping of the table under test; the vector has a byte for each of its pages.
    let result =
        unsafe { libc::mincore(range.start as *mut libc::c_void, range.end - range.start, present.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    present.iter().filter(|&&byte| byte & 1 != 0).count() * 4096
}

#[test]
fn table_memory_that_was_never_written_costs_nothing() {
    // A guest of 16 GiB: a table of 32 MiB.
    const PAGES: u64 = 4 << 20;
    let table = PageTable::new(PAGES).unwrap();
    table.arm();
    let memory = table.words.addresses();
    assert_eq!(resident_bytes(memory.clone()), 0);
    make_resident(&table, 1_000_000..1_000_064);
    make_resident(&table, 3_000_000..3_000_001);
    let few = 3 * 4096;
    assert!(resident_bytes(memory.clone()) <= few, "{} bytes", resident_bytes(memory.clone()));
    assert_eq!(table.scan(0..PAGES).unwrap().count(), 65);
    for claim in table.begin_evict_run(0..PAGES).unwrap().flatten() {
        assert_eq!(table.abort_evict(claim).unwrap(), AfterIn::AtRest { wake: false });
    }
    assert_eq!(table.begin_refault_run(0..PAGES).unwrap().count(), 0);
    table.open().unwrap();
    assert_eq!(table.count(State::Unknown), PAGES);
    assert!(resident_bytes(memory.clone()) <= few, "{} bytes", resident_bytes(memory));
}
