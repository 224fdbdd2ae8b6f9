//! Random events against a plain model, threads at full speed, runs, and what the table costs.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;

use super::host::Host;
use super::*;

/// One page as the design describes it, without bits.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    /// Where the content is, also while the page is in flight.
    place: Place,
    /// The transient state, if in flight.
    flight: Option<State>,
    copying: bool,
    wanted: bool,
    discard: bool,
    pins: u32,
}

impl Model {
    fn free_to_go(&self) -> bool {
        self.flight.is_none() && self.place == Place::Resident && !self.copying && self.pins == 0
    }

    fn touch(&mut self) -> RefaultKind {
        match self.flight {
            None if self.place == Place::Resident && !self.copying => RefaultKind::Present,
            None => {
                self.flight = Some(State::Refaulting);
                RefaultKind::Won
            }
            Some(State::Evicting) if self.copying => {
                self.flight = Some(State::Refaulting);
                RefaultKind::Won
            }
            Some(_) => {
                self.wanted = true;
                RefaultKind::Joined
            }
        }
    }

    /// Ends a way out in `place`; says what must follow.
    fn out(&mut self, place: Place) -> &'static str {
        self.place = place;
        if self.discard {
            self.flight = Some(State::Freeing);
            "drop"
        } else if self.wanted {
            self.flight = Some(State::Refaulting);
            "hand back"
        } else {
            self.flight = None;
            "rest"
        }
    }

    /// Ends a way in, in `place`.
    fn home(&mut self, place: Place) -> &'static str {
        self.place = place;
        if self.discard && !self.copying {
            self.flight = Some(State::Freeing);
            return "drop";
        }
        self.flight = None;
        if std::mem::take(&mut self.wanted) { "wake" } else { "rest" }
    }

    fn state(&self) -> State {
        self.flight.unwrap_or(match self.place {
            Place::Unknown => State::Unknown,
            Place::Untouched => State::Untouched,
            Place::Resident => State::Resident,
            Place::Aside => State::Aside,
            Place::Stored(Stored::Zero) => State::Zero,
            Place::Stored(Stored::Duplicate(_)) => State::Duplicate,
            Place::Stored(Stored::Compressed(_)) => State::Compressed,
            Place::Stored(Stored::Swapped(_)) => State::Swapped,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum RefaultKind {
    Won,
    Joined,
    Present,
}

/// The claims in hand; the driver is every owner at once.
#[derive(Default)]
struct Hand {
    evicting: Option<Claim<Evicting>>,
    copying: Option<Claim<Copying>>,
    dropping: Option<Claim<Dropping>>,
    storing: Option<Claim<Storing>>,
    refaulting: Option<Claim<Refaulting>>,
    freeing: Option<Claim<Freeing>>,
}

impl Hand {
    fn out(&mut self, after: AfterOut) -> &'static str {
        match after {
            AfterOut::AtRest => "rest",
            AfterOut::HandBack(claim) => {
                assert!(self.refaulting.replace(claim).is_none());
                "hand back"
            }
            AfterOut::Drop(claim) => {
                assert!(self.freeing.replace(claim).is_none());
                "drop"
            }
        }
    }

    fn home(&mut self, after: AfterIn) -> &'static str {
        match after {
            AfterIn::AtRest { wake: true } => "wake",
            AfterIn::AtRest { wake: false } => "rest",
            AfterIn::Drop(claim) => {
                assert!(self.freeing.replace(claim).is_none());
                "drop"
            }
        }
    }

    fn refault(&mut self, next: RefaultNext) -> RefaultKind {
        match next {
            RefaultNext::Won(claim) => {
                assert!(self.refaulting.replace(claim).is_none());
                RefaultKind::Won
            }
            RefaultNext::Joined => RefaultKind::Joined,
            RefaultNext::Present => RefaultKind::Present,
            RefaultNext::FirstTouch => panic!("a first touch with credit asks for credit"),
        }
    }
}

/// Performs one event on the table and on the model. The number picks the event, `number` a new home's location.
fn step(table: &PageTable, hand: &mut Hand, model: &mut Model, event: u8, number: u64) {
    let gfn = 0;
    let location = Location::new(number).unwrap();
    match event {
        0 => {
            let empty = model.flight.is_none() && matches!(model.place, Place::Unknown | Place::Untouched);
            if empty {
                assert_eq!(table.begin_refault(gfn).unwrap(), RefaultNext::FirstTouch);
            } else {
                assert_eq!(hand.refault(table.begin_refault(gfn).unwrap()), model.touch());
            }
        }
        1 => assert_eq!(hand.refault(table.touch_first(gfn).unwrap()), model.touch()),
        2 => {
            let pinned = model.pins > 0 && model.flight.is_none() && model.place == Place::Resident && !model.copying;
            match table.begin_evict(gfn).unwrap() {
                EvictNext::Won(claim) => {
                    assert!(model.free_to_go());
                    model.flight = Some(State::Evicting);
                    hand.evicting = Some(claim);
                }
                EvictNext::Pinned => assert!(pinned),
                EvictNext::NotResident => assert!(!model.free_to_go() && !pinned),
            }
        }
        3 => match table.begin_copy(gfn).unwrap() {
            CopyNext::Won(claim) => {
                assert!(model.free_to_go());
                (model.flight, model.copying) = (Some(State::Evicting), true);
                hand.copying = Some(claim);
            }
            CopyNext::Pinned | CopyNext::NotResident => assert!(!model.free_to_go()),
        },
        4 => {
            let storable = model.flight.is_none()
                && matches!(
                    model.place,
                    Place::Aside | Place::Stored(Stored::Zero | Stored::Duplicate(_) | Stored::Compressed(_))
                );
            match table.begin_store(gfn).unwrap() {
                StoreNext::Won(claim) => {
                    assert!(storable && model.pins == 0);
                    assert_eq!(claim.kind().from, model.place);
                    model.flight = Some(State::Storing);
                    hand.storing = Some(claim);
                }
                StoreNext::Pinned => assert!(storable && model.pins > 0),
                StoreNext::NotAside => assert!(!storable),
            }
        }
        5 => match table.begin_free(gfn).unwrap() {
            FreeNext::Won(claim) => {
                assert!(model.flight.is_none() && !model.copying);
                assert_eq!(claim.kind().from, model.place);
                model.flight = Some(State::Freeing);
                hand.freeing = Some(claim);
            }
            FreeNext::Nothing => assert!(model.flight.is_none() && model.place == Place::Untouched),
            FreeNext::Deferred => {
                assert!(model.flight.is_some() || model.copying);
                model.discard = true;
            }
        },
        6 => {
            let expected = match (model.flight, model.place) {
                (None, Place::Resident) => "pinned",
                (None, Place::Unknown | Place::Untouched) => "first touch",
                _ if model.touch() == RefaultKind::Won => "bring back",
                _ => "wait",
            };
            model.pins += 1;
            let found = match table.pin(gfn).unwrap() {
                PinNext::Pinned => "pinned",
                PinNext::FirstTouch => "first touch",
                PinNext::BringBack(claim) => {
                    assert!(hand.refaulting.replace(claim).is_none());
                    "bring back"
                }
                PinNext::Wait => "wait",
            };
            assert_eq!(found, expected);
        }
        7 => match table.unpin(gfn) {
            Ok(pins) => {
                model.pins -= 1;
                assert_eq!(pins, model.pins);
            }
            Err(PageTableError::NotPinned { gfn: 0 }) => assert_eq!(model.pins, 0),
            Err(other) => panic!("{other}"),
        },
        8 => {
            if let Some(claim) = hand.evicting.take() {
                let found = hand.out(table.finish_evict(claim, 5).unwrap());
                assert_eq!(found, model.out(Place::Aside));
            }
        }
        9 => {
            if let Some(claim) = hand.evicting.take() {
                let found = hand.home(table.abort_evict(claim).unwrap());
                assert_eq!(found, model.home(Place::Resident));
            }
        }
        10 => {
            if let Some(claim) = hand.copying.take() {
                match table.win_drop(claim).unwrap() {
                    DropNext::Won(claim) => {
                        assert!(model.flight == Some(State::Evicting) && !model.discard);
                        (model.flight, model.copying) = (Some(State::Dropping), false);
                        hand.dropping = Some(claim);
                    }
                    DropNext::Lost(claim) => {
                        assert_ne!(model.flight, Some(State::Evicting));
                        hand.copying = Some(claim);
                    }
                    DropNext::Drop(claim) => {
                        assert!(model.flight == Some(State::Evicting) && model.discard);
                        (model.flight, model.copying) = (Some(State::Freeing), false);
                        assert!(hand.freeing.replace(claim).is_none());
                    }
                }
            }
        }
        11 => {
            if let Some(claim) = hand.copying.take() {
                let found = hand.home(table.abort_copy(claim).unwrap());
                model.copying = false;
                let expected =
                    if model.flight == Some(State::Refaulting) { "rest" } else { model.home(Place::Resident) };
                assert_eq!(found, expected);
            }
        }
        12 => {
            if let Some(claim) = hand.dropping.take() {
                let found = hand.out(table.finish_drop(claim, 5).unwrap());
                assert_eq!(found, model.out(Place::Aside));
            }
        }
        13 => {
            if let Some(claim) = hand.storing.take() {
                assert_eq!(table.is_overtaken(&claim).unwrap(), model.wanted || model.discard);
                let home = match number % 4 {
                    0 => Stored::Zero,
                    1 => Stored::Duplicate(location),
                    2 => Stored::Compressed(location),
                    _ => Stored::Swapped(location),
                };
                let found = hand.out(table.finish_store(claim, home).unwrap());
                assert_eq!(found, model.out(Place::Stored(home)));
            }
        }
        14 => {
            if let Some(claim) = hand.storing.take() {
                let found = hand.out(table.abort_store(claim).unwrap());
                assert_eq!(found, model.out(model.place));
            }
        }
        15 => {
            if let Some(claim) = hand.refaulting.take() {
                assert_eq!(claim.kind().from, model.place);
                let found = hand.home(table.finish_refault(claim, 6).unwrap());
                assert_eq!(found, model.home(Place::Resident));
            }
        }
        16 => {
            if let Some(claim) = hand.refaulting.take() {
                let found = hand.home(table.abort_refault(claim).unwrap());
                assert_eq!(found, model.home(model.place));
            }
        }
        _ => {
            if let Some(claim) = hand.freeing.take() {
                assert_eq!(claim.kind().from, model.place);
                let freed = table.finish_free(claim).unwrap();
                assert_eq!(freed, Freed { acknowledge: model.discard, wake: model.wanted });
                (model.discard, model.wanted, model.flight, model.place) = (false, false, None, Place::Untouched);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_events_agree_with_a_plain_model(events in prop::collection::vec((0_u8..18, 0_u64..1 << 44), 1..200)) {
        let table = PageTable::new(1).unwrap();
        table.arm();
        let mut hand = Hand::default();
        let mut model = Model {
            place: Place::Unknown, flight: None, copying: false, wanted: false, discard: false, pins: 0,
        };
        for (event, number) in events {
            step(&table, &mut hand, &mut model, event, number);
            let page = table.page(0).unwrap();
            prop_assert_eq!(
                (page.state, page.copying, page.wanted, page.discard, page.pins),
                (model.state(), model.copying, model.wanted, model.discard, model.pins)
            );
            for state in State::ALL {
                prop_assert_eq!(table.count(state), u64::from(state == page.state));
            }
        }
    }
}

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
                    match random(9) {
                        0 | 1 => host.evict(gfn),
                        2 | 3 => host.copy(gfn),
                        4 | 5 => host.store(gfn),
                        6 => host.evict_busy(gfn),
                        7 => host.copy_given_up(gfn),
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
