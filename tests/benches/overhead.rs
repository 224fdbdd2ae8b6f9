//! What the VMM itself costs: ten idle guests of 128 MiB with one vCPU, guest RAM left out.

use cistern_tests::process::{Running, probe};
use cistern_tests::smaps::Footprint;

const GUESTS: u64 = 10;
const RAM_BYTES: u64 = 128 << 20;

fn main() {
    let kernel = probe().to_str().expect("a plain path");
    let program = "probe=\"fill:1M,random=100;idle:60\"";
    let mut guests: Vec<_> = (0..GUESTS)
        .map(|_| Running::start(&["run", "--kernel", kernel, "--memory", "128M", "--cmdline", program]))
        .collect();
    for guest in &mut guests {
        guest.wait_for_phase("fill");
    }
    let footprints: Vec<_> = guests.iter().map(|guest| Footprint::of(guest.pid(), RAM_BYTES)).collect();
    let mean =
        |field: fn(&Footprint) -> u64| footprints.iter().map(field).sum::<u64>() as f64 / GUESTS as f64 / 1048576.0;
    println!("VMM memory, {GUESTS} idle guests of 128 MiB, 1 vCPU, guest RAM left out, mean of each:");
    println!("  PSS {:.2} MiB (goal: at most 3)", mean(|footprint| footprint.vmm_pss_bytes));
    println!("  RSS {:.2} MiB (Firecracker's specification promises 5)", mean(|footprint| footprint.vmm_rss_bytes));
    println!("  guest RAM resident {:.2} MiB", mean(|footprint| footprint.guest_bytes));
}
