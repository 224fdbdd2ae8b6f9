//! The PVH boot protocol's start info (Xen docs/misc/pvh.pandoc).

use std::ops::Range;

use cistern_memory::{Memory, RamRegion};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::BootError;
use super::linux::memory_map;
use crate::layout;

const START_MAGIC: u32 = 0x336e_c578;
const MEMMAP_RAM: u32 = 1;
const MEMMAP_RESERVED: u32 = 2;
const MEMORY_MAP_OFFSET: u64 = 0x40;
const MODULES_OFFSET: u64 = 0x400;

/// Writes the start info, its memory map and, for an initrd, its module list.
///
/// # Errors
/// [`BootError::Configurator`] when guest RAM is too small for it.
pub fn write_start_info(
    memory: &Memory,
    regions: &[RamRegion],
    initrd: Option<&Range<u64>>,
    rsdp_address: u64,
) -> Result<(), BootError> {
    let memory_map: Vec<_> = memory_map(regions)
        .into_iter()
        .map(|(range, is_ram)| hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: if is_ram { MEMMAP_RAM } else { MEMMAP_RESERVED },
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .map(|range| hvm_modlist_entry { paddr: range.start, size: range.end - range.start, ..Default::default() })
        .into_iter()
        .collect();
    let memory_map_address = layout::PVH_START_INFO + MEMORY_MAP_OFFSET;
    let modules_address = layout::PVH_START_INFO + MODULES_OFFSET;
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE,
        memmap_paddr: memory_map_address,
        memmap_entries: memory_map.len() as u32,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { modules_address },
        rsdp_paddr: rsdp_address,
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::PVH_START_INFO));
    params.set_sections(&memory_map, GuestAddress(memory_map_address));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(modules_address));
    }
    Ok(PvhBootConfigurator::write_bootparams(&params, memory)?)
}
