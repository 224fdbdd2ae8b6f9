//! Everything at once: pages are written, read, evicted, stored, written back, pinned and given back by several threads,
//! and no page is ever anything but what was last written to it.

use std::sync::atomic::{AtomicBool, Ordering};

use cistern_probe::random::Generator;

use super::*;

/// Pages of a guest that is to go through a storm.
pub(super) const PAGES: u64 = 4096;

/// Threads that touch pages, each its own.
const OWNERS: u64 = 2;

/// A storm takes seconds; one that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// How many touches; more by the environment.
pub(super) fn touches(default: u64) -> u64 {
    std::env::var("PAGER_TOUCHES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A page as its owner last left it.
fn content(gfn: u64, version: u64) -> Page {
    if version == 0 {
        return [0; PAGE_BYTES];
    }
    let mut page = match (gfn + version) % 4 {
        0 => return [0; PAGE_BYTES],
        1 => return samples::page(Kind::Text, (version % 16) as u32),
        2 => samples::page(Kind::Text, gfn as u32),
        _ => samples::page(Kind::Random, gfn as u32),
    };
    page[..8].copy_from_slice(&version.to_ne_bytes());
    page
}

/// One owner's touches, and a look at all its pages in the end.
fn touch(guest: &Guest, owner: u64, touches: u64) {
    let mut random = Generator::new(owner + 1);
    let mut versions = vec![0u64; PAGES as usize];
    for touch in 0..touches / OWNERS {
        let gfn = random.below(PAGES / OWNERS) * OWNERS + owner;
        let version = &mut versions[gfn as usize];
        let expected = content(gfn, *version);
        let _pin = (touch % 5 == 0).then(|| guest.ram.pin(gfn * PAGE_SIZE, PAGE_SIZE).unwrap());
        assert!(guest.read(gfn) == expected, "page {gfn:#x}, version {version}");
        match random.below(8) {
            0 => {
                guest.ram.discard(gfn * PAGE_SIZE, PAGE_SIZE).unwrap();
                *version = 0;
                assert!(guest.read(gfn) == [0; PAGE_BYTES], "page {gfn:#x} after a discard");
            }
            1..=4 => {
                *version += 1;
                guest.write(gfn, &content(gfn, *version));
            }
            _ => {}
        }
    }
    for gfn in (owner..PAGES).step_by(OWNERS as usize) {
        let version = versions[gfn as usize];
        assert!(guest.read(gfn) == content(gfn, version), "page {gfn:#x} at the end, version {version}");
    }
}

/// A storm over a guest of [`PAGES`] that has a swap file and a limit. `disturb` is called again and again meanwhile.
pub(super) fn storm(guest: &Guest, touches: u64, disturb: impl Fn() + Sync) {
    guest.in_time(PATIENCE, || run(guest, touches, disturb));
    guest.check_no_failure();
    check_sources(&guest.pager.statistics().refaults);
}

fn run(guest: &Guest, touches: u64, disturb: impl Fn() + Sync) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let owners: Vec<_> = (0..OWNERS).map(|owner| scope.spawn(move || touch(guest, owner, touches))).collect();
        scope.spawn(|| {
            let mut random = Generator::new(99);
            while !stop.load(Ordering::Relaxed) {
                disturb();
                let gfn = random.below(PAGES - 64);
                let gfns = gfn..gfn + 1 + random.below(63);
                match random.below(4) {
                    0 => drop(guest.pager.write_back(16).unwrap()),
                    1 => drop(guest.pager.store(gfns).unwrap()),
                    _ => drop(guest.pager.evict(gfns).unwrap()),
                }
            }
        });
        let outcomes: Vec<_> = owners.into_iter().map(|owner| owner.join()).collect();
        stop.store(true, Ordering::Relaxed);
        outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    });
}

