//! Random events on one page, against the page life cycle written down without bits.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

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
        17 => {
            if let Some(claim) = hand.storing.take() {
                let claim = table.free_instead(claim).unwrap();
                assert_eq!(claim.kind().from, model.place);
                model.flight = Some(State::Freeing);
                assert!(hand.freeing.replace(claim).is_none());
            }
        }
        18 => {
            let scanned = table.pin_resident(gfn).unwrap();
            assert_eq!(scanned, model.flight.is_none() && model.place == Place::Resident && model.pins == 0);
            model.pins += u32::from(scanned);
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
    fn random_events_agree_with_a_plain_model(events in prop::collection::vec((0_u8..20, 0_u64..1 << 44), 1..200)) {
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
