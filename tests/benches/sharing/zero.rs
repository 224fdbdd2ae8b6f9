//! How soon what a guest has cleared is back at the host, and whether the scanner keeps to its CPU budget meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::guest_memory::GuestMemory;
use cistern_tests::paged::{MIB, PagedVm, counter};

const SCAN_CPU_PERCENT: u64 = 5;
const CLEARED_MIB: u64 = 240;

/// How long the scanner's CPU time is watched.
const WATCHED: Duration = Duration::from_secs(20);

/// See the top of this file.
pub fn give_back() {
    println!("\nzero pages: a guest of 512 MiB clears {CLEARED_MIB}; scanner at {SCAN_CPU_PERCENT} % of a core");
    let program = format!(
        "fill:{CLEARED_MIB}M,text=100;fill:{CLEARED_MIB}M,text=100;idle:5;free:{CLEARED_MIB}M,silent;\
         fill:{CLEARED_MIB}M,zero=100;repeat:1000000,(idle:1)"
    );
    let percent = SCAN_CPU_PERCENT.to_string();
    let mut vm =
        PagedVm::start(&program, &["--memory", "512M", "--cpus", "1", "--sharing", "zero", "--scan-cpu", &percent]);
    let began = Instant::now();
    let cpu_before = cpu(&mut vm);
    vm.running.wait_for_phase("fill");
    vm.running.wait_for_phase("fill");
    let full_bytes = resident_bytes(&vm);
    vm.running.wait_for_phase("fill");
    let cleared = Instant::now();
    let mut reached = [None; 3];
    while reached[2].is_none() && cleared.elapsed() < 3 * WATCHED {
        let back_bytes = full_bytes.saturating_sub(resident_bytes(&vm));
        for (reached, percent) in reached.iter_mut().zip(PARTS) {
            if reached.is_none() && back_bytes * 100 >= CLEARED_MIB * MIB * percent {
                *reached = Some(cleared.elapsed());
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    for (reached, percent) in reached.into_iter().zip(PARTS) {
        let time = reached.map_or("never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
        println!("  {percent} % of it are back after {time}; goal: 5 s");
    }
    thread::sleep(WATCHED.saturating_sub(began.elapsed()));
    let used = (cpu(&mut vm) - cpu_before).as_secs_f64();
    let allowed = began.elapsed().as_secs_f64() * SCAN_CPU_PERCENT as f64 / 100.0;
    println!("  scanner: {used:.2} s of CPU of at most {allowed:.2}, {:.2} of its budget; goal <= 1.1", used / allowed);
    vm.stop();
}

/// Of what was cleared, in percent.
const PARTS: [u64; 3] = [50, 90, 99];

fn resident_bytes(vm: &PagedVm) -> u64 {
    GuestMemory::of(vm.running.pid()).expect("it runs").resident_bytes
}

fn cpu(vm: &mut PagedVm) -> Duration {
    Duration::from_nanos(counter(&vm.memory(), "sharing.cpu_ns"))
}
