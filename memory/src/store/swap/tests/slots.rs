//! Slot bookkeeping against a plain set.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::slots::{SEGMENT_SLOTS, Slots};

#[derive(Debug, Clone)]
enum Step {
    Allocate(u32),
    Free(usize, u32),
    Punch { min: u32, works: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..300_u32).prop_map(Step::Allocate),
        3 => (any::<usize>(), 1..400_u32).prop_map(|(at, count)| Step::Free(at, count)),
        1 => (1..40_u32, any::<bool>()).prop_map(|(min, works)| Step::Punch { min, works }),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn no_slot_is_given_twice(limit in 1..20_000_u32, steps in steps()) {
        let mut slots = Slots::new(limit);
        let mut model: BTreeMap<u32, u32> = BTreeMap::new();
        let mut next = 0;
        for step in steps {
            match step {
                Step::Allocate(want) => match slots.allocate(want) {
                    None => prop_assert_eq!(model.len() as u32, limit, "refused while slots are free"),
                    Some(run) => {
                        prop_assert!(run.len() <= want as usize && run.end <= limit && !run.is_empty());
                        for slot in run {
                            prop_assert!(model.insert(slot, next).is_none(), "slot {} given twice", slot);
                            slots.set_checksum(slot, next);
                            next += 1;
                        }
                    }
                },
                Step::Free(at, count) => {
                    let from = model.keys().nth(at % model.len().max(1)).copied().unwrap_or(0);
                    for slot in from..from.saturating_add(count).min(limit + 10) {
                        prop_assert_eq!(slots.free(slot), model.remove(&slot).is_some());
                    }
                }
                Step::Punch { min, works } => {
                    for segment in 0..slots.segments() {
                        let runs = slots.reserve_holes(segment, min);
                        // What is being punched is not given out.
                        if let Some(run) = slots.allocate(1) {
                            prop_assert!(runs.iter().all(|hole| !hole.contains(&run.start)));
                            prop_assert!(slots.free(run.start));
                        }
                        for run in runs {
                            prop_assert!(run.len() >= min as usize);
                            prop_assert!(run.clone().all(|slot| !model.contains_key(&slot)));
                            slots.release_hole(run, works);
                        }
                    }
                }
            }
            prop_assert_eq!(slots.held() as usize, model.len());
        }
        for slot in 0..limit + 1 {
            prop_assert_eq!(slots.checksum(slot), model.get(&slot).copied());
        }
        for slot in model.into_keys() {
            slots.free(slot);
        }
        for segment in (0..slots.segments()).rev() {
            for run in slots.reserve_holes(segment, 1) {
                slots.release_hole(run, true);
            }
        }
        // Nothing held, no blocks: no bookkeeping to speak of.
        prop_assert_eq!((slots.segments(), slots.reclaimable()), (0, 0));
        prop_assert!(slots.bookkeeping_bytes() < 2048);
    }
}

#[test]
fn a_fresh_file_is_written_in_a_row() {
    let mut slots = Slots::new(u32::MAX - SEGMENT_SLOTS);
    let mut expected = 0;
    for _ in 0..1000 {
        let run = slots.allocate(64).unwrap();
        assert_eq!((run.start, run.len()), (expected, 64));
        expected = run.end;
    }
    assert!(slots.bookkeeping_bytes() < 64_000 * 5);
}

#[test]
fn holes_between_pages_do_not_make_the_file_grow_without_end() {
    let mut slots = Slots::new(u32::MAX - SEGMENT_SLOTS);
    let mut held: Vec<u32> = Vec::new();
    let mut state = 1_u64;
    for _ in 0..20_000 {
        held.extend(slots.allocate(64).unwrap());
        while held.len() > 10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            assert!(slots.free(held.swap_remove((state >> 33) as usize % held.len())));
        }
    }
    assert!(slots.bookkeeping_bytes() <= 10_064 * 18 + 20_000, "{}", slots.bookkeeping_bytes());
}

#[test]
fn the_last_slot_of_the_largest_file_is_used() {
    let limit = 3 * SEGMENT_SLOTS + 1;
    let mut slots = Slots::new(limit);
    let mut taken = 0;
    while let Some(run) = slots.allocate(100) {
        taken += run.len();
    }
    assert_eq!(taken, limit as usize);
}
