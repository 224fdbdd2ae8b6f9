//! The store against a plain map, against the kernel's idea of its memory, against threads and against damage.

use std::collections::BTreeMap;

use cistern_probe::content::Kind;
use cistern_probe::random::Generator;
use proptest::prelude::*;

use super::*;
use crate::store::codec::{Codec, Compressor};
use crate::store::samples::{page, page_of_entropy};

const MIB: u64 = 1 << 20;
const PAGE: u64 = PAGE_BYTES as u64;

/// Stores a page with the codec that takes anything.
fn insert(store: &CompressedStore, page: &Page, owner: u32, now_seconds: u64) -> Result<Handle, StoreError> {
    let mut compressor = Compressor::new(Codec::Lz4, PAGE_BYTES).unwrap();
    let block =
        compressor.compress(page).unwrap_or(Block { codec: Codec::None, bytes: page, checksum: checksum(page) });
    store.insert(&block, owner, now_seconds)
}

fn read(store: &CompressedStore, handle: Handle) -> Result<Page, StoreError> {
    let mut page = [0xaa; PAGE_BYTES];
    store.read(handle, &mut Decompressor::new(), &mut page).map(|()| page)
}

/// What the kernel says the store's memory takes.
fn resident_bytes(store: &CompressedStore) -> u64 {
    let mut resident = 0;
    for (start, bytes) in store.arenas.mappings() {
        let mut pages = vec![0u8; bytes / PAGE_BYTES];
        // SAFETY: the range is a mapping of the store, and the vector has a byte for each of its pages.
        let result = unsafe { libc::mincore(start.cast_mut().cast(), bytes, pages.as_mut_ptr()) };
        assert_eq!(result, 0, "mincore: {}", io::Error::last_os_error());
        resident += pages.iter().filter(|&&page| page & 1 != 0).count() as u64 * PAGE;
    }
    resident
}

fn slabs_in_use(store: &CompressedStore) -> Vec<u32> {
    lock(&store.lists).in_order.values().copied().collect()
}

