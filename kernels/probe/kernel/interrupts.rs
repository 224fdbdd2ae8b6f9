//! The interrupt descriptor table: filled here, at CPL 3, because that is fast everywhere; entry.s has loaded it empty.

use core::ptr::addr_of_mut;

/// Vector of virtio devices.
pub const DEVICE_VECTOR: u8 = 0x40;
/// Vector of the local APIC's timer.
pub const TIMER_VECTOR: u8 = 0x41;
/// Vector by which processors wake each other.
pub const WAKE_VECTOR: u8 = 0x42;
/// Vector of interrupts that went away.
pub const SPURIOUS_VECTOR: u8 = 0xff;

const KERNEL_CODE: u64 = 0x08;
/// Present, interrupt gate: interrupts stay off in the handler.
const INTERRUPT_GATE: u64 = 0x8e00;
const EXCEPTIONS: u64 = 32;
const STUB_BYTES: u64 = 16;

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    static exception_stubs: u8;
    fn device_interrupt();
    fn timer_interrupt();
    fn wake_interrupt();
    fn spurious_interrupt();
}

/// Fills all 256 entries.
pub fn fill_table() {
    for vector in 0..=255u8 {
        let handler = match vector {
            DEVICE_VECTOR => device_interrupt as *const () as u64,
            TIMER_VECTOR => timer_interrupt as *const () as u64,
            WAKE_VECTOR => wake_interrupt as *const () as u64,
            _ if u64::from(vector) < EXCEPTIONS => &raw const exception_stubs as u64 + u64::from(vector) * STUB_BYTES,
            _ => spurious_interrupt as *const () as u64,
        };
        let low = handler & 0xffff | KERNEL_CODE << 16 | INTERRUPT_GATE << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: the table has 256 entries; interrupts are off and no other processor runs yet.
        unsafe { (*addr_of_mut!(idt))[usize::from(vector)] = [low, handler >> 32] };
    }
}
