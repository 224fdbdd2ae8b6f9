//! Sharing under real guests: what identical guests save together, what that costs them, how soon zero pages are back, and
//! what guests of one kernel have in common with its file.
//!
//! usage: `cargo bench -p cistern-tests --bench sharing [-- --quick] [PART ...]`; parts are probes, linux, throughput, zero and
//! image.

mod figure4;
mod image;
mod ram;
mod throughput;
mod zero;

use cistern_tests::cpu_time;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let parts: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| *name == part);
    let counts: &[usize] = if is_quick { &[1, 2] } else { &[1, 2, 5, 10] };
    println!("load: {}", cpu_time::load());
    if !precede_others() {
        println!("other work on this machine will show: only root may run before it");
    }
    if is_wanted("probes") {
        figure4::probes(counts);
    }
    if is_wanted("linux") {
        figure4::linux(counts);
    }
    if is_wanted("throughput") {
        throughput::compare(if is_quick { 4 } else { 20 });
    }
    if is_wanted("zero") {
        zero::give_back();
    }
    if is_wanted("image") {
        image::compare();
    }
    println!("load: {}", cpu_time::load());
}

/// Puts this process, and all it starts, before other work on the machine: guests that wait for a CPU touch nothing.
fn precede_others() -> bool {
    // SAFETY: plain numbers; 0 is this process.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) == 0 }
}
