//! Paging under real guests: what it costs without pressure, what a fault costs, and how far it is ahead of the kernel's
//! own swap.
//!
//! usage: `[BASELINE=path of a cistern] cargo bench -p cistern-tests --bench paging [-- --quick] [PART ...]`; parts are
//! throughput, touch, refault and kernel.

mod bare;
mod kernel;
mod open;
mod refault;
mod table;
mod throttle;
mod vm;
mod zram;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let parts: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| *name == part);
    let rounds = if is_quick { 1 } else { 5 };
    if !precede_others() {
        println!("other work on this machine will show: only root may run before it");
    }
    if is_wanted("throughput") {
        open::throughput(rounds);
    }
    if is_wanted("touch") {
        open::first_touch(rounds + 1);
    }
    if is_wanted("kernel") {
        let levels: &[u32] = if is_quick { &[50] } else { &[75, 50, 25] };
        kernel::compare(levels, if is_quick { 1.0 } else { 2.0 });
    }
    // Last: it keeps this process on one CPU.
    if is_wanted("refault") {
        refault::refault(rounds);
    }
}

/// Puts this process, and all it starts, before other work on the machine, which is the only way to see its own latencies there.
fn precede_others() -> bool {
    // SAFETY: plain numbers; 0 is this process.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) == 0 }
}

/// Keeps this thread, and all it starts, on the first CPU it may use: that is where the pager answers a guest with one CPU.
fn stay_on_one_cpu() {
    // SAFETY: a CPU set is plain bits, and the kernel fills or reads one of the size given; 0 is the calling thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set), 0);
        let cpu = (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &set)).expect("this thread runs");
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set), 0);
    }
}
