//! Pages leave: moved aside, and from there to a store.

use std::hint::black_box;
use std::time::Duration;

use cistern_memory::pager::PagerConfig;
use cistern_memory::store::Page;
use cistern_memory::store::codec::{Codec, Compressor};
use cistern_probe::content::Kind;

use super::bare::Bare;
use super::clock::{best, cpu_time, us_each};
use super::guest::{self, Guest};
use super::mix;
use super::table::{heading, note, row};

/// Pages that a round moves.
const PAGES: u64 = 16_384;

/// Pages go aside in runs of one length, with a hole behind each.
pub fn move_out() {
    heading("move-out; baseline: UFFDIO_MOVE of the same runs, nothing else");
    for (run, goal) in [(PAGES, "<= 0.2"), (64, "<= 0.2"), (8, "-"), (1, "-")] {
        let here = best(|| {
            let guest = Guest::new(PAGES, PagerConfig::default());
            touch_runs(&guest, run);
            guest.pager.arm().expect("userfaultfd");
            let mut moved = 0;
            let elapsed = cpu_time(|| moved = guest.pager.evict(guest.gfns()).expect("a codec"));
            assert_eq!(moved, runs(run).map(|run| run.end - run.start).sum::<u64>());
            us_each(elapsed, moved)
        });
        let bare = best(|| {
            let (from, to) = (Guest::new(PAGES, PagerConfig::default()), Guest::new(PAGES, PagerConfig::default()));
            touch_runs(&from, run);
            let (bare, mut moved) = (Bare::new(&[&from, &to]), 0);
            let elapsed = cpu_time(|| {
                for run in runs(run) {
                    bare.move_pages(to.address(run.start), from.address(run.start), run.end - run.start);
                    moved += run.end - run.start;
                }
            });
            us_each(elapsed, moved)
        });
        let what = if run == PAGES { "all in one run".to_owned() } else { format!("runs of {run}") };
        row(&what, here, Some(bare), "us a page", goal);
    }
}

fn runs(length: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    (0..PAGES).step_by(length as usize + 1).map(move |start| start..(start + length).min(PAGES))
}

fn touch_runs(guest: &Guest, length: u64) {
    runs(length).flatten().for_each(|gfn| guest.touch(gfn));
}

/// The whole way of pages to their homes, beside the codec alone on the same pages.
pub fn reclaim() {
    heading("reclaim: move out, hash, compress, drop; baseline: compressing the same pages and nothing else");
    let with_swap = || PagerConfig { swap_folder: Some(guest::disk()), ..PagerConfig::default() };
    let mixed: Vec<Page> = (0..PAGES as u32).map(mix::mixed).collect();
    let way = reclaim_way("mix", &mixed, &PagerConfig::default(), ">= 150000, ratio >= 0.8");
    note(&format!("of which moving out {:.2}, storing {:.2} us a page", way.out_us, way.store_us));
    note(&format!("{:.1} % of the mix was put back as incompressible", way.put_back_percent));
    reclaim_way("mix, text that needs 0.75", &mixed, &guest::all_text(), "-");
    reclaim_way("mix, with a swap file", &mixed, &with_swap(), "-");
    let text: Vec<Page> = (0..PAGES as u32).map(|number| mix::page(Kind::Text, number)).collect();
    let way = reclaim_way("text", &text, &PagerConfig::default(), "-");
    note(&format!("{:.1} % of text needs more than half a page and was put back", way.put_back_percent));
    let noise: Vec<Page> = (0..PAGES as u32).map(|number| mix::page(Kind::Random, number)).collect();
    reclaim_way("incompressible, put back", &noise, &PagerConfig::default(), "-");
    let way = reclaim_way("incompressible, to a swap file", &noise, &with_swap(), "-");
    note(&format!("that is CPU time; writing included it took {:.1} us a page", way.wall_us));
}

struct Way {
    out_us: f64,
    store_us: f64,
    wall_us: f64,
    put_back_percent: f64,
}

fn reclaim_way(what: &str, pages: &[Page], config: &PagerConfig, goal: &str) -> Way {
    let mut way = Way { out_us: 0.0, store_us: 0.0, wall_us: 0.0, put_back_percent: 0.0 };
    let count = pages.len() as u64;
    let here = best(|| {
        let guest = Guest::new(count, config.clone());
        (0..).zip(pages).for_each(|(gfn, page)| guest.write(gfn, page));
        guest.pager.arm().expect("userfaultfd");
        let (mut moved, mut out, mut store) = (0, Duration::ZERO, Duration::ZERO);
        let wall = super::clock::time(|| {
            out = cpu_time(|| moved = guest.pager.evict(guest.gfns()).expect("a codec"));
            store = cpu_time(|| _ = guest.pager.store(guest.gfns()).expect("a codec"));
        });
        assert_eq!(moved, count);
        let put_back = guest.pager.statistics().evictions.incompressible;
        way = Way {
            out_us: us_each(out, count),
            store_us: us_each(store, count),
            wall_us: us_each(wall, count),
            put_back_percent: put_back as f64 * 100.0 / count as f64,
        };
        us_each(out + store, count)
    });
    let mut compressor = Compressor::new(Codec::Lz4, config.compressed_limit_bytes).expect("a codec");
    let codec = best(|| {
        let elapsed = cpu_time(|| {
            for page in pages {
                black_box(compressor.compress(black_box(page)).is_some());
            }
        });
        us_each(elapsed, count)
    });
    row(what, 1e6 / here, Some(1e6 / codec), "pages/s", goal);
    way
}
