//! What 1, 2, 5 and 10 identical guests share and save (ESX's figure 4).

use cistern_memory::PAGE_SIZE;
use cistern_tests::figure4::{ESX, Kind, Point, measure};

/// Bare-metal guests.
pub fn probes(counts: &[usize]) {
    print(Kind::Probes, counts);
    println!("  goal: 60 % reclaimed at 10 guests, of at most 62.3");
}

/// Linux guests.
pub fn linux(counts: &[usize]) {
    print(Kind::Linux, counts);
    println!("  ESX, 10 Linux guests: {} % shared, {} % reclaimed", ESX[0], ESX[1]);
}

fn print(kind: Kind, counts: &[usize]) {
    println!("\nidentical {}", kind.description());
    println!(
        "  {:>6} {:>12} {:>9} {:>12} {:>10} {:>14} {:>12}",
        "guests", "touched MiB", "shared %", "reclaimed %", "90 % in s", "scanners CPU s", "ksmd CPU s"
    );
    measure(kind, counts, None, row);
}

fn row(point: &Point) {
    let [scanners, ksmd] = point.cpu.map(|time| time.as_secs_f64());
    println!(
        "  {:>6} {:>12} {:>9.1} {:>12.1} {:>10.0} {scanners:>14.2} {ksmd:>12.2}",
        point.guests,
        point.touched_bytes >> 20,
        point.shared_percent(),
        point.reclaimed_percent,
        point.reached.map_or(f64::NAN, |time| time.as_secs_f64()),
    );
    println!(
        "         zero {:.1} %, merged {:.1} % ({:.0} pages), each guest has {:.1} MiB of its own",
        point.zero_percent,
        point.merged_percent,
        point.merged_percent / 100.0 * (point.touched_bytes / PAGE_SIZE) as f64,
        point.own_bytes as f64 / 1_048_576.0
    );
}
