//! The page table under loom: every pair of events on one page, from every state at rest, in every interleaving up to a
//! bound on preemptions and with every reordering the orderings allow; and the rounds and triples that matter.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p cistern-memory --profile checked --lib page_table`

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use loom::thread;

use super::host::Host;
use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Read,
    Write,
    Pin,
    Free,
    Evict,
    EvictBusy,
    Copy,
    CopyGivenUp,
    Store,
    FreeZero,
    Scan,
    RefaultFailing,
}

use Event::*;

const EVENTS: [Event; 12] =
    [Read, Write, Pin, Free, Evict, EvictBusy, Copy, CopyGivenUp, Store, FreeZero, Scan, RefaultFailing];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    UnknownAbsent,
    UnknownPresent,
    Untouched,
    Resident,
    Aside,
    AsideZero,
    Compressed,
    Swapped,
}

const STARTS: [Start; 8] = [
    Start::UnknownAbsent,
    Start::UnknownPresent,
    Start::Untouched,
    Start::Resident,
    Start::Aside,
    Start::AsideZero,
    Start::Compressed,
    Start::Swapped,
];

// Versions of the page's content.
const FRESH: u64 = 0;
const OLD: u64 = 7;
const BY_GUEST: u64 = 8;
const BY_DEVICE: u64 = 9;

fn host_at(start: Start) -> Host {
    let host = Host::new(1);
    match start {
        Start::UnknownAbsent => {}
        Start::UnknownPresent => host.populate(0, OLD),
        Start::Untouched => host.free(0),
        Start::AsideZero => {
            host.write(0, FRESH);
            host.evict(0);
        }
        Start::Resident | Start::Aside | Start::Compressed | Start::Swapped => {
            host.write(0, OLD);
            if start != Start::Resident {
                host.evict(0);
            }
            if matches!(start, Start::Compressed | Start::Swapped) {
                host.store(0);
            }
            if start == Start::Swapped {
                host.store(0);
            }
        }
    }
    host
}

fn perform(host: &Host, event: Event, events: &[Event], old: u64) {
    let beside = |event: Event| events.contains(&event);
    match event {
        Read => {
            let seen = host.read(0);
            let possible = seen == old
                || (seen == FRESH && beside(Free))
                || (seen == BY_GUEST && beside(Write))
                || (seen == BY_DEVICE && beside(Pin));
            assert!(possible, "read version {seen} of a page that held {old}");
        }
        Write => {
            host.write(0, BY_GUEST);
            let seen = host.read(0);
            let possible = seen == BY_GUEST || (seen == FRESH && beside(Free)) || (seen == BY_DEVICE && beside(Pin));
            assert!(possible, "read version {seen} after writing {BY_GUEST}");
        }
        Pin => host.pinned_write(0, BY_DEVICE, beside(Free)),
        Free => host.free(0),
        Evict => host.evict(0),
        EvictBusy => host.evict_busy(0),
        Copy => host.copy(0),
        CopyGivenUp => host.copy_given_up(0),
        Store => host.store(0),
        FreeZero => host.free_zero(0),
        Scan => host.scan(0, beside(Free)),
        RefaultFailing => host.refault_failing(0),
    }
}

/// Runs each list of events in a thread of its own, the first in the main one; then nothing may be lost, stale or
/// stuck.
fn explore(start: Start, threads: &'static [&'static [Event]], preemptions: usize) {
    // Printed when the test fails: what to look at.
    println!("{start:?}, {threads:?}");
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let host = Arc::new(host_at(start));
        let events: Arc<Vec<Event>> = Arc::new(threads.concat());
        let old = match start {
            Start::UnknownAbsent | Start::Untouched | Start::AsideZero => FRESH,
            _ => OLD,
        };
        let others: Vec<_> = threads[1..]
            .iter()
            .map(|&list| {
                let (host, events) = (host.clone(), events.clone());
                thread::spawn(move || list.iter().for_each(|&event| perform(&host, event, &events, old)))
            })
            .collect();
        threads[0].iter().for_each(|&event| perform(&host, event, &events, old));
        for other in others {
            other.join().unwrap();
        }
        host.check_at_rest();
        let last = host.read(0);
        let (write, pin, free) = (events.contains(&Write), events.contains(&Pin), events.contains(&Free));
        let possible = (last == BY_GUEST && write)
            || (last == BY_DEVICE && pin)
            || (last == FRESH && free)
            || (last == old && !write && !pin && !free);
        assert!(possible, "{start:?}, {threads:?}: version {last} in the end");
        host.check_at_rest();
    });
}