/// Pages came from everywhere: nothing was left out.
fn check_sources(refaults: &RefaultStatistics) {
    for (name, source) in [
        ("first touch", &refaults.first_touch),
        ("aside", &refaults.aside),
        ("zero", &refaults.zero),
        ("duplicate", &refaults.duplicate),
        ("compressed", &refaults.compressed),
        ("swapped", &refaults.swapped),
    ] {
        assert!(source.pages > 0, "no page came from {name}: {refaults:#?}");
    }
}

/// At rest every page is somewhere once: when all are given back nothing is held.
pub(super) fn check_emptied(guest: &Guest) {
    guest.pager.set_limits(Limits::alone(None)).unwrap();
    guest.ram.discard(0, PAGES * PAGE_SIZE).unwrap();
    let statistics = guest.pager.statistics();
    assert_eq!((statistics.compressed.pages, statistics.duplicates.references), (0, 0), "{statistics:#?}");
    assert_eq!(statistics.swap.map(|swap| swap.pages), Some(0));
}

fn storm_under(config: PagerConfig, limit_bytes: u64) {
    println!("{:?}", config.eviction);
    let guest = Guest::new(&[0..PAGES * PAGE_SIZE], config);
    guest.pager.set_limits(Limits::alone(Some(limit_bytes))).unwrap();
    storm(&guest, touches(100_000), || {});
    check_emptied(&guest);
}

#[test]
fn pages_keep_their_content_while_everything_happens_at_once() {
    for method in methods() {
        storm_under(with_swap(method), 4 * MIB);
    }
}

#[test]
fn so_they_do_under_two_reclaimers_and_another_codec() {
    for method in methods() {
        let config =
            PagerConfig { codec: crate::store::codec::Codec::Zstd, reclaim_cpu_percent: 200, ..with_swap(method) };
        storm_under(config, 6 * MIB);
    }
}

/// The kernel's id of this thread.
fn thread_id() -> i32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Beside it the kernel merges pages, and somebody advises that, takes it back, looks, samples, and gives zero pages back.
#[test]
fn so_they_do_while_they_are_merged_and_unmerged() {
    if !methods().contains(&EvictionMethod::Move) {
        return;
    }
    let ksm = merged::Ksm::start();
    let guest = Guest::new(&[0..PAGES * PAGE_SIZE], with_swap(EvictionMethod::Move));
    guest.pager.set_limits(Limits::alone(Some(8 * MIB))).unwrap();
    let mergeable = guest.pager.mergeable().unwrap();
    mergeable.advise(0..PAGES).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let scanner = scope.spawn(|| {
            guest.pager.exempt_thread(thread_id());
            let (mut random, mut scan) = (Generator::new(5), guest.pager.scan().unwrap());
            while !stop.load(Ordering::Relaxed) {
                let gfn = random.below(PAGES - 512);
                let gfns = gfn..gfn + 1 + random.below(511);
                match random.below(8) {
                    // Seldom: ksmd merges what it has seen twice.
                    0 if random.below(100) == 0 => drop(mergeable.take_back(gfns).unwrap()),
                    1 => mergeable.advise(gfns).unwrap(),
                    2 => drop(scan.free_zeroes(gfns)),
                    3 => drop(scan.show(gfns, true, |_, _| false)),
                    4 => drop(guest.pager.begin_sample(50).unwrap()),
                    5 => mergeable.set_saved_part(0.9),
                    _ => drop(mergeable.look(0..PAGES).unwrap()),
                }
                mergeable.advise(0..PAGES).unwrap();
            }
        });
        storm(&guest, touches(100_000), || {});
        stop.store(true, Ordering::Relaxed);
        scanner.join().unwrap();
    });
    drop(ksm);
    let evictions = guest.pager.statistics().evictions;
    println!("{evictions:?}");
    // How much ksmd comes to between two visits of the evictor is its own affair.
    assert!(evictions.zero_freed > 0, "{evictions:?}");
    check_emptied(&guest);
    assert_eq!((mergeable.merged_pages(), guest.pager.usage().touched_pages), (0, 0), "nothing is held of any page");
}
