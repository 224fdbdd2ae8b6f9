//! Time: the time stamp counter, scaled by KVM's clock or, where there is none, by the interval timer.

use cistern_probe::timescale::Timescale;

use crate::apic;
use crate::cpu::{Cpu, event, read_port, time_stamp, write_port};
use crate::memory::Arena;

/// MSR_KVM_SYSTEM_TIME_NEW: address of a page for the clock, and a bit to turn it on.
const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;

/// `struct pvclock_vcpu_time_info` (Linux, Documentation/virt/kvm/x86/msr.rst).
#[repr(C)]
struct KvmTime {
    version: u32,
    _padding: u32,
    tsc_timestamp: u64,
    system_time: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    _padding_at_end: [u8; 2],
}

const PIT_HERTZ: u64 = 1_193_182;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const PIT_GATE: u16 = 0x61;
/// How long the counter is measured against the interval timer.
const PIT_NANOSECONDS: u64 = 10_000_000;
/// Polls before the interval timer is taken to be absent; more than 10 ms wherever a port access takes 10 ns.
const PIT_POLLS: u32 = 2_000_000;

/// The scale of the time stamp counter.
#[derive(Clone, Copy)]
pub struct Clock {
    /// From ticks to nanoseconds.
    pub scale: Timescale,
}

impl Clock {
    /// Finds the scale.
    pub fn new(cpu: &Cpu, arena: &mut Arena) -> Self {
        Self { scale: kvmclock(cpu, arena).or_else(interval_timer).unwrap_or(Timescale::ASSUMED) }
    }

    /// The counter's value so many nanoseconds from now.
    pub fn after(&self, nanoseconds: u64) -> u64 {
        time_stamp().saturating_add(self.scale.ticks(nanoseconds))
    }

    /// Nanoseconds since the counter had this value.
    pub fn since(&self, start: u64) -> u64 {
        self.scale.nanoseconds(time_stamp().saturating_sub(start))
    }

    /// Sleeps until the counter reaches `deadline` (false) or `ready` says so (true). `ready` is asked whenever the
    /// processor was woken, and must take the events it waits for.
    pub fn wait(&self, cpu: &Cpu, deadline: u64, mut ready: impl FnMut() -> bool) -> bool {
        let mut armed = false;
        loop {
            if ready() {
                if armed {
                    apic::stop_timer();
                }
                return true;
            }
            let now = time_stamp();
            if now >= deadline {
                return false;
            }
            if cpu.take_events(event::TIMER) != 0 || !armed {
                apic::set_timer(self.scale.nanoseconds(deadline - now));
                armed = true;
            }
            cpu.halt();
        }
    }
}

fn kvmclock(cpu: &Cpu, arena: &mut Arena) -> Option<Timescale> {
    let time = arena.take::<KvmTime>(1);
    if !cpu.write_msr(KVM_SYSTEM_TIME, time.as_ptr() as u64 | 1) {
        return None;
    }
    // SAFETY: the arena's; KVM has written it before the register write came back, or never will.
    let time = unsafe { time.read_volatile() };
    // Its scale never changes, so KVM need not go on writing there; a refusal would change nothing.
    let _ = cpu.write_msr(KVM_SYSTEM_TIME, 0);
    Timescale::kvmclock(time.multiplier, time.shift)
}

/// Counts ticks while channel 2 of the interval timer runs down once.
fn interval_timer() -> Option<Timescale> {
    let count = (PIT_HERTZ * PIT_NANOSECONDS / 1_000_000_000) as u16;
    let gate = read_port(PIT_GATE);
    // Speaker off, gate off then on; mode 0: the output rises at the end.
    write_port(PIT_GATE, gate & !3);
    write_port(PIT_COMMAND, 0b1011_0000);
    write_port(PIT_CHANNEL_2, count as u8);
    write_port(PIT_CHANNEL_2, (count >> 8) as u8);
    write_port(PIT_GATE, gate & !2 | 1);
    let start = time_stamp();
    let mut polls = 0;
    while read_port(PIT_GATE) & 0x20 == 0 {
        polls += 1;
        if polls == PIT_POLLS {
            return None;
        }
    }
    Timescale::measured(time_stamp() - start, u64::from(count) * 1_000_000_000 / PIT_HERTZ)
}
