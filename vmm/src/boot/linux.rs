//! The Linux boot protocol's zero page (kernel Documentation/arch/x86/zero-page.rst).

use std::ops::Range;

use cistern_memory::{Memory, RamRegion};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::GuestAddress;

use super::BootError;
use super::kernel::LoadedKernel;
use crate::layout;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const KERNEL_ALIGNMENT_BYTES: u32 = 0x100_0000;
/// `LOADED_HIGH`: the protected-mode code is at 1 MiB.
const LOADED_HIGH: u8 = 1;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// The memory map every boot protocol passes on: address ranges and whether they are RAM.
pub fn memory_map(regions: &[RamRegion]) -> Vec<(Range<u64>, bool)> {
    let mut map = vec![
        (0..layout::BASE_MEMORY_END, true),
        // MP table, video memory, firmware: nothing for the kernel to allocate.
        (layout::BASE_MEMORY_END..layout::HIGH_MEMORY, false),
    ];
    for region in regions {
        let start = region.guest_address.max(layout::HIGH_MEMORY);
        map.push((start..region.guest_address + region.bytes, true));
    }
    map
}

/// Writes the zero page.
///
/// # Errors
/// [`BootError::Configurator`] when guest RAM is too small for it.
pub fn write_zero_page(
    memory: &Memory,
    regions: &[RamRegion],
    kernel: &LoadedKernel,
    initrd: Option<&Range<u64>>,
    command_line_bytes: usize,
    rsdp_address: u64,
) -> Result<(), BootError> {
    let mut params = boot_params::default();
    match kernel.setup_header {
        Some(header) => params.hdr = header,
        None => {
            params.hdr.boot_flag = BOOT_FLAG;
            params.hdr.header = HEADER_MAGIC;
            params.hdr.kernel_alignment = KERNEL_ALIGNMENT_BYTES;
            params.hdr.loadflags = LOADED_HIGH;
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = command_line_bytes as u32;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
    }
    params.acpi_rsdp_addr = rsdp_address;
    for (slot, (range, is_ram)) in memory_map(regions).into_iter().enumerate() {
        let kind = if is_ram { E820_RAM } else { E820_RESERVED };
        params.e820_table[slot] = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: kind };
        params.e820_entries = slot as u8 + 1;
    }
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    Ok(LinuxBootConfigurator::write_bootparams(&params, memory)?)
}
