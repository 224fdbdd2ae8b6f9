//! What 1, 2, 5 and 10 identical guests share and save: ESX's figure 4 (Waldspurger, "Memory Resource Management in VMware ESX
//! Server", OSDI 2002), in percent of the pages that the guests had touched.

use std::time::Duration;

use cistern_memory::PAGE_SIZE;
use cistern_tests::ksm::Ksm;

use super::guests::{Guests, ksmd_cpu};

/// Of the pages of ten identical Linux guests, in percent: shared, and reclaimed.
const ESX: [u32; 2] = [67, 60];

/// Probes: a fifth zero, and nearly half equal to the others'.
const PROBE_MEMORY: &str = "64M";
const PROBE_FILL: &str = "fill:56M,zero=20,dup=47,text=33,seed=SEED;repeat:1000000,(idle:1)";

/// Linux guests, beside whose kernel and files there is a process that reads what it holds; half of that is the same in all.
/// They are small: where KVM interprets their kernels, each page of a process takes milliseconds to come into being.
const LINUX_MEMORY: &str = "64M";
const LINUX_COMMAND: &str = "exec -a hold /init 8M 8M SEED";

/// Linux reports pages that it freed within two seconds or so (mm/page_reporting.c).
const REPORTING: Duration = Duration::from_secs(5);

/// Bare-metal guests.
pub fn probes(counts: &[usize]) {
    println!("\nidentical probes of {PROBE_MEMORY}: {PROBE_FILL}");
    measure(counts, |guests, number| {
        guests.start_probe(&PROBE_FILL.replace("SEED", &number.to_string()), &["--memory", PROBE_MEMORY]);
        |guests: &mut Guests, number: usize| drop(guests.members[number].running.wait_for_phase("fill"))
    });
    println!("  goal: 60 % reclaimed at 10 guests, of at most 62.3");
}

/// Linux guests.
pub fn linux(counts: &[usize]) {
    println!("\nidentical Linux guests of {LINUX_MEMORY}: {LINUX_COMMAND}");
    measure(counts, |guests, number| {
        guests.start_linux(&LINUX_COMMAND.replace("SEED", &number.to_string()), &["--memory", LINUX_MEMORY]);
        |guests: &mut Guests, number: usize| {
            guests.members[number].running.wait_for("the load", |line| line.starts_with("hold: ready"));
        }
    });
    println!("  ESX, 10 Linux guests: {} % shared, {} % reclaimed", ESX[0], ESX[1]);
}

/// Starts guests up to each count and prints what these share.
fn measure<W: Fn(&mut Guests, usize)>(counts: &[usize], start: impl Fn(&mut Guests, usize) -> W) {
    let _ksm = Ksm::hold();
    println!(
        "  {:>6} {:>12} {:>9} {:>12} {:>10} {:>14} {:>12}",
        "guests", "touched MiB", "shared %", "reclaimed %", "90 % in s", "scanners CPU s", "ksmd CPU s"
    );
    let mut guests = Guests::new();
    for &count in counts {
        let first = guests.members.len();
        let waits: Vec<W> = (first..count).map(|number| start(&mut guests, number)).collect();
        waits.iter().zip(first..).for_each(|(wait, number)| wait(&mut guests, number));
        std::thread::sleep(REPORTING);
        let (scanners, ksmd) = (guests.scanners_cpu(), ksmd_cpu());
        guests.give_way();
        guests.share();
        let course = guests.settle();
        row(&guests, &course, guests.scanners_cpu() - scanners, ksmd_cpu().saturating_sub(ksmd));
    }
    for member in &mut guests.members {
        assert!(!member.running.has_ended(), "a guest has ended");
    }
}

fn row(guests: &Guests, course: &[(Duration, f64)], scanners: Duration, ksmd: Duration) {
    let (memory, touched_bytes) = (guests.memory(), guests.touched_bytes());
    let percent = |bytes: u64| bytes as f64 * 100.0 / touched_bytes as f64;
    // What went back as zero is what the one zero page of others would be.
    let zero_bytes = touched_bytes.saturating_sub(memory.resident_bytes);
    let reclaimed = percent(touched_bytes.saturating_sub(memory.proportional_bytes));
    let first = course.first().map_or(0.0, |(_, saved)| *saved);
    let most = first + (reclaimed / 100.0 - first) * 0.9;
    let reached = course.iter().find(|(_, saved)| *saved >= most).map_or(f64::NAN, |(time, _)| time.as_secs_f64());
    println!(
        "  {:>6} {:>12} {:>9.1} {reclaimed:>12.1} {reached:>10.0} {:>14.2} {:>12.2}",
        guests.members.len(),
        touched_bytes >> 20,
        percent(memory.merged_bytes + zero_bytes),
        scanners.as_secs_f64(),
        ksmd.as_secs_f64()
    );
    println!(
        "         zero {:.1} %, merged {:.1} % ({} pages), each guest has {:.1} MiB of its own",
        percent(zero_bytes),
        percent(memory.merged_bytes),
        memory.merged_bytes / PAGE_SIZE,
        memory.proportional_bytes as f64 / guests.members.len() as f64 / 1_048_576.0
    );
}
