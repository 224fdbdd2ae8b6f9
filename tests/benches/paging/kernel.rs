//! Walks over more than there is memory for: by the pager, and by the kernel's own swap to zram, with as much memory.
//!
//! The kernel does not reclaim guest memory under a limit here, so a thread stands in for that: while resident memory and
//! zram together are over the limit it pages out clusters of 64 KiB, chosen at random (`MADV_PAGEOUT`). A guest that is
//! faster than that waits, or it would have more memory than ours: under a limit of the kernel's its faults would wait too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cistern_memory::PAGE_SIZE;
use cistern_memory::pager::Limits;

use super::table::{heading, note, number, row};
use super::throttle::Throttle;
use super::vm::{FILL_BYTES, Vm, resident_bytes};
use super::zram::Zram;

const DISTRIBUTIONS: [&str; 3] = ["uniform", "zipf", "sequential"];

/// What LZ4 needs for a byte of the probe's text, in either store.
const TEXT_RATIO: f64 = 0.46;

/// Pages out together, and how many of these between two looks at the total.
const CLUSTER_BYTES: u64 = 64 << 10;
const CLUSTERS: u64 = 2;

/// How far over the limit a guest may be without waiting.
const SLACK_BYTES: u64 = 1 << 20;

/// A side's walks at one level.
struct Walks {
    /// Touches a second, for each distribution.
    rates: Vec<f64>,
    p50_us: Vec<f64>,
    /// Resident memory of the process beyond what it was before the VM, and zram: the mean while walking.
    total_mib: Vec<f64>,
}

/// See the top of this file.
pub fn compare(levels: &[u32], seconds: f64) {
    heading("walks under a limit, touches/s; baseline: the kernel's swap to zram with LZ4 and as much memory in all");
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        note("not run: this needs root, who may make a zram device and swap to it");
        return;
    }
    let zram = match Zram::swap_on() {
        Ok(zram) => zram,
        Err(error) => {
            note(&format!("not run: a zram device as swap: {error}"));
            return;
        }
    };
    note(&format!(
        "fill:{}M,text=100; every fifth touch writes; the limit is what x % resident and the",
        FILL_BYTES >> 20
    ));
    note(&format!("rest at {TEXT_RATIO} take"));
    let zram = Arc::new(zram);
    for &percent in levels {
        let out_bytes = (FILL_BYTES as f64 * f64::from(100 - percent) / 100.0) as u64;
        let saved_bytes = (out_bytes as f64 * (1.0 - TEXT_RATIO)) as u64;
        let ours = through_the_pager(saved_bytes, seconds);
        let kernel = through_zram(&zram, saved_bytes, seconds);
        for (at, distribution) in DISTRIBUTIONS.iter().enumerate() {
            row(&format!("{percent} % resident, {distribution}"), ours.rates[at], kernel.rates[at], ">= 1");
            let beside =
                |walks: &Walks| format!("{} us and {} MiB", number(walks.p50_us[at]), number(walks.total_mib[at]));
            note(&format!("  median touch and memory in all: {}, baseline {}", beside(&ours), beside(&kernel)));
        }
    }
}

fn program(seconds: f64) -> String {
    let walks: Vec<String> = DISTRIBUTIONS
        .iter()
        .map(|distribution| {
            // The first one gets the working set into its place.
            format!("repeat:2,(walk:64M,secs={seconds},dist={distribution},write=20)")
        })
        .collect();
    format!("fill:64M,text=100;idle:1.5;{};idle:60", walks.join(";"))
}

/// Waits for all walks; every second one counts.
fn watch(vm: &mut Vm, total: impl Fn() -> u64) -> Walks {
    vm.wait_for("idle");
    let mut walks = Walks { rates: Vec::new(), p50_us: Vec::new(), total_mib: Vec::new() };
    for _ in DISTRIBUTIONS {
        vm.wait_for("walk");
        let mut samples = Vec::new();
        let walk = vm.wait_for_while("walk", || samples.push(mebibytes(total())));
        walks.total_mib.push(samples.iter().sum::<f64>() / samples.len() as f64);
        walks.rates.push(walk["touches_per_s"].as_f64().expect("a number"));
        walks.p50_us.push(walk["p50_ns"].as_f64().expect("a number") / 1000.0);
    }
    walks
}

