//! The swap file against a plain map, with faults in between.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::fault::Fault;
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Write { count: u64, faults: Vec<Fault>, sync: Option<i32> },
    Read { at: usize, count: usize, faults: Vec<Fault> },
    Free { at: usize, count: u32 },
    Punch { min: u32, fault: Option<i32> },
    Retry,
}

fn write_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        1 => Just(Fault::Errno(libc::ENOSPC)),
        1 => Just(Fault::Errno(libc::EIO)),
        2 => Just(Fault::Errno(libc::EINTR)),
        3 => (0..40_000_usize).prop_map(Fault::Short),
        3 => Just(Fault::None),
    ]
}

fn read_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        1 => Just(Fault::Errno(libc::EIO)),
        1 => Just(Fault::Errno(libc::EINTR)),
        2 => (0..40_000_usize).prop_map(Fault::Short),
        2 => any::<usize>().prop_map(Fault::Flip),
        3 => Just(Fault::None),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let few = |fault: BoxedStrategy<Fault>| prop::collection::vec(fault, 0..4);
    let step = prop_oneof![
        4 => (1..80_u64, few(write_fault().boxed()), prop::option::weighted(0.1, Just(libc::EIO)))
            .prop_map(|(count, faults, sync)| Step::Write { count, faults, sync }),
        4 => (any::<usize>(), 1..80_usize, few(read_fault().boxed()))
            .prop_map(|(at, count, faults)| Step::Read { at, count, faults }),
        2 => (any::<usize>(), 1..60_u32).prop_map(|(at, count)| Step::Free { at, count }),
        1 => (1..20_u32, prop::option::weighted(0.3, Just(libc::EOPNOTSUPP)))
            .prop_map(|(min, fault)| Step::Punch { min, fault }),
        2 => Just(Step::Retry),
    ];
    prop::collection::vec(step, 1..60)
}

fn run(caching: Caching, limit: u64, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let swap = faulty(limit, caching);
    let mut model: BTreeMap<Slot, u64> = BTreeMap::new();
    let mut next = 0;
    for step in steps {
        match step {
            Step::Write { count, faults, sync } => {
                let room = limit - model.len() as u64;
                let was_unavailable = swap.statistics().unavailable;
                lock(&swap.file.writes).extend(faults);
                lock(&swap.file.syncs).extend(sync.map(Fault::Errno));
                let given = pages(next..next + count);
                let written = match swap.write(&references(&given)) {
                    Ok(slots) => {
                        prop_assert!(!was_unavailable && count <= room);
                        prop_assert_eq!(slots.len() as u64, count);
                        slots
                    }
                    Err(error) => {
                        prop_assert_eq!(error.written.len() + error.refused, given.len());
                        match error.cause {
                            SwapError::Full { .. } => prop_assert_eq!(error.written.len() as u64, room),
                            SwapError::Unavailable => prop_assert!(was_unavailable && error.written.is_empty()),
                            SwapError::Write { .. } => prop_assert!(swap.statistics().unavailable),
                            other => return Err(TestCaseError::fail(format!("{other}"))),
                        }
                        error.written
                    }
                };
                for (slot, seed) in written.into_iter().zip(next..) {
                    prop_assert!(model.insert(slot, seed).is_none());
                }
                next += count;
            }
            Step::Read { at, count, faults } if !model.is_empty() => {
                let first = *model.keys().nth(at % model.len()).unwrap();
                let run: Vec<u64> =
                    (first.index()..).map_while(|slot| model.get(&Slot(slot)).copied()).take(count).collect();
                lock(&swap.file.reads).extend(faults);
                let mut back = vec![AlignedPage::default(); run.len()];
                let outcome = swap.read(first, &mut back.iter_mut().map(|page| &mut page.0).collect::<Vec<_>>());
                match outcome {
                    Ok(()) => prop_assert!(back.iter().zip(&run).all(|(back, seed)| back.0 == page(*seed).0)),
                    Err(SwapError::Read { .. } | SwapError::Checksum { .. }) => {}
                    Err(other) => return Err(TestCaseError::fail(format!("{other}"))),
                }
            }
            Step::Read { .. } => {}
            Step::Free { at, count } => {
                let from = model.keys().nth(at % model.len().max(1)).map_or(0, |slot| slot.index());
                for slot in from..from + count {
                    prop_assert_eq!(swap.free(Slot(slot)).is_ok(), model.remove(&Slot(slot)).is_some());
                }
            }
            Step::Punch { min, fault } => {
                lock(&swap.file.holes).extend(fault.map(Fault::Errno));
                swap.punch_holes(min);
            }
            Step::Retry => swap.retry(),
        }
        for queue in [&swap.file.writes, &swap.file.reads, &swap.file.syncs, &swap.file.holes] {
            lock(queue).clear();
        }
        prop_assert_eq!(swap.statistics().pages, model.len() as u64);
    }
    // Whatever went wrong, what was said to be written is there.
    for (slot, seed) in model {
        prop_assert!(read_one(&swap, slot).is_ok_and(|back| back.0 == page(seed).0));
        swap.free(slot).unwrap();
    }
    swap.punch_holes(1);
    prop_assert_eq!(swap.statistics().reclaimable_bytes, 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn direct(limit in 1..400_u64, steps in steps()) {
        run(Caching::Direct, limit, steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn buffered(limit in 1..400_u64, steps in steps()) {
        run(Caching::Buffered, limit, steps)?;
    }
}
