//! Walks over more than there is memory for: by the pager, and by the kernel's own swap to zram, with as much memory.
//!
//! The kernel does not reclaim guest memory under a limit here, so a thread stands in for that: while resident memory and
//! zram together are over the limit it pages out clusters of 64 KiB, chosen at random (`MADV_PAGEOUT`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::table::{heading, note, number, row};
use super::vm::{FILL_BYTES, Vm, resident_bytes};
use super::zram::Zram;

const DISTRIBUTIONS: [&str; 3] = ["uniform", "zipf", "sequential"];

/// What LZ4 needs for a byte of the probe's text, in either store.
const TEXT_RATIO: f64 = 0.46;

/// Pages out together, and how many of these between two looks at the total.
const CLUSTER_BYTES: u64 = 64 << 10;
const CLUSTERS: u64 = 8;

/// A side's walks at one level.
struct Walks {
    /// Touches a second, for each distribution.
    rates: Vec<f64>,
    p50_us: Vec<f64>,
    /// Resident memory of the process beyond what it was before the VM, and zram: the mean while walking.
    total_mib: f64,
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
            let p50 = |walks: &Walks| number(walks.p50_us[at]);
            note(&format!("  p50 of a touch, us: {} and {}", p50(&ours), p50(&kernel)));
        }
        note(&format!("  memory in all while walking, MiB: {:.1} and {:.1}", ours.total_mib, kernel.total_mib));
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
    let (mut walks, mut samples) = (Walks { rates: Vec::new(), p50_us: Vec::new(), total_mib: 0.0 }, Vec::new());
    for _ in DISTRIBUTIONS {
        vm.wait_for("walk");
        let walk = vm.wait_for_while("walk", || samples.push(total() as f64));
        walks.rates.push(walk["touches_per_s"].as_f64().expect("a number"));
        walks.p50_us.push(walk["p50_ns"].as_f64().expect("a number") / 1000.0);
    }
    walks.total_mib = samples.iter().sum::<f64>() / samples.len() as f64 / 1048576.0;
    walks
}

fn through_the_pager(saved_bytes: u64, seconds: f64) -> Walks {
    let before_bytes = resident_bytes();
    let mut vm = Vm::start(&program(seconds));
    vm.wait_for("fill");
    vm.pager.arm().expect("userfaultfd");
    let limit_bytes = vm.pager.statistics().charge_bytes - saved_bytes;
    vm.pager.set_resident_limit(Some(limit_bytes)).expect("it is armed");
    let walks = watch(&mut vm, || resident_bytes().saturating_sub(before_bytes));
    let statistics = vm.pager.statistics();
    let (refaults, evictions) = (&statistics.refaults, &statistics.evictions);
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
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            // Guards nothing.
            while !stop.load(Ordering::Relaxed) {
                if total() <= limit_bytes {
                    thread::sleep(Duration::from_micros(500));
                    continue;
                }
                for _ in 0..CLUSTERS {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    page_out(start + (random >> 33) % (FILL_BYTES / CLUSTER_BYTES) * CLUSTER_BYTES);
                }
            }
        });
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

fn page_out(address: u64) {
    // SAFETY: a part of guest RAM; the advice changes no content. Whatever stays in spite of it is counted.
    unsafe { libc::madvise(address as *mut libc::c_void, CLUSTER_BYTES as usize, libc::MADV_PAGEOUT) };
}
