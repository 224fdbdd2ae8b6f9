//! Pages come: touched for the first time, and brought back from the compressed store.

use std::hint::black_box;
use std::time::{Duration, Instant};

use cistern_memory::page_table::{EvictNext, Location, PageTable, RefaultNext, StoreNext, Stored};
use cistern_memory::pager::PagerConfig;
use cistern_memory::store::codec::{Codec, Compressor, Decompressor};
use cistern_memory::store::compressed::CompressedStore;
use cistern_memory::store::duplicate::{DuplicateIndex, Released, ShareId};
use cistern_memory::store::{Home, PAGE_BYTES, Page};
use cistern_probe::content::Kind;

use super::bare::Bare;
use super::clock::{best, median_us, stay_on_one_cpu, time, us_each};
use super::guest::{self, Guest, shuffled};
use super::mix;
use super::table::{heading, note, row};

/// Pages that a round touches.
const PAGES: u64 = 16_384;

/// Fresh memory, touched by a thread.
pub fn first_touch() {
    stay_on_one_cpu();
    heading("first touch of an armed mapping; baseline: the kernel's own fault, 4 KiB pages");
    for (what, order) in [("in order", (0..PAGES).collect()), ("in random order", shuffled(PAGES))] {
        let touch_all = |is_armed: bool| {
            let guest = Guest::new(PAGES, PagerConfig::default());
            if is_armed {
                guest.pager.arm().expect("userfaultfd");
            } else {
                // SAFETY: all of a mapping of ours; the advice changes no content.
                let result = unsafe {
                    libc::madvise(
                        guest.address(0) as *mut libc::c_void,
                        guest.ram.size_bytes() as usize,
                        libc::MADV_NOHUGEPAGE,
                    )
                };
                assert_eq!(result, 0);
            }
            us_each(time(|| order.iter().for_each(|&gfn| guest.touch(gfn))), PAGES)
        };
        row(what, best(|| touch_all(true)), Some(best(|| touch_all(false))), "us a page", "-");
    }
}

/// A page that is stored, touched by a thread: as a whole, and step by step.
pub fn refault() {
    heading("refault of a compressed text page; baseline: a bare userfaultfd handler that copies a ready page");
    let guest = Guest::new(PAGES, guest::all_text());
    (0..PAGES).for_each(|gfn| guest.write(gfn, &mix::page(Kind::Text, gfn as u32)));
    guest.pager.arm().expect("userfaultfd");
    // SAFETY: the call takes nothing and cannot fail.
    guest.pager.set_vcpu_threads(vec![unsafe { libc::gettid() }]);
    let (bare_guest, order) = (Guest::new(PAGES, PagerConfig::default()), shuffled(PAGES));
    let bare = Bare::new(&[&bare_guest]);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    {
        let _handler = bare.serve();
        bring_out(&guest);
        // In turns, so that both see the same machine.
        for part in order.chunks(512) {
            ours.extend(part.iter().map(|&gfn| time(|| guest.read(gfn))));
            theirs.extend(part.iter().map(|&gfn| time(|| bare_guest.read(gfn))));
        }
    }
    let single_us = median_us(ours);
    row("random touches, median", single_us, Some(median_us(theirs)), "us", "ratio <= 1.15");
    let pager_us = guest.pager.statistics().refaults.compressed.latency.p50_ns as f64 / 1000.0;
    note(&format!("the pager's own count, from reading the fault to noting its end: {pager_us:.2} us"));
    note("(on one CPU the thread may go on before that end is noted, so this may hold a part of its next touch)");

    bring_out(&guest);
    let elapsed = time(|| guest.gfns().for_each(|gfn| guest.read(gfn)));
    row("touches in order", us_each(elapsed, PAGES), Some(single_us), "us; baseline: a single one", "ratio <= 0.2");
    steps(pager_us);
}

fn bring_out(guest: &Guest) {
    guest.rest();
    assert_eq!(guest.pager.evict(guest.gfns()).expect("a codec"), PAGES);
    assert_eq!(guest.pager.store(guest.gfns()).expect("a codec"), PAGES);
}

/// The steps of a refault, each done for all pages in random order.
fn steps(pager_us: f64) {
    heading("what the pager does in a refault, step by step");
    let order = shuffled(PAGES);
    let (store, index) = (CompressedStore::new(u64::MAX), DuplicateIndex::new());
    let mut compressor = Compressor::new(Codec::Lz4, PAGE_BYTES).expect("a codec");
    let shares: Vec<ShareId> = (0..PAGES as u32)
        .map(|number| {
            let page: Page = mix::page(Kind::Text, number);
            let hash = index.hash(&page);
            let block = compressor.compress(&page).expect("the limit is a page");
            let handle = store.insert(&block, number, 0).expect("there is no limit");
            index.insert(hash, Home::Compressed(handle)).expect("there is room")
        })
        .collect();
    let mut total = 0.0;
    let mut step = |what: &str, elapsed: Duration| {
        let us = us_each(elapsed, PAGES);
        total += us;
        row(what, us, None, "us a page", "-");
    };
    step("page table: claim and finish", page_table_time(&order));
    let mut handles = Vec::with_capacity(order.len());
    step(
        "lookup in the index",
        time(|| handles.extend(order.iter().map(|&at| index.home(shares[at as usize]).expect("it is stored")))),
    );
    let (mut decompressor, mut page) = (Decompressor::new(), [0; PAGE_BYTES]);
    let fetch = time(|| {
        for home in &handles {
            let Home::Compressed(handle) = home else { unreachable!("nothing is swapped here") };
            store.read(*handle, &mut decompressor, &mut page).expect("it is stored");
            black_box(&page);
        }
    });
    step("fetch, decompress, verify", fetch);
    let target = Guest::new(PAGES, PagerConfig::default());
    let bare = Bare::new(&[&target]);
    step("map by COPY", time(|| order.iter().for_each(|&gfn| bare.copy(target.address(gfn)))));
    let release = time(|| {
        for &at in &order {
            if let Ok(Released::Last(Home::Compressed(handle))) = index.release(shares[at as usize]) {
                store.remove(handle).expect("it was stored");
            }
        }
    });
    step("release what was stored", release);
    row("sum", total, Some(pager_us), "us; baseline: the pager's median", "-");
}

/// Claiming stored pages and finishing them.
fn page_table_time(order: &[u64]) -> Duration {
    let table = PageTable::new(PAGES).expect("memory");
    table.arm();
    table.mark_present(0..PAGES, 0).expect("its pages");
    for gfn in 0..PAGES {
        let Ok(EvictNext::Won(claim)) = table.begin_evict(gfn) else { unreachable!("it is resident") };
        let _ = table.finish_evict(claim, 0).expect("its claim");
        let Ok(StoreNext::Won(claim)) = table.begin_store(gfn) else { unreachable!("it is aside") };
        let home = Stored::Compressed(Location::new(gfn).expect("a small number"));
        let _ = table.finish_store(claim, home).expect("its claim");
    }
    let start = Instant::now();
    for &gfn in order {
        let Ok(RefaultNext::Won(claim)) = table.begin_refault(gfn) else { unreachable!("it is stored") };
        let _ = black_box(table.finish_refault(claim, 1).expect("its claim"));
    }
    start.elapsed()
}
