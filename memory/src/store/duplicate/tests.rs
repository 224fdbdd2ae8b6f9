//! The index against plain maps, against floods and against threads.

use std::collections::{BTreeMap, HashMap};

use cistern_probe::content::Kind;
use cistern_probe::random::Generator;
use proptest::prelude::*;

use super::shard::BUCKET_MAX;
use super::*;
use crate::store::samples::page;

/// A hash with a shard and a fingerprint of our choice.
fn hash(shard: u32, fingerprint: u32) -> PageHash {
    PageHash(u128::from(fingerprint) << 64 | u128::from(shard))
}

#[derive(Debug, Clone)]
enum Step {
    Insert(PageHash),
    Acquire(PageHash),
    Retain(prop::sample::Index),
    Release(prop::sample::Index),
    ReleaseWhole(prop::sample::Index),
    Relocate(prop::sample::Index, bool),
}

fn hashes() -> impl Strategy<Value = PageHash> {
    // Few shards, and fingerprints that often share their low bits: the buckets that split and merge.
    (0..2u32, prop_oneof![0..40u32, (0..40u32).prop_map(|high| high << 4 | 5), any::<u32>()])
        .prop_map(|(shard, fingerprint)| hash(shard, fingerprint))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        6 => hashes().prop_map(Step::Insert),
        4 => hashes().prop_map(Step::Acquire),
        2 => index().prop_map(Step::Retain),
        4 => index().prop_map(Step::Release),
        2 => index().prop_map(Step::ReleaseWhole),
        2 => (index(), any::<bool>()).prop_map(|(index, current)| Step::Relocate(index, current)),
    ];
    proptest::collection::vec(step, 1..800)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn it_is_a_map(steps in steps()) {
        let index = DuplicateIndex::new();
        // By number: hash, home, references.
        let mut map: BTreeMap<u32, (PageHash, Home, u64)> = BTreeMap::new();
        let pick = |map: &BTreeMap<u32, _>, at: prop::sample::Index| {
            (!map.is_empty()).then(|| *map.keys().nth(at.index(map.len())).expect("in range"))
        };
        for (home, step) in (0u32..).map(Home::Swapped).zip(steps) {
            match step {
                Step::Insert(hash) => {
                    let share = index.insert(hash, home).unwrap();
                    prop_assert!(map.insert(share.number(), (hash, home, 1)).is_none(), "a name given twice");
                }
                Step::Acquire(hash) => match index.acquire(hash) {
                    Some(found) => {
                        let known = map.get_mut(&found.share.number()).expect("what is found is there");
                        prop_assert_eq!((known.0, known.1), (hash, found.home));
                        known.2 += 1;
                    }
                    None => prop_assert!(map.values().all(|known| known.0 != hash), "not found"),
                },
                Step::Retain(at) => if let Some(number) = pick(&map, at) {
                    let known = map.get_mut(&number).expect("picked");
                    prop_assert_eq!(index.retain(ShareId::from_number(number)), Ok(known.1));
                    known.2 += 1;
                },
                Step::Release(at) => if let Some(number) = pick(&map, at) {
                    let known = map.get_mut(&number).expect("picked");
                    known.2 -= 1;
                    let released = index.release(ShareId::from_number(number));
                    if known.2 > 0 {
                        prop_assert_eq!(released, Ok(Released::Shared));
                    } else {
                        prop_assert_eq!(released, Ok(Released::Last(known.1)));
                        map.remove(&number);
                    }
                },
                Step::ReleaseWhole(at) => if let Some(number) = pick(&map, at) {
                    let share = ShareId::from_number(number);
                    let (_, home, references) = map.remove(&number).expect("picked");
                    for _ in 1..references {
                        prop_assert_eq!(index.release(share), Ok(Released::Shared));
                    }
                    prop_assert_eq!(index.release(share), Ok(Released::Last(home)));
                    prop_assert_eq!(index.release(share), Err(DuplicateError::Missing(share)));
                    prop_assert_eq!(index.home(share), Err(DuplicateError::Missing(share)));
                    prop_assert_eq!(index.retain(share), Err(DuplicateError::Missing(share)));
                },
                Step::Relocate(at, current) => if let Some(number) = pick(&map, at) {
                    let known = map.get_mut(&number).expect("picked");
                    let from = if current { known.1 } else { home };
                    prop_assert_eq!(index.relocate(ShareId::from_number(number), from, home), Ok(current));
                    if current {
                        known.1 = home;
                    }
                },
            }
            let statistics = index.statistics();
            prop_assert_eq!(statistics.contents, map.len() as u64);
            prop_assert_eq!(statistics.references, map.values().map(|known| known.2).sum::<u64>());
        }
        for (&number, known) in &map {
            prop_assert_eq!(index.home(ShareId::from_number(number)), Ok(known.1));
            prop_assert!(index.acquire(known.0).is_some());
        }
    }
}

#[test]
fn memory_follows_the_contents() {
    const CONTENTS: u32 = 300_000;
    let index = DuplicateIndex::new();
    let empty_bytes = index.statistics().held_bytes;
    let mut generator = Generator::new(1);
    let mut shares: Vec<_> = (0..CONTENTS)
        .map(|at| index.insert(hash(generator.next() as u32, generator.next() as u32), Home::Swapped(at)).unwrap())
        .collect();
    let full = index.statistics();
    let each = (full.held_bytes - empty_bytes) as f64 / f64::from(CONTENTS);
    assert!((20.0..22.5).contains(&each), "{each} bytes a content");

    // The last nine tenths go, in any order.
    let kept = shares.len() / 10;
    for last in (kept..shares.len()).rev() {
        let at = kept + generator.below((last - kept + 1) as u64) as usize;
        assert!(matches!(index.release(shares.swap_remove(at)), Ok(Released::Last(_))));
    }
    let each = (index.statistics().held_bytes - empty_bytes) as f64 / kept as f64;
    assert!(each < 30.0, "{each} bytes a content, a tenth of them left");
    for share in shares {
        assert!(matches!(index.release(share), Ok(Released::Last(_))));
    }
    let emptied = index.statistics();
    assert_eq!((emptied.contents, emptied.references), (0, 0));
    assert!(emptied.held_bytes < empty_bytes + 4096, "{} bytes for nothing", emptied.held_bytes - empty_bytes);
}

