//! What storing and bringing back a page costs, step by step, beside the bare codec on the same pages.
//!
//! The mix is zero=20,dup=20,text=40,random=20: what a probe guest fills its memory with. Times are the best of several
//! rounds, on one thread: other work on the machine only ever adds to them. Single steps run on pages that are in the
//! cache, the whole way on pages that are not.

#[path = "common/mix.rs"]
mod mix;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cistern_memory::store::codec::{Block, Codec, Compressor, DEFAULT_LIMIT_BYTES, Decompressor, checksum};
use cistern_memory::store::compressed::{CompressedStore, Handle};
use cistern_memory::store::duplicate::{DuplicateIndex, Released, ShareId};
use cistern_memory::store::{Home, PAGE_BYTES, Page, zero};
use cistern_probe::content::Kind;

use mix::{kind_of, mixed};

const ROUNDS: usize = 7;
/// Pages of the mix.
const PAGES: usize = 10_000;
/// Pages a single step is measured on ...
const STEP_PAGES: usize = 4_000;
/// ... and how many different ones these are.
const CACHED_PAGES: usize = 32;

fn main() {
    let mix: Vec<Page> = (0..PAGES as u32).map(mixed).collect();
    let cached = |kind| -> Vec<&Page> {
        let of_kind = mix.iter().enumerate().filter(|(at, _)| kind_of(*at as u32) == kind).map(|(_, page)| page);
        of_kind.take(CACHED_PAGES).cycle().take(STEP_PAGES).collect()
    };
    let (text, zeroes, noise) = (cached(Kind::Text), cached(Kind::Zero), cached(Kind::Random));
    let index = DuplicateIndex::new();

    println!("one step, nanoseconds a page:");
    report("zero check of a zero page", &zeroes, |page| zero::is_zero(page));
    report("zero check of a text page", &text, |page| zero::is_zero(page));
    report("hash for the duplicate index", &text, |page| index.hash(page));
    report("checksum", &text, |page| checksum(page));
    report("compare with an equal page", &text, |page| black_box(**page) == **page);
    for codec in [Codec::Lz4, Codec::Zstd] {
        let mut compressor = Compressor::new(codec, DEFAULT_LIMIT_BYTES).expect("a codec");
        report(&format!("{codec:?}: compress text"), &text, |page| compressor.compress(page).map(|b| b.bytes.len()));
        report(&format!("{codec:?}: give up on noise"), &noise, |page| compressor.compress(page).is_some());
        let blocks = compressed(codec, &text);
        let bytes: usize = blocks.iter().map(|(bytes, _)| bytes.len()).sum();
        println!(
            "  {:<44} {:>8.3}",
            format!("{codec:?}: ratio on text"),
            bytes as f64 / (blocks.len() * PAGE_BYTES) as f64
        );
        let (mut decompressor, mut page) = (Decompressor::new(), [0; PAGE_BYTES]);
        report(&format!("{codec:?}: decompress text"), &blocks, |(bytes, _)| {
            decompressor.decompress(codec, bytes, &mut page).is_ok()
        });
        store_steps(codec, &blocks);
    }

    println!("the whole way of the mix, one thread:");
    for codec in [Codec::Lz4, Codec::Zstd] {
        let way = whole_way(codec, &mix);
        println!(
            "  {codec:?}: {:.0} pages/s; {:.2} of the bare codec on the same pages, {:.2} of it on those that reach it",
            way.pages_per_second,
            way.pages_per_second / way.codec_on_all,
            way.pages_per_second / way.codec_on_reached
        );
        println!("  {codec:?}: memory held {:.3} of what went in", way.held_ratio);
    }
}

/// Best time of one pass over `items`, a page.
fn best<T>(items: &[T], mut step: impl FnMut(&T)) -> Duration {
    let pass = || {
        let start = Instant::now();
        items.iter().for_each(&mut step);
        start.elapsed()
    };
    std::iter::repeat_with(pass).take(ROUNDS).min().expect("there are rounds")
}

fn report<T, R>(name: &str, items: &[T], mut step: impl FnMut(&T) -> R) {
    let elapsed = best(items, |item| {
        black_box(step(black_box(item)));
    });
    print_step(name, elapsed, items.len());
}

fn print_step(name: &str, elapsed: Duration, pages: usize) {
    println!("  {name:<44} {:>8.0}", elapsed.as_nanos() as f64 / pages as f64);
}

