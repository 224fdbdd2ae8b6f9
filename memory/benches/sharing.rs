//! What finding duplicates costs, microseconds a page, on one thread: the best of several rounds, as other work on the
//! machine only ever adds.
//!
//! Of the bound on what scanning by fingerprints gains over ksmd alone, 5.7 / (h + 5.7 a), this is h: what a page costs us,
//! against the 5.7 us that it costs ksmd; a is the part of memory that is advised. Pages come from more memory than caches
//! hold, as guest RAM does, and are copied before they are looked at, as the guest may write meanwhile.

#[path = "common/mix.rs"]
#[allow(dead_code, reason = "pages of one kind are all that is needed here")]
mod mix;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cistern_memory::ledger::MemberId;
use cistern_memory::sharing::copies::StablePages;
use cistern_memory::sharing::fingerprint::{Fingerprint, SALT_BYTES, Salt};
use cistern_memory::sharing::sketch::{LiveMember, Sketches};
use cistern_memory::store::{PAGE_BYTES, Page, zero};
use cistern_probe::content::Kind;
use cistern_probe::random::Generator;

const ROUNDS: usize = 7;
/// Pages that are scanned: 256 MiB.
const SCANNED_PAGES: u32 = 1 << 16;
/// Pages of each guest of the pool whose sketches are joined: 512 MiB.
const GUEST_PAGES: u32 = 1 << 17;
const MEMBERS: u16 = 10;
/// Of a guest's pages, those that all guests have.
const COMMON_PAGES: u32 = GUEST_PAGES / 2;

fn main() {
    let mut generator = Generator::new(1);
    let salt = Salt::from_bytes(std::array::from_fn::<_, SALT_BYTES, _>(|_| generator.next() as u8));
    let mut copy = [0; PAGE_BYTES];
    let mut costs = BTreeMap::new();
    println!("scanning, us a page:");
    for (name, kind) in [("zero", Kind::Zero), ("text", Kind::Text), ("random", Kind::Random)] {
        let ram: Vec<Page> = (0..SCANNED_PAGES).map(|number| mix::page(kind, number)).collect();
        let report = |step: &str, work: &mut dyn FnMut(&Page)| {
            let us = us_a_page(best(|| ram.iter().for_each(&mut *work)), SCANNED_PAGES);
            println!("  {:<52} {us:>8.3}", format!("{name}: {step}"));
            us
        };
        report("zero check", &mut |page| {
            black_box(zero::is_zero(page));
        });
        report("zero check and fingerprint", &mut |page| {
            black_box(salt.fingerprint(page));
        });
        let whole = report("copy, zero check and fingerprint", &mut |page| {
            copy = *black_box(page);
            black_box(salt.fingerprint(&copy));
        });
        costs.insert(name, whole);
    }
    let pass = pass_of_a_pool(&salt);
    let visit = costs["text"];
    println!(
        "h is {:.3} us a page for one visit and a pass, {:.3} for two visits and a pass",
        visit + pass,
        2.0 * visit + pass
    );
    for (visits, h) in [("one visit", visit + pass), ("two visits", 2.0 * visit + pass)] {
        let bound = |advised_part: f64| 5.7 / (h + 5.7 * advised_part);
        println!(
            "  bound at {visits}: a tenth advised {:.2}, half {:.2}, all {:.2}",
            bound(0.1),
            bound(0.5),
            bound(1.0)
        );
    }
}

/// What ending a pass costs a member of a pool: to sort, publish, read the others and join.
fn pass_of_a_pool(salt: &Salt) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let live: Vec<_> = (0..MEMBERS)
        .map(|slot| LiveMember { id: MemberId { slot, generation: 1 }, guest_pages: GUEST_PAGES.into() })
        .collect();
    let mut members: Vec<_> = live.iter().map(|member| Sketches::new(folder.path(), member.id)).collect();
    let pages = |slot: u16| {
        let (mut common, mut own) = (Generator::new(1), Generator::new(2 + u64::from(slot)));
        let page = move |gfn: u32| {
            let number = if gfn < COMMON_PAGES { common.next() } else { own.next() };
            (Fingerprint::from_number(number as u32 | 1).expect("it is not 0"), gfn)
        };
        (0..GUEST_PAGES).map(page)
    };
    for (slot, sketches) in (0..MEMBERS).zip(&mut members) {
        StablePages::new(pages(slot)).publish(sketches, salt).expect("the folder takes files");
    }
    let gathered: Vec<_> = pages(0).collect();
    let own = StablePages::new(pages(0));
    let survey = own.survey(&members[0], salt, &live).expect("the folder can be read");
    let found = survey.copies().filter(|(_, copies)| *copies > 0).count();
    println!("ending a pass, us for each of a member's {GUEST_PAGES} pages ({MEMBERS} members, {found} have copies):");
    let steps = [
        ("gather and sort", best(|| drop(black_box(StablePages::new(gathered.iter().copied()))))),
        ("publish", best(|| own.publish(&mut members[0], salt).expect("the folder takes files"))),
        ("read the others and join", best(|| drop(black_box(own.survey(&members[0], salt, &live))))),
    ];
    for (name, elapsed) in steps {
        println!("  {name:<52} {:>8.3}", us_a_page(elapsed, GUEST_PAGES));
    }
    let others = GUEST_PAGES * u32::from(MEMBERS - 1);
    println!("  {:<52} {:>8.4}", "read and join, for each of the others' pages", us_a_page(steps[2].1, others));
    us_a_page(steps.iter().map(|(_, elapsed)| *elapsed).sum(), GUEST_PAGES)
}

fn best(mut work: impl FnMut()) -> Duration {
    let round = || {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    std::iter::repeat_with(round).take(ROUNDS).min().expect("there are rounds")
}

fn us_a_page(elapsed: Duration, pages: u32) -> f64 {
    elapsed.as_secs_f64() * 1e6 / f64::from(pages)
}
