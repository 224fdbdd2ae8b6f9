//! Memory that paging itself takes: for every page of an armed guest, and for every byte stored.

use std::fs;

use cistern_memory::PAGE_SIZE;
use cistern_memory::pager::PagerConfig;
use cistern_memory::store::Page;
use cistern_probe::content::Kind;

use super::guest::{Guest, all_text};
use super::mix;
use super::table::{heading, row};

/// Two guests, so that what does not grow with a guest cancels out.
const SMALL_PAGES: u64 = 16_384;
const LARGE_PAGES: u64 = 262_144;

/// Pages that are stored.
const STORED_PAGES: u64 = 32_768;

/// See the top of this file.
pub fn report() {
    heading("bookkeeping; goal: 8 bytes a page + 1 % of what is stored, uncompressed");
    // What the allocator keeps for the next guest is there before it is counted.
    armed_bytes(SMALL_PAGES);
    let (small, large) = (armed_bytes(SMALL_PAGES), armed_bytes(LARGE_PAGES));
    row("an armed page", (large - small) / (LARGE_PAGES - SMALL_PAGES) as f64, None, "bytes", "<= 8");
    for (what, page) in
        [("text stored", (|number| mix::page(Kind::Text, number)) as fn(u32) -> Page), ("mix stored", mix::mixed)]
    {
        let guest = Guest::new(STORED_PAGES, all_text());
        (0..STORED_PAGES).for_each(|gfn| guest.write(gfn, &page(gfn as u32)));
        guest.pager.arm().expect("userfaultfd");
        guest.pager.evict(guest.gfns()).expect("a codec");
        let stored = guest.pager.store(guest.gfns()).expect("a codec");
        let statistics = guest.pager.statistics();
        let store_bytes = statistics.compressed.held_bytes - statistics.compressed.compressed_bytes;
        let index_bytes = statistics.duplicates.held_bytes;
        row(&format!("{what}: store"), store_bytes as f64 / stored as f64, None, "bytes a stored page", "-");
        row(&format!("{what}: index"), index_bytes as f64 / stored as f64, None, "bytes a stored page", "-");
        let percent = (store_bytes + index_bytes) as f64 * 100.0 / (stored * PAGE_SIZE) as f64;
        row(&format!("{what}: both"), percent, None, "% of what is stored", "<= 1");
    }
}

/// Memory of this process that an armed guest of so many pages takes, all of them touched, the pages themselves left out.
fn armed_bytes(pages: u64) -> f64 {
    let before = resident_bytes();
    let guest = Guest::new(pages, PagerConfig::default());
    guest.pager.arm().expect("userfaultfd");
    guest.gfns().for_each(|gfn| guest.touch(gfn));
    guest.rest();
    resident_bytes() - before - (pages * PAGE_SIZE) as f64
}

fn resident_bytes() -> f64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").expect("this process is there");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("the kernel counts it");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024.0
}