/// The bound that the top of the module states.
fn assert_bounded(store: &CompressedStore) {
    let open = lock(&store.open).as_ref().map(|open| open.number);
    for number in slabs_in_use(store) {
        let (live_bytes, held_bytes, _) = store.known_slab(number).usage();
        let bound = live_bytes * 8 / 7 + (4 + 3) * PAGE;
        assert!(held_bytes <= bound, "slab {number} holds {held_bytes} bytes for {live_bytes}, open: {open:?}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert { entropy_bytes: usize },
    Read(prop::sample::Index),
    Remove(prop::sample::Index),
    RemoveMany(prop::sample::Index),
    Tidy,
    SetLimit { pages: u64 },
    Oldest { count: usize },
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => prop_oneof![0..300usize, 300..2100usize, 0..=PAGE_BYTES]
            .prop_map(|entropy_bytes| Step::Insert { entropy_bytes }),
        4 => any::<prop::sample::Index>().prop_map(Step::Read),
        6 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => any::<prop::sample::Index>().prop_map(Step::RemoveMany),
        1 => Just(Step::Tidy),
        1 => (0..600u64).prop_map(|pages| Step::SetLimit { pages }),
        1 => (1..20usize).prop_map(|count| Step::Oldest { count }),
        1 => Just(Step::Wait),
    ];
    proptest::collection::vec(step, 1..600)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_is_a_map(steps in steps()) {
        let store = CompressedStore::new(8 * MIB);
        // By order of insertion: handle, page, when.
        let mut map: BTreeMap<u32, (Handle, Page, u64)> = BTreeMap::new();
        let (mut now_seconds, mut limit_bytes) = (100, 8 * MIB);
        let pick = |map: &BTreeMap<u32, _>, index: prop::sample::Index| {
            (!map.is_empty()).then(|| *map.keys().nth(index.index(map.len())).expect("in range"))
        };
        for (owner, step) in (0u32..).zip(steps) {
            let held_before = store.statistics().held_bytes;
            match step {
                Step::Insert { entropy_bytes } => {
                    let page = page_of_entropy(entropy_bytes, u64::from(owner));
                    match insert(&store, &page, owner, now_seconds) {
                        Ok(handle) => {
                            map.insert(owner, (handle, page, now_seconds));
                            let held_bytes = store.statistics().held_bytes;
                            prop_assert!(held_bytes <= limit_bytes.max(held_before), "{held_bytes} over the limit");
                        }
                        Err(StoreError::Full { .. }) => prop_assert!(held_before + 6 * PAGE > limit_bytes),
                        Err(error) => prop_assert!(false, "{error}"),
                    }
                }
                Step::Read(index) => if let Some(owner) = pick(&map, index) {
                    let (handle, page, _) = &map[&owner];
                    prop_assert_eq!(&read(&store, *handle).unwrap(), page);
                },
                Step::Remove(index) => if let Some(owner) = pick(&map, index) {
                    let (handle, ..) = map.remove(&owner).expect("picked");
                    store.remove(handle).unwrap();
                    prop_assert!(matches!(store.remove(handle), Err(StoreError::Missing(_))));
                    prop_assert!(matches!(read(&store, handle), Err(StoreError::Missing(_))));
                },
                Step::RemoveMany(index) => if let Some(first) = pick(&map, index) {
                    let rest = map.split_off(&first);
                    for (at, (owner, kept)) in rest.into_iter().enumerate() {
                        if at % 16 == 15 {
                            map.insert(owner, kept);
                        } else {
                            store.remove(kept.0).unwrap();
                        }
                    }
                },
                Step::Tidy => {
                    store.tidy(usize::MAX);
                    assert_bounded(&store);
                }
                Step::SetLimit { pages } => {
                    limit_bytes = pages * PAGE;
                    store.set_limit_bytes(limit_bytes);
                }
                Step::Oldest { count } => {
                    let cutoff = now_seconds - 3;
                    for (by, found) in [(u64::MAX, store.oldest(count, u64::MAX)), (cutoff, store.oldest(count, cutoff))] {
                        let expected: Vec<_> = map.iter().filter(|(_, kept)| kept.2 <= by).take(count)
                            .map(|(&owner, kept)| OldBlock { handle: kept.0, owner, inserted_seconds: kept.2 })
                            .collect();
                        prop_assert_eq!(found, expected);
                    }
                }
                Step::Wait => now_seconds += 1,
            }
            let statistics = store.statistics();
            prop_assert_eq!(statistics.pages, map.len() as u64);
            prop_assert_eq!(statistics.bytes_in, map.len() as u64 * PAGE);
        }
        prop_assert_eq!(resident_bytes(&store), store.statistics().held_bytes);
        for (handle, page, _) in map.values() {
            prop_assert_eq!(&read(&store, *handle).unwrap(), page);
        }
        for (handle, ..) in map.values() {
            store.remove(*handle).unwrap();
        }
        store.tidy(usize::MAX);
        prop_assert_eq!(store.statistics(), CompressedStatistics { limit_bytes, ..Default::default() });
        prop_assert_eq!(resident_bytes(&store), 0);
    }
}

#[test]
fn text_is_held_closely_and_sparse_slabs_shrink() {
    let store = CompressedStore::new(64 * MIB);
    let handles: Vec<_> = (0..4000).map(|at| insert(&store, &page(Kind::Text, at), at, 0).unwrap()).collect();
    let full = store.statistics();
    let overhead = full.held_bytes as f64 / full.compressed_bytes as f64;
    assert!(overhead < 1.03, "{overhead} bytes held for each stored");
    assert_eq!(resident_bytes(&store), full.held_bytes);

    // Every tenth page survives: the worst order for a store that could not close holes.
    for (_, handle) in handles.iter().enumerate().filter(|(at, _)| at % 10 != 0) {
        store.remove(*handle).unwrap();
    }
    let released_bytes = store.tidy(usize::MAX);
    let sparse = store.statistics();
    assert_eq!(released_bytes, full.held_bytes - sparse.held_bytes);
    assert_eq!(resident_bytes(&store), sparse.held_bytes);
    let overhead = sparse.held_bytes as f64 / sparse.compressed_bytes as f64;
    assert!(overhead < 1.45, "{overhead} bytes held for each stored, a tenth of the pages left");
    assert_bounded(&store);
    for (at, handle) in handles.iter().enumerate().step_by(10) {
        assert_eq!(read(&store, *handle).unwrap(), page(Kind::Text, at as u32), "page {at}");
    }
}

#[test]
fn the_limit_holds_and_old_blocks_make_room() {
    let store = CompressedStore::new(2 * MIB);
    let (mut stored, mut written_back) = (0, 0);
    for at in 0..4000 {
        let content = page(Kind::Text, at);
        while let Err(error) = insert(&store, &content, at, u64::from(at)) {
            assert!(matches!(error, StoreError::Full { .. }), "{error}");
            let oldest = store.oldest(64, u64::MAX);
            assert!(!oldest.is_empty());
            for block in oldest {
                assert_eq!((block.owner, block.inserted_seconds), (written_back, u64::from(written_back)));
                store.remove(block.handle).unwrap();
                written_back += 1;
            }
        }
        stored += 1;
        assert!(store.statistics().held_bytes <= 2 * MIB);
    }
    assert!(written_back > 2000, "{written_back} pages made room");
    let statistics = store.statistics();
    assert_eq!(statistics.pages, u64::from(stored - written_back));
    assert_eq!(resident_bytes(&store), statistics.held_bytes);
    assert!(statistics.held_bytes > 2 * MIB - 300 * 1024, "the limit is made use of: {statistics:?}");
}

#[test]
fn a_handle_of_an_earlier_filling_names_nothing() {
    let store = CompressedStore::new(MIB);
    let mut earlier = Vec::new();
    for round in 0..200 {
        let handle = insert(&store, &page(Kind::Text, round), round, 0).unwrap();
        for old in &earlier {
            assert!(matches!(read(&store, *old), Err(StoreError::Missing(_))));
            assert!(matches!(store.remove(*old), Err(StoreError::Missing(_))));
        }
        store.remove(handle).unwrap();
        store.tidy(usize::MAX);
        earlier.push(handle);
    }
    assert!(slabs_in_use(&store).is_empty());
    for number in [0, 1, (1 << Handle::BITS) - 1, u64::MAX] {
        assert!(read(&store, Handle::from_number(number)).is_err());
    }
}

#[test]
fn bad_blocks_are_refused() {
    let store = CompressedStore::new(MIB);
    let long = [0; PAGE_BYTES + 1];
    for bytes in [&long[..0], &long] {
        let block = Block { codec: Codec::Lz4, bytes, checksum: 0 };
        assert!(matches!(store.insert(&block, 0, 0), Err(StoreError::Block { .. })));
    }
    assert_eq!(store.statistics().pages, 0);
}

#[test]
fn damaged_blocks_are_found() {
    let store = CompressedStore::new(MIB);
    let content = page(Kind::Text, 1);
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        let mut compressor = Compressor::new(codec, PAGE_BYTES).unwrap();
        let handle = store.insert(&compressor.compress(&content).unwrap(), 0, 0).unwrap();
        let (block, length_bytes, _) = store.known_slab(handle.slab()).raw(handle.slot());
        let mut found = 0;
        for at in 0..length_bytes {
            let flip = |bit: usize| {
                // SAFETY: the byte is one of the block's, and no other thread knows the store.
                unsafe { *block.add(at) ^= 1 << (bit % 8) };
            };
            flip(at);
            match read(&store, handle) {
                Ok(page) => assert_eq!(page, content, "{codec:?}: a wrong page is answered"),
                Err(StoreError::Damaged { .. }) => found += 1,
                Err(error) => panic!("{error}"),
            }
            flip(at);
        }
        // A few bits of a compressed block mean nothing.
        assert!(found >= length_bytes - 8, "{codec:?}: {found} of {length_bytes} found");
        assert_eq!(read(&store, handle).unwrap(), content);
    }
}

