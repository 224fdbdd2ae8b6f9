//! Where things lie in the guest's physical address space.
//!
//! Low memory is the PC's: boot structures below 640 KiB, firmware tables below 1 MiB, RAM up to the gap below 4 GiB that
//! devices use, and the rest of RAM above 4 GiB.

use std::ops::Range;

use cistern_devices::virtio::mmio::MMIO_BYTES;

use crate::firmware::BASE_MEMORY_TAIL;

/// Boot-time GDT.
pub const GDT: u64 = 0x500;
/// PVH start info and what it points to.
pub const PVH_START_INFO: u64 = 0x6000;
/// The Linux zero page (`boot_params`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Boot page tables: PML4, PDPT, PD, a page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Largest command line with its final NUL: `COMMAND_LINE_SIZE` of x86 Linux.
pub const COMMAND_LINE_BYTES: usize = 2048;
/// End of conventional memory; the MP table lies from here to 640 KiB.
pub const BASE_MEMORY_END: u64 = BASE_MEMORY_TAIL.start;
/// Start of RAM that kernels are loaded into.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// End of RAM below 4 GiB, and start of the device gap.
pub const DEVICE_GAP: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// First virtio-mmio register block; they follow each other.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Size of a virtio-mmio register block.
pub const VIRTIO_BYTES: u64 = MMIO_BYTES;
/// The global interrupts virtio devices may have: the IOAPIC's pins less those of the PC's own devices (timer 0 and 2,
/// keyboard 1, serial 3 and 4, RTC 8, ACPI 9, mouse 12, FPU 13).
pub const VIRTIO_GSIS: [u32; 15] = [5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
/// Three pages KVM needs on VT-x hosts, where the firmware would be.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The guest-physical ranges of `memory_bytes` of RAM, and so the highest address used. What no 64-bit address reaches is
/// left out: no host's address width takes the rest either.
pub fn ram_ranges(memory_bytes: u64) -> Vec<Range<u64>> {
    if memory_bytes <= DEVICE_GAP.start {
        return vec![0..memory_bytes];
    }
    vec![0..DEVICE_GAP.start, DEVICE_GAP.end..DEVICE_GAP.end.saturating_add(memory_bytes - DEVICE_GAP.start)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_round_the_device_gap() {
        assert_eq!(ram_ranges(512 << 20), [0..512 << 20]);
        assert_eq!(ram_ranges(3 << 30), [0..3 << 30]);
        assert_eq!(ram_ranges(4 << 30), [0..3 << 30, 4 << 30..5 << 30]);
        assert_eq!(ram_ranges(u64::MAX - 4095)[1], 4 << 30..u64::MAX, "too much for any host, and seen as such");
    }
}
