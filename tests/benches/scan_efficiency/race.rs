//! The same duplicates merged by ksmd after our advice, and by ksmd alone with everything advised: memory saved for a second of
//! CPU time, until nine tenths of what can be saved is.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;
use cistern_tests::control::ask;
use cistern_tests::paged::MIB;
use cistern_tests::pool::TestPool;
use cistern_tests::process::{LIMIT, Running, binary, probe};
use serde_json::{Value, json};

use super::cpu;
use super::ksmd::{Ksmd, with_all_advised};
use super::layout::{FILL_MIB, GUESTS, Spread};

/// All guests together fill 2 GiB; nothing is short, as memory that is saved is what is measured.
const FLAGS: [&str; 13] = [
    "--memory",
    "640M",
    "--cpus",
    "1",
    "--budget",
    "2500M",
    "--sharing",
    "off",
    "--scan-cpu",
    "1",
    "--reclaim",
    "pressure",
    "--ksm-tune",
];

/// CPU time for a page, in us, from which the bounds are computed (issue: 5.7 / (h + 5.7 a)).
const KSMD_COST_US: f64 = 5.7;

/// Paces of ksmd that take a tenth of a core: pages, and how long to sleep, in ms.
const PACES: [(u32, u32); 3] = [(100, 5), (1000, 51), (4000, 205)];

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long a pool is watched that has settled, and how long it takes it to.
const SETTLING: Duration = Duration::from_secs(15);
const SETTLED: Duration = Duration::from_secs(20);

/// What merging nine tenths has taken.
#[derive(Debug, Clone, Copy)]
struct Merged {
    scanners: Duration,
    ksmd: Duration,
    elapsed: Duration,
}

impl Merged {
    fn cpu(self) -> Duration {
        self.scanners + self.ksmd
    }

    /// For each page of all guests.
    fn us_a_page(cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / (GUESTS * FILL_MIB * MIB / PAGE_SIZE) as f64
    }
}

/// See the top of this file.
pub fn run(spread: Spread, is_quick: bool) {
    println!("\nduplicates: {}, 4 guests of {FILL_MIB} MiB", spread.name());
    let paces: &[(u32, u32)] = if is_quick { &PACES[1..2] } else { &PACES };
    let alone: Vec<Merged> = paces.iter().map(|&pace| by_ksmd_alone(spread, pace)).collect();
    let ours = after_our_advice(spread);
    let best = alone.into_iter().min_by_key(|merged| merged.cpu()).expect("there are paces");
    let saved_mib = (spread.duplicate_pages() * (GUESTS - 1) * PAGE_SIZE / MIB) as f64 * 0.9;
    let rate = |merged: Merged| saved_mib / merged.cpu().as_secs_f64();
    let (h, a) = (Merged::us_a_page(ours.scanners), spread.advised_part());
    println!(
        "  {:.0} MiB saved a CPU-second, ksmd alone {:.0}: ratio {:.2}, goal >= {}",
        rate(ours),
        rate(best),
        rate(ours) / rate(best),
        spread.goal()
    );
    println!(
        "  h {h:.2} us a page, a {a:.3}: bound {:.2}; with {:.2} us a page of ksmd alone as measured: {:.2}",
        KSMD_COST_US / (h + KSMD_COST_US * a),
        Merged::us_a_page(best.cpu()),
        Merged::us_a_page(best.cpu()) / (h + Merged::us_a_page(best.cpu()) * a)
    );
}

fn print(what: &str, merged: Merged) {
    println!(
        "  {what:<34} {:>6.2} s of CPU (scanners {:.2}, ksmd {:.2}) in {:>5.1} s: {:.1} % of a core; load {}",
        merged.cpu().as_secs_f64(),
        merged.scanners.as_secs_f64(),
        merged.ksmd.as_secs_f64(),
        merged.elapsed.as_secs_f64(),
        100.0 * merged.cpu().as_secs_f64() / merged.elapsed.as_secs_f64(),
        cpu::load().split(' ').next().unwrap_or_default(),
    );
}

/// Where the probe's memory for fills begins.
fn fill_base() -> u64 {
    let probe = probe().to_str().expect("plain");
    let mut vm = Running::start(&["run", "--memory", "640M", "--kernel", probe, "--cmdline", "probe=\"idle:1\""]);
    vm.wait_for_phase("boot")["fill_base"].as_u64().expect("an address")
}

