//! The same duplicates merged by ksmd after our advice, and by ksmd alone with everything advised: memory saved for a second of
//! CPU time, until nine tenths of what can be saved is.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::control::ask;
use crate::paged::MIB;
use crate::pool::TestPool;
use crate::process::{LIMIT, Running, binary, probe};
use cistern_memory::PAGE_SIZE;
use serde_json::{Value, json};

use crate::cpu_time as cpu;
use crate::duplicates::{GUESTS, Layout};
use crate::ksmd::{Ksmd, with_all_advised};

/// What is raced over, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// What guests hold.
    pub layout: Layout,
    /// Paces of ksmd alone: pages, and how long to sleep, in ms.
    pub paces: &'a [(u32, u32)],
    /// What a VM's scanner may take, in percent of a core.
    pub scan_cpu_percent: u8,
    /// Whether all is watched for a while when it is over.
    pub watches_rest: bool,
}

impl Plan<'_> {
    /// Flags of all VMs. Nothing is short, as memory that is saved is what is measured; but the sizes sum to more than the budget,
    /// as where sharing is wanted.
    fn flags(&self) -> Vec<String> {
        let (size_mib, budget_mib) = (self.layout.fill_mib + 128, GUESTS * (self.layout.fill_mib + 113));
        let text = format!(
            "--memory {size_mib}M --cpus 1 --budget {budget_mib}M --sharing off --scan-cpu {} --reclaim pressure",
            self.scan_cpu_percent
        );
        text.split(' ').map(str::to_owned).collect()
    }
}

/// How it came out.
#[derive(Debug, Clone, Copy)]
pub struct Race {
    /// Memory saved for a second of CPU time after our advice, and by ksmd alone at its best pace, in MiB.
    pub rates: [f64; 2],
    /// Pages that were advised by us, of all that guests have filled.
    pub advised_pages: [u64; 2],
}

/// CPU time for a page, in us, from which the bounds are computed (issue: 5.7 / (h + 5.7 a)).
const KSMD_COST_US: f64 = 5.7;

/// Paces of ksmd that take a tenth of a core: pages, and how long to sleep, in ms.
pub const PACES: [(u32, u32); 3] = [(100, 5), (1000, 51), (4000, 205)];

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
}

/// For each page of all guests, in us.
fn us_a_page(layout: Layout, cpu: Duration) -> f64 {
    cpu.as_secs_f64() * 1e6 / (GUESTS * layout.fill_mib * MIB / PAGE_SIZE) as f64
}

/// See the top of this file. Prints how it goes.
pub fn run(plan: &Plan) -> Race {
    let layout = plan.layout;
    println!("\nduplicates: {}, {GUESTS} guests of {} MiB", layout.spread.name(), layout.fill_mib);
    let alone: Vec<Merged> = plan.paces.iter().map(|&pace| by_ksmd_alone(plan, pace)).collect();
    let (ours, advised_pages) = after_our_advice(plan);
    let best = alone.into_iter().min_by_key(|merged| merged.cpu()).expect("there are paces");
    let saved_mib = (layout.duplicate_pages() * (GUESTS - 1) * PAGE_SIZE / MIB) as f64 * 0.9;
    let rate = |merged: Merged| saved_mib / merged.cpu().as_secs_f64();
    let us_a_page = |time: Duration| us_a_page(layout, time);
    let (h, a) = (us_a_page(ours.scanners), layout.advised_part());
    println!(
        "  {:.0} MiB saved a CPU-second, ksmd alone {:.0}: ratio {:.2}, goal >= {}",
        rate(ours),
        rate(best),
        rate(ours) / rate(best),
        layout.spread.goal()
    );
    println!(
        "  h {h:.2} us a page, a {a:.3}: bound {:.2}; with {:.2} us a page of ksmd alone as measured: {:.2}",
        KSMD_COST_US / (h + KSMD_COST_US * a),
        us_a_page(best.cpu()),
        us_a_page(best.cpu()) / (h + us_a_page(best.cpu()) * a)
    );
    Race { rates: [rate(ours), rate(best)], advised_pages: [advised_pages, GUESTS * layout.fill_mib * MIB / PAGE_SIZE] }
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
fn start(layout: Layout, flags: &[String]) -> TestPool {
    let fill_base = fill_base();
    let mut pool = TestPool::new(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    let mut fills = Vec::new();
    for guest in 0..GUESTS {
        let (program, count) = layout.program(guest, fill_base);
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
fn until_merged(pool: &mut TestPool, layout: Layout, begin: impl FnOnce(&TestPool)) -> Merged {
    let (ksmd, scanners, started) = (cpu::of_ksmd(), scanners_time(pool), Instant::now());
    begin(pool);
    let wanted_pages = GUESTS * layout.duplicate_pages() * 9 / 10;
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

fn by_ksmd_alone(plan: &Plan, (pages_to_scan, sleep_millisecs): (u32, u32)) -> Merged {
    let ksmd = Ksmd::take();
    let (layout, flags) = (plan.layout, plan.flags());
    binary();
    let mut pool = with_all_advised(|| start(layout, &flags));
    let merged = until_merged(&mut pool, layout, |_| ksmd.run(pages_to_scan, sleep_millisecs));
    print(&format!("ksmd alone, {pages_to_scan} pages, {sleep_millisecs} ms"), merged);
    pool.stop();
    merged
}

/// Also the pages that were advised.
fn after_our_advice(plan: &Plan) -> (Merged, u64) {
    let mut pool = start(plan.layout, &[plan.flags(), vec!["--ksm-tune".to_owned()]].concat());
    let merged = until_merged(&mut pool, plan.layout, |pool| {
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
    if plan.watches_rest {
        watch_rest(&pool);
    }
    pool.stop();
    let advised = |merging: &Value| merging["advised_pages"].as_u64().unwrap_or(0);
    (merged, sharing.iter().map(advised).sum())
}

/// What a pool takes in which there is nothing more to merge.
fn watch_rest(pool: &TestPool) {
    thread::sleep(SETTLING);
    let (before, ksmd, started) = (scanners_time(pool), cpu::of_ksmd(), Instant::now());
    thread::sleep(SETTLED);
    let part = |time: Duration| 100.0 * time.as_secs_f64() / started.elapsed().as_secs_f64();
    println!(
        "  settled, percent of a core: {:.3} for each scanner (goal < 0.5), ksmd {:.3}",
        part(scanners_time(pool) - before) / GUESTS as f64,
        part(cpu::of_ksmd() - ksmd)
    );
}