fn through_the_pager(saved_bytes: u64, seconds: f64) -> Walks {
    let before_bytes = resident_bytes();
    let mut vm = Vm::start(&program(seconds));
    vm.wait_for("fill");
    vm.pager.arm().expect("userfaultfd");
    let limit_bytes = vm.pager.statistics().charge_bytes - saved_bytes;
    vm.pager.set_limits(Limits::alone(Some(limit_bytes))).expect("it is armed");
    let walks = watch(&mut vm, || resident_bytes().saturating_sub(before_bytes));
    let statistics = vm.pager.statistics();
    let (refaults, evictions) = (&statistics.refaults, &statistics.evictions);
    note(&format!(
        "  pager: at the end {:.1} MiB resident, {:.1} aside, {:.1} for {} stored pages, limit {:.1}",
        mebibytes(statistics.pages.resident * PAGE_SIZE),
        mebibytes(statistics.pages.aside * PAGE_SIZE),
        mebibytes(statistics.compressed.held_bytes + statistics.duplicates.held_bytes),
        statistics.compressed.pages,
        mebibytes(limit_bytes)
    ));
    note(&format!(
        "  pager: {} from the store and {} along with them, {} and {} from aside, {} waited, {} over the limit;",
        refaults.compressed.pages,
        refaults.compressed.around_pages,
        refaults.aside.pages,
        refaults.aside.around_pages,
        refaults.waited,
        statistics.failures.over_limit_pages
    ));
    note(&format!(
        "  {} moved aside, {} stored; median of its part from the store {} us, from aside {} us",
        evictions.aside,
        evictions.compressed,
        refaults.compressed.latency.p50_ns / 1000,
        refaults.aside.latency.p50_ns / 1000
    ));
    walks
}

fn through_zram(zram: &Arc<Zram>, saved_bytes: u64, seconds: f64) -> Walks {
    let (before_bytes, swapped_before) = (resident_bytes(), zram.used_bytes());
    let mut vm = Vm::start(&program(seconds));
    let fill_base = vm.wait_for("boot")["fill_base"].as_u64().expect("an address");
    vm.wait_for("fill");
    let total = {
        let zram = Arc::clone(zram);
        move || (resident_bytes() + zram.used_bytes()).saturating_sub(before_bytes + swapped_before)
    };
    let limit_bytes = total() - saved_bytes;
    let start = vm.ram.regions()[0].host_address + fill_base;
    let stop = AtomicBool::new(false);
    let mut throttle = Throttle::new().expect("the guest runs");
    let keep = || {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        // Guards nothing.
        while !stop.load(Ordering::Relaxed) {
            let total_bytes = total();
            if total_bytes <= limit_bytes {
                throttle.resume();
                thread::sleep(Duration::from_micros(200));
                continue;
            }
            if total_bytes > limit_bytes + SLACK_BYTES {
                throttle.pause();
            }
            for _ in 0..CLUSTERS {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                page_out(start + (random >> 33) % (FILL_BYTES / CLUSTER_BYTES) * CLUSTER_BYTES);
            }
        }
        throttle.resume();
        note(&format!("  kernel: the guest was made to wait for {:.1} s", throttle.paused.as_secs_f64()));
    };
    thread::scope(|scope| {
        scope.spawn(keep);
        // Also by a panic, or the scope would wait for ever.
        let _stop = StopOnDrop(&stop);
        watch(&mut vm, &total)
    })
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn page_out(address: u64) {
    // SAFETY: a part of guest RAM; the advice changes no content. Whatever stays in spite of it is counted.
    unsafe { libc::madvise(address as *mut libc::c_void, CLUSTER_BYTES as usize, libc::MADV_PAGEOUT) };
}