#[test]
fn a_damaged_directory_costs_its_blocks_and_no_more() {
    for seed in 0..300 {
        let mut generator = Generator::new(seed);
        let store = CompressedStore::new(4 * MIB);
        let handles: Vec<_> =
            (0..200).map(|at| insert(&store, &page_of_entropy(1000, at), at as u32, 0).unwrap()).collect();
        let damaged = generator.below(200) as usize;
        let (.., entry) = store.known_slab(handles[damaged].slab()).raw(handles[damaged].slot());
        let byte = generator.below(16) as usize;
        // SAFETY: the entry is one of the store's, and no other thread knows the store.
        unsafe { (*entry)[byte] ^= 1 << generator.below(8) };
        // Removing makes holes, tidying moves what the damaged entry claims to be.
        for (at, handle) in handles.iter().enumerate() {
            if at % 3 == 0 && at != damaged {
                store.remove(*handle).unwrap();
            }
        }
        store.tidy(usize::MAX);
        store.oldest(usize::MAX, u64::MAX);
        let mut lost = 0;
        for (at, handle) in handles.iter().enumerate().filter(|(at, _)| at % 3 != 0 || *at == damaged) {
            match read(&store, *handle) {
                Ok(page) => assert_eq!(page, page_of_entropy(1000, at as u64), "seed {seed}: a wrong page"),
                Err(_) => lost += 1,
            }
        }
        assert!(lost <= 5, "seed {seed}: {lost} pages lost");
    }
}