/// loom wants lists that live for ever; the tests are few.
fn leak(threads: &[&[Event]]) -> &'static [&'static [Event]] {
    let threads: Vec<&'static [Event]> = threads.iter().map(|list| &*list.to_vec().leak()).collect();
    threads.leak()
}

/// Whether an event does anything to a page that starts so, or to what the other makes of it, that others do not do as well.
fn matters(start: Start, event: Event) -> bool {
    match event {
        FreeZero => matches!(start, Start::Aside | Start::AsideZero),
        Scan => matches!(start, Start::Resident | Start::AsideZero),
        _ => true,
    }
}

#[test]
fn every_pair_from_every_state() {
    for start in STARTS {
        for (index, &first) in EVENTS.iter().enumerate() {
            for &second in EVENTS[index..].iter().filter(|&&second| matters(start, first) && matters(start, second)) {
                explore(start, leak(&[&[first], &[second]]), 4);
            }
        }
    }
}

/// A page goes round while another thread does one thing.
#[test]
fn one_event_beside_a_round() {
    for &event in &EVENTS {
        explore(Start::Resident, leak(&[&[event], &[Evict, Store]]), 3);
        explore(Start::Resident, leak(&[&[event], &[Copy, Store]]), 3);
        explore(Start::Compressed, leak(&[&[event], &[Read, Evict]]), 3);
        explore(Start::Compressed, leak(&[&[event], &[Store, Read, Copy]]), 3);
        explore(Start::Aside, leak(&[&[event], &[Free, Write, Evict]]), 3);
    }
}

/// Two threads meet a page that a third is evicting.
#[test]
fn two_events_beside_an_evictor() {
    for (evictor, first, second) in [
        (Evict, Write, Free),
        (Evict, Write, Pin),
        (Evict, Pin, Free),
        (Copy, Write, Free),
        (Copy, Pin, Free),
        (Copy, Write, Evict),
        (Copy, Write, Copy),
        (Copy, Pin, Copy),
        (Copy, Free, Copy),
    ] {
        explore(Start::Resident, leak(&[&[evictor], &[first], &[second]]), 2);
    }
}

/// Two threads meet a page that a third stores, brings in or frees.
#[test]
fn two_events_beside_another_owner() {
    for (start, owner, first, second) in [
        (Start::Aside, Store, Write, Free),
        (Start::Aside, Store, Pin, Free),
        (Start::Aside, Store, Write, Pin),
        (Start::Aside, Store, Read, Read),
        (Start::Compressed, Read, Write, Free),
        (Start::Compressed, Read, Pin, Free),
        (Start::Compressed, Read, Write, Evict),
        (Start::Compressed, RefaultFailing, Write, Pin),
        (Start::Untouched, Write, Pin, Free),
        (Start::Resident, Free, Free, Write),
        (Start::AsideZero, FreeZero, Write, Free),
        (Start::AsideZero, FreeZero, Write, Pin),
        (Start::AsideZero, FreeZero, Read, Evict),
        (Start::Resident, Scan, Evict, Write),
    ] {
        explore(start, leak(&[&[owner], &[first], &[second]]), 2);
    }
}

/// Opening a VM while a page is touched first: refused, or the page is unknown afterwards.
#[test]
fn open_beside_a_first_touch() {
    for touched in [0, 1] {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let host = Arc::new(Host::new(2));
            // With page 0 untouched its part of the table is written before; without, the touch writes it first.
            if touched == 1 {
                host.free(0);
            }
            let other = {
                let host = host.clone();
                thread::spawn(move || assert_eq!(host.read(0), FRESH))
            };
            let opened = host.table.open();
            other.join().unwrap();
            let state = host.table.page(0).unwrap().state;
            match opened {
                Ok(()) => assert_eq!(state, State::Unknown),
                // The touch may have found the VM open for a moment.
                Err(PageTableError::NotHome { gfn: 0, state: State::Refaulting }) => {
                    assert!(matches!(state, State::Resident | State::Unknown), "{state:?}");
                }
                Err(other) => panic!("{other}"),
            }
            host.check_at_rest();
        });
    }
}