/// Insert, read and remove of blocks that are ready.
fn store_steps(codec: Codec, blocks: &[(Vec<u8>, u32)]) {
    let (mut insert, mut read, mut remove, mut tidy) = (Duration::MAX, Duration::MAX, Duration::MAX, Duration::MAX);
    let (mut decompressor, mut page) = (Decompressor::new(), [0; PAGE_BYTES]);
    for _ in 0..ROUNDS {
        let store = CompressedStore::new(u64::MAX);
        let start = Instant::now();
        let handles: Vec<Handle> = blocks
            .iter()
            .map(|(bytes, checksum)| {
                store.insert(&Block { codec, bytes, checksum: *checksum }, 0, 0).expect("no limit is set")
            })
            .collect();
        insert = insert.min(start.elapsed());
        let start = Instant::now();
        for handle in &handles {
            store.read(*handle, &mut decompressor, &mut page).expect("it was stored");
            black_box(&page);
        }
        read = read.min(start.elapsed());
        let start = Instant::now();
        for handle in &handles {
            store.remove(*handle).expect("it was stored");
        }
        remove = remove.min(start.elapsed());
        let start = Instant::now();
        assert!(store.tidy(usize::MAX) > 0, "memory goes back");
        tidy = tidy.min(start.elapsed());
    }
    for (name, elapsed) in
        [("insert (fresh memory)", insert), ("read and verify", read), ("remove", remove), ("give back", tidy)]
    {
        print_step(&format!("{codec:?}: store: {name}"), elapsed, blocks.len());
    }
}

/// Pages of the mix a second.
struct Way {
    pages_per_second: f64,
    /// If the codec did all of them and nothing else were done.
    codec_on_all: f64,
    /// If the codec did those that are neither zero nor duplicates.
    codec_on_reached: f64,
    /// Memory of the stores for each byte stored.
    held_ratio: f64,
}

/// Zero check, hash, lookup, compare or compress, insert: all that a page goes through between leaving the guest and
/// being stored.
fn whole_way(codec: Codec, mix: &[Page]) -> Way {
    let mut compressor = Compressor::new(codec, DEFAULT_LIMIT_BYTES).expect("a codec");
    let (mut decompressor, mut found_page) = (Decompressor::new(), [0; PAGE_BYTES]);
    let mut best_way = Duration::MAX;
    let mut held_ratio = 0.0;
    let mut reached = Vec::new();
    for _ in 0..ROUNDS {
        let (store, index) = (CompressedStore::new(u64::MAX), DuplicateIndex::new());
        let mut shares: Vec<ShareId> = Vec::with_capacity(mix.len());
        reached.clear();
        let mut zeroes = 0;
        let start = Instant::now();
        for page in mix {
            if zero::is_zero(page) {
                zeroes += 1;
                continue;
            }
            let hash = index.hash(page);
            if let Some(found) = index.acquire(hash) {
                let Home::Compressed(handle) = found.home else { unreachable!("nothing is swapped here") };
                store.read(handle, &mut decompressor, &mut found_page).expect("it is stored");
                if found_page == *page {
                    shares.push(found.share);
                    continue;
                }
                assert_eq!(index.release(found.share), Ok(Released::Shared));
            }
            reached.push(page);
            if let Some(block) = compressor.compress(page) {
                let handle = store.insert(&block, 0, 0).expect("no limit is set");
                shares.push(index.insert(hash, Home::Compressed(handle)).expect("there is room"));
            }
        }
        best_way = best_way.min(start.elapsed());
        let held_bytes = store.statistics().held_bytes + index.statistics().held_bytes;
        held_ratio = held_bytes as f64 / ((shares.len() + zeroes) * PAGE_BYTES) as f64;
    }
    let per_second = |elapsed: Duration| mix.len() as f64 / elapsed.as_secs_f64();
    let on_all = best(mix, |page| {
        black_box(compressor.compress(page).is_some());
    });
    let on_reached = best(&reached, |page| {
        black_box(compressor.compress(page).is_some());
    });
    Way {
        pages_per_second: per_second(best_way),
        codec_on_all: per_second(on_all),
        codec_on_reached: per_second(on_reached),
        held_ratio,
    }
}

fn compressed(codec: Codec, pages: &[&Page]) -> Vec<(Vec<u8>, u32)> {
    let mut compressor = Compressor::new(codec, PAGE_BYTES).expect("a codec");
    pages
        .iter()
        .filter_map(|page| compressor.compress(page).map(|block| (block.bytes.to_vec(), block.checksum)))
        .collect()
}