#[test]
fn a_directory_of_garbage_leads_nowhere() {
    for seed in 0..100 {
        let mut generator = Generator::new(seed);
        let store = CompressedStore::new(4 * MIB);
        let handles: Vec<_> =
            (0..900).map(|at| insert(&store, &page_of_entropy(40, at), at as u32, 0).unwrap()).collect();
        let slab = store.known_slab(handles[0].slab());
        let (.., data_bytes) = slab.usage();
        for handle in &handles {
            let (.., entry) = slab.raw(handle.slot());
            let garbage = u128::from(generator.next()) << 64 | u128::from(generator.next());
            // SAFETY: the entry is one of the store's, and no other thread knows the store.
            unsafe { *entry = garbage.to_le_bytes() };
        }
        let out_of_place = |handle: &Handle| match read(&store, *handle) {
            Ok(_) => panic!("seed {seed}: garbage is answered"),
            Err(StoreError::Damaged { damage: Damage::Directory, .. }) => true,
            Err(_) => false,
        };
        assert!(handles.iter().filter(|handle| out_of_place(handle)).count() > 300, "offsets are checked");
        for handle in &handles[..600] {
            let _ = store.remove(*handle);
        }
        store.tidy(usize::MAX);
        // Whatever is still open is packed too.
        if let Some(open) = lock(&store.open).take() {
            slab.close(open);
        }
        slab.tidy();
        let (.., packed_bytes) = slab.usage();
        assert!(packed_bytes <= data_bytes, "seed {seed}: {data_bytes} bytes are packed into {packed_bytes}");
        store.oldest(usize::MAX, u64::MAX);
        for handle in &handles {
            let _ = read(&store, *handle);
        }
    }
}

