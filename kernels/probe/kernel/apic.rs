//! The local APIC (timer, signals between processors) and the I/O APIC (device interrupts), at their usual addresses.
//! Intel SDM volume 3, chapter 11; 82093AA data sheet.

use crate::cpu::{read_register, write_port, write_register};
use crate::interrupts::{DEVICE_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR, WAKE_VECTOR};

const LOCAL: u64 = 0xfee0_0000;
const ID: u64 = 0x020;
const SPURIOUS: u64 = 0x0f0;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const INITIAL_COUNT: u64 = 0x380;
const DIVIDE: u64 = 0x3e0;

const MASKED: u32 = 1 << 16;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_16: u32 = 0b0011;
/// What one timer count takes: KVM's and QEMU's APIC bus runs at 1 GHz, divided by 16.
const COUNT_NANOSECONDS: u64 = 16;

const ASSERT: u32 = 1 << 14;
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;

const IO_SELECT: u64 = 0xfec0_0000;
const IO_WINDOW: u64 = 0xfec0_0010;
const IO_VERSION: u32 = 1;
const IO_REDIRECTION: u32 = 0x10;

/// All registers of both lie in these 2 MiB pages.
pub const REGISTER_PAGES: [u64; 2] = [LOCAL, IO_SELECT];

fn read(register: u64) -> u32 {
    // SAFETY: the local APIC is mapped before anything here is called; reads have no effect.
    unsafe { read_register(LOCAL + register) }
}

fn write(register: u64, value: u32) {
    // SAFETY: as above; what interrupts do is in entry.s and sound.
    unsafe { write_register(LOCAL + register, value) };
}

/// Turns the old interrupt controllers off, on the boot processor. Their vectors would collide with exceptions.
pub fn silence_pic() {
    for (port, value) in
        [(0x20, 0x11), (0xa0, 0x11), (0x21, 0x20), (0xa1, 0x28), (0x21, 4), (0xa1, 2), (0x21, 1), (0xa1, 1)]
    {
        write_port(port, value);
    }
    write_port(0x21, 0xff);
    write_port(0xa1, 0xff);
}

/// Turns the local APIC of this processor on.
pub fn enable() {
    write(LINT0, MASKED);
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
    write(DIVIDE, DIVIDE_BY_16);
    write(TIMER, TIMER_VECTOR.into());
}

/// The id of this processor's local APIC.
pub fn id() -> u8 {
    (read(ID) >> 24) as u8
}

/// Lets the timer of this processor interrupt once, after about so long (at least one count, at most a minute).
pub fn set_timer(nanoseconds: u64) {
    let counts = (nanoseconds / COUNT_NANOSECONDS).clamp(1, 60_000_000_000 / COUNT_NANOSECONDS);
    write(INITIAL_COUNT, counts as u32);
}

/// Stops the timer of this processor.
pub fn stop_timer() {
    write(INITIAL_COUNT, 0);
}

fn send(apic_id: u8, command: u32) {
    write(COMMAND_HIGH, u32::from(apic_id) << 24);
    write(COMMAND_LOW, command);
}

/// Wakes another processor.
pub fn wake(apic_id: u8) {
    send(apic_id, ASSERT | u32::from(WAKE_VECTOR));
}

/// Puts another processor into its reset state.
pub fn send_init(apic_id: u8) {
    send(apic_id, ASSERT | INIT);
}

/// Starts a processor that was reset in real mode at `page * 4096`.
pub fn send_startup(apic_id: u8, page: u8) {
    send(apic_id, ASSERT | STARTUP | u32::from(page));
}

/// Sends a device interrupt (edge-triggered, active high) to a processor; false if the I/O APIC has no such input.
#[must_use]
pub fn route(input: u32, apic_id: u8) -> bool {
    let io = |register: u32, value: Option<u32>| {
        // SAFETY: the I/O APIC is mapped before anything here is called; its interrupts go to entry.s.
        unsafe {
            write_register(IO_SELECT, register);
            match value {
                Some(value) => write_register(IO_WINDOW, value),
                None => return read_register(IO_WINDOW),
            }
        }
        0
    };
    let inputs = (io(IO_VERSION, None) >> 16 & 0xff) + 1;
    if input >= inputs {
        return false;
    }
    io(IO_REDIRECTION + 2 * input + 1, Some(u32::from(apic_id) << 24));
    io(IO_REDIRECTION + 2 * input, Some(DEVICE_VECTOR.into()));
    true
}