#[test]
fn a_flood_of_equal_hashes_makes_no_long_chains() {
    let index = DuplicateIndex::new();
    let flood = hash(3, 77);
    let shares: Vec<_> = (0..2000).map(|at| index.insert(flood, Home::Swapped(at)).unwrap()).collect();
    let shard = lock(&index.shards[3]);
    let listed = shares.iter().filter(|share| shard.entries.get(share.slot()).is_some_and(|entry| entry.is_listed()));
    assert_eq!(listed.count(), BUCKET_MAX);
    drop(shard);
    let found = index.acquire(flood).expect("one of them is found");
    assert_eq!(index.release(found.share), Ok(Released::Shared));
    for (at, share) in (0..).zip(shares) {
        assert_eq!(index.release(share), Ok(Released::Last(Home::Swapped(at))));
    }
    assert_eq!(index.acquire(flood), None);
}

#[test]
fn references_end_at_their_limit() {
    let index = DuplicateIndex::new();
    let wanted = hash(0, 1);
    let share = index.insert(wanted, Home::Swapped(9)).unwrap();
    for _ in 1..REFERENCES_MAX {
        index.retain(share).unwrap();
    }
    assert_eq!(index.retain(share), Err(DuplicateError::Referenced(share)));
    assert_eq!(index.acquire(wanted), None, "the page is to be stored once more");
    for _ in 1..REFERENCES_MAX {
        assert_eq!(index.release(share), Ok(Released::Shared));
    }
    assert_eq!(index.release(share), Ok(Released::Last(Home::Swapped(9))));
}

#[test]
fn names_that_were_never_given_are_refused() {
    let index = DuplicateIndex::new();
    for number in [0, 1, 64, u32::MAX] {
        let share = ShareId::from_number(number);
        assert_eq!(index.home(share), Err(DuplicateError::Missing(share)));
        assert_eq!(index.release(share), Err(DuplicateError::Missing(share)));
    }
}

#[test]
fn equal_pages_hash_alike_in_one_index_only() {
    let (one, other) = (DuplicateIndex::new(), DuplicateIndex::new());
    assert_eq!(one.hash(&page(Kind::Dup, 4)), one.hash(&page(Kind::Dup, 4)));
    assert_ne!(one.hash(&page(Kind::Dup, 4)), one.hash(&page(Kind::Dup, 5)));
    assert_ne!(one.hash(&page(Kind::Dup, 4)), other.hash(&page(Kind::Dup, 4)));
}

/// Threads store and drop the same few pages while one moves them about: a content is always where the index says, and
/// goes exactly when the last reference goes.
#[test]
fn contents_live_exactly_as_long_as_their_references() {
    const THREADS: u64 = 3;
    const STEPS: usize = 20_000;
    let index = DuplicateIndex::new();
    let hashes: Vec<_> = (0..40).map(|at| index.hash(&page(Kind::Text, at))).collect();
    // What lies in each slot of an imaginary swap file, and the next free slot.
    let file: Mutex<(HashMap<u32, usize>, u32)> = Mutex::default();
    let write = |content| {
        let (slots, next) = &mut *lock(&file);
        *next += 1;
        slots.insert(*next, content);
        Home::Swapped(*next)
    };
    let free = |home| {
        let Home::Swapped(slot) = home else { panic!("{home:?} was never stored") };
        assert!(lock(&file).0.remove(&slot).is_some(), "slot {slot} is freed twice");
    };
    let check = |home, content| {
        let Home::Swapped(slot) = home else { panic!("{home:?} was never stored") };
        lock(&file).0.get(&slot).is_none_or(|&found| found == content)
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (index, hashes, write, free, check) = (&index, &hashes, &write, &free, &check);
            scope.spawn(move || {
                let mut generator = Generator::new(thread);
                let mut pages: Vec<(ShareId, usize)> = Vec::new();
                for _ in 0..STEPS {
                    if generator.below(2) == 0 || pages.is_empty() {
                        let content = generator.below(hashes.len() as u64) as usize;
                        let share = match index.acquire(hashes[content]) {
                            Some(found) => {
                                assert!(check(found.home, content), "a foreign content");
                                found.share
                            }
                            None => index.insert(hashes[content], write(content)).unwrap(),
                        };
                        pages.push((share, content));
                    } else {
                        let (share, content) = pages.swap_remove(generator.below(pages.len() as u64) as usize);
                        let home = index.retain(share).unwrap();
                        assert!(check(home, content), "a foreign content");
                        // Write it back elsewhere, as another thread may do at the same time.
                        if generator.below(4) == 0 {
                            let to = write(content);
                            free(if index.relocate(share, home, to).unwrap() { home } else { to });
                        }
                        for _ in 0..2 {
                            if let Released::Last(home) = index.release(share).unwrap() {
                                free(home);
                            }
                        }
                    }
                }
                for (share, _) in pages {
                    if let Released::Last(home) = index.release(share).unwrap() {
                        free(home);
                    }
                }
            });
        }
    });
    assert_eq!((index.statistics().contents, index.statistics().references), (0, 0));
    assert_eq!(lock(&file).0.len(), 0, "contents that nobody refers to are left");
}
