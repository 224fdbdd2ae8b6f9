//! The probe itself: the bare-metal side of `cistern_probe`. Boots by the Linux 64-bit protocol on any KVM VMM that
//! has a serial port, a local APIC and, if there are devices, virtio-mmio; runs the program on its command line and
//! resets.
//!
//! Hand-written assembly (`entry.s`) runs at CPL 0 and does next to nothing. All this is Rust at CPL 3 with access to
//! I/O ports, which every host runs at native speed. The address space is one to one; see `memory` for who owns what.
#![no_std]
#![no_main]

mod apic;
mod balloon;
mod boot;
mod bytes;
mod clock;
mod console;
mod cpu;
mod interrupts;
mod memory;
mod processors;
mod runner;
mod virtio;
mod work;

core::arch::global_asm!(include_str!("entry.s"));

use cistern_probe::cmdline;
use cistern_probe::fills::Fills;
use cistern_probe::json::Line;
use cistern_probe::pool::Pool;
use cistern_probe::program::Program;

use crate::balloon::Balloon;
use crate::boot::BootParameters;
use crate::clock::Clock;
use crate::console::{fail, print};
use crate::cpu::Cpu;
use crate::memory::{Arena, PageTables, WriteCounts};
use crate::processors::Processors;
use crate::runner::Runner;
use crate::work::World;

/// Where entry.s leaves CPL 0, on the boot processor. Interrupts are off.
///
/// # Safety
/// Called once, by entry.s, with what the boot protocol put into rsi and the boot processor's block.
#[unsafe(no_mangle)]
unsafe extern "C" fn boot_main(parameters: *const u8, cpu: *mut cpu::Block) -> ! {
    // SAFETY: entry.s passes the block of the processor that runs this.
    let cpu = unsafe { Cpu::new(cpu) };
    interrupts::fill_table();
    // Everything the VMM left in low memory is read before anything is written there.
    // SAFETY: the boot protocol puts valid boot parameters there.
    let boot = unsafe { BootParameters::read(parameters) }.unwrap_or_else(|cause| fail(cause));
    let found = boot::find_processors();

    let mut arena = Arena::new();
    let mut tables = PageTables::new(&boot.ram, &mut arena);
    memory::map_interrupt_controllers(&mut tables);
    apic::silence_pic();
    apic::enable();
    cpu.allow_interrupts();
    let clock = Clock::new(&cpu, &mut arena);
    let processors = Processors::start(cpu, found.as_ref(), &clock, &mut arena);
    let counts = WriteCounts::new(&boot.ram, &mut arena);
    arena.check(&boot.ram);
    let pool = Pool::new(boot.ram.pieces(), arena.end());

    let mut line = Line::phase("boot");
    line.number("cpus", processors.count().into())
        .number("ram_bytes", boot.ram.bytes())
        .number("first_page", arena.end() / cistern_probe::PAGE_SIZE)
        .number("fill_base", arena.end())
        .number("pages", pool.pages().into())
        .text("clock", clock.scale.source.name())
        .number("tsc_khz", clock.scale.ticks(1_000_000));
    print(&mut line);

    let Some(text) = cmdline::value(boot.command_line(), "probe") else {
        fail("no program: the command line must have probe=\"...\"")
    };
    let program = Program::parse(text).unwrap_or_else(|error| fail(error));
    let balloon = Balloon::find(boot.command_line(), &mut tables, boot.ram.bytes());
    let world = World { pool, fills: Fills::new(), counts, tables, clock };
    Runner::new(world, processors, balloon).run(&program)
}