#[test]
fn locked_memory_stays_counted() {
    let store = CompressedStore::new(MIB);
    let fill = || -> Vec<_> { (0..8).map(|at| insert(&store, &page(Kind::Random, at), at, 0).unwrap()).collect() };
    let empty = |handles: Vec<Handle>| {
        handles.into_iter().for_each(|handle| store.remove(handle).unwrap());
        store.tidy(usize::MAX);
        store.statistics().held_bytes
    };
    let handles = fill();
    let full_bytes = store.statistics().held_bytes;
    let (block, ..) = store.known_slab(0).raw(0);
    // SAFETY: locking memory changes none of it.
    assert_eq!(unsafe { libc::mlock(block.cast(), PAGE_BYTES) }, 0, "{}", io::Error::last_os_error());
    let locked_bytes = empty(handles);
    assert!(locked_bytes > 0 && locked_bytes < full_bytes, "{locked_bytes} of {full_bytes} bytes are left");

    let handles: Vec<_> = fill().into_iter().take(1).collect();
    assert_eq!(store.statistics().held_bytes, full_bytes, "what was left is used again");
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munlock(block.cast(), PAGE_BYTES) }, 0, "{}", io::Error::last_os_error());
    for slot in 1..8 {
        store.remove(Handle::new(0, slot, handles[0].generation())).unwrap();
    }
    assert_eq!((empty(handles), resident_bytes(&store)), (0, 0));
}

#[test]
fn threads_see_whole_pages_or_none() {
    const THREADS: u64 = 3;
    const STEPS: usize = 30_000;
    let contents: Vec<Page> = (0..64).map(|at| page_of_entropy(20 + at * 30, at as u64)).collect();
    let blocks: Vec<(Vec<u8>, u32)> = contents
        .iter()
        .map(|page| {
            let mut compressor = Compressor::new(Codec::Lz4, PAGE_BYTES).unwrap();
            let block = compressor.compress(page).unwrap();
            (block.bytes.to_vec(), block.checksum)
        })
        .collect();
    let store = CompressedStore::new(3 * MIB);
    // Handles that any thread may read and remove; the owner of a block is the number of its content.
    let shared: Vec<Mutex<Option<(Handle, usize)>>> = (0..2000).map(|_| Mutex::new(None)).collect();
    let expect = |handle, content: usize| match read(&store, handle) {
        Ok(page) => assert!(page == contents[content], "a foreign page"),
        Err(StoreError::Missing(_)) => (),
        Err(error) => panic!("{error}"),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (store, shared, blocks, expect) = (&store, &shared, &blocks, &expect);
                scope.spawn(move || {
                    let mut generator = Generator::new(thread);
                    for _ in 0..STEPS {
                        let place = &shared[generator.below(shared.len() as u64) as usize];
                        let known = *lock(place);
                        match (generator.below(4), known) {
                            (0 | 1, Some((handle, content))) => expect(handle, content),
                            (2, Some(_)) => {
                                // Whoever takes it out removes it, so it must be there.
                                if let Some((handle, _)) = lock(place).take() {
                                    store.remove(handle).unwrap();
                                }
                            }
                            _ => {
                                let content = generator.below(blocks.len() as u64) as usize;
                                let (bytes, checksum) = &blocks[content];
                                let block = Block { codec: Codec::Lz4, bytes, checksum: *checksum };
                                match store.insert(&block, content as u32, 0) {
                                    Ok(handle) => {
                                        if let Some((old, _)) = lock(place).replace((handle, content)) {
                                            store.remove(old).unwrap();
                                        }
                                    }
                                    Err(StoreError::Full { .. }) => (),
                                    Err(error) => panic!("{error}"),
                                }
                            }
                        }
                    }
                })
            })
            .collect();
        while !workers.iter().all(|worker| worker.is_finished()) {
            store.tidy(4);
            for block in store.oldest(50, u64::MAX) {
                expect(block.handle, block.owner as usize);
            }
        }
    });
    store.tidy(usize::MAX);
    let kept: Vec<_> = shared.iter().filter_map(|place| *lock(place)).collect();
    assert_eq!(store.statistics().pages, kept.len() as u64);
    assert_eq!(resident_bytes(&store), store.statistics().held_bytes);
    for (handle, content) in &kept {
        assert!(read(&store, *handle).unwrap() == contents[*content]);
    }
    for (handle, _) in kept {
        store.remove(handle).unwrap();
    }
    store.tidy(usize::MAX);
    assert_eq!((store.statistics().held_bytes, resident_bytes(&store)), (0, 0));
}