/// Guests that have filled their memory.
fn start(spread: Spread, flags: &[&str]) -> TestPool {
    let fill_base = fill_base();
    let mut pool = TestPool::new(flags);
    let mut fills = Vec::new();
    for guest in 0..GUESTS {
        let (program, count) = spread.program(guest, fill_base);
        pool.start(&program, &[]);
        fills.push(count);
    }
    for (vm, fills) in pool.vms.iter_mut().zip(fills) {
        (0..fills).for_each(|_| drop(vm.running.wait_for_phase("fill")));
    }
    pool
}

fn scanners_time(pool: &TestPool) -> Duration {
    pool.vms.iter().map(|vm| cpu::of_scanner(vm.running.pid())).sum()
}

fn merged_pages(pool: &TestPool) -> u64 {
    let of = |pid: u32| fs::read_to_string(format!("/proc/{pid}/ksm_merging_pages")).ok()?.trim().parse::<u64>().ok();
    pool.vms.iter().filter_map(|vm| of(vm.running.pid())).sum()
}

/// Begins, and waits until nine tenths of the duplicates are merged.
fn until_merged(pool: &mut TestPool, spread: Spread, begin: impl FnOnce(&TestPool)) -> Merged {
    let (ksmd, scanners, started) = (cpu::of_ksmd(), scanners_time(pool), Instant::now());
    begin(pool);
    let wanted_pages = GUESTS * spread.duplicate_pages() * 9 / 10;
    let mut told = started;
    while merged_pages(pool) < wanted_pages {
        assert!(started.elapsed() < LIMIT, "{} of {wanted_pages} pages are merged", merged_pages(pool));
        if std::env::var_os("VERBOSE").is_some() && told.elapsed() > Duration::from_secs(2) {
            told = Instant::now();
            println!(
                "    {:>5.1} s: {} merged, scanners {:?}, ksmd {:?}",
                started.elapsed().as_secs_f64(),
                merged_pages(pool),
                scanners_time(pool) - scanners,
                cpu::of_ksmd() - ksmd
            );
            let sharing = pool.vms[0].memory()["sharing"].take();
            if !sharing["merging"].is_null() {
                println!("      {sharing}\n      {}", pool.statistics(0)["ksm_tuner"]);
            }
        }
        thread::sleep(INTERVAL);
    }
    Merged { scanners: scanners_time(pool) - scanners, ksmd: cpu::of_ksmd() - ksmd, elapsed: started.elapsed() }
}

fn by_ksmd_alone(spread: Spread, (pages_to_scan, sleep_millisecs): (u32, u32)) -> Merged {
    let ksmd = Ksmd::take();
    let flags = &FLAGS[..FLAGS.len() - 1];
    binary();
    let mut pool = with_all_advised(|| start(spread, flags));
    let merged = until_merged(&mut pool, spread, |_| ksmd.run(pages_to_scan, sleep_millisecs));
    print(&format!("ksmd alone, {pages_to_scan} pages, {sleep_millisecs} ms"), merged);
    pool.stop();
    merged
}

fn after_our_advice(spread: Spread) -> Merged {
    let mut pool = start(spread, &FLAGS);
    let merged = until_merged(&mut pool, spread, |pool| {
        for vm in &pool.vms {
            let answer = ask(&vm.socket(), "PATCH", "/sharing", &json!({ "mechanisms": "zero,store,ksm" }).to_string());
            assert_eq!(answer.status, 204, "{answer:?}");
        }
    });
    print("ksmd after our advice", merged);
    let sharing: Vec<Value> = pool.vms.iter_mut().map(|vm| vm.memory()["sharing"]["merging"].take()).collect();
    for merging in &sharing {
        println!(
            "    advised {} pages, all: {}, given up {} regions, {} exchanges",
            merging["advised_pages"], merging["advises_all"], merging["given_up_regions"], merging["exchanges"]
        );
    }
    thread::sleep(SETTLING);
    let (before, ksmd, started) = (scanners_time(&pool), cpu::of_ksmd(), Instant::now());
    thread::sleep(SETTLED);
    let part = |time: Duration| 100.0 * time.as_secs_f64() / started.elapsed().as_secs_f64();
    println!(
        "  settled, percent of a core: {:.3} for each scanner (goal < 0.5), ksmd {:.3}",
        part(scanners_time(&pool) - before) / GUESTS as f64,
        part(cpu::of_ksmd() - ksmd)
    );
    pool.stop();
    merged
}
