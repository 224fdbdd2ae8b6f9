//! What firmware would tell the guest about its machine: ACPI tables and an MP table.
//!
//! The guest-physical layout, all of it to be reserved in the memory map handed to the guest:
//!
//! | addresses | content |
//! |---|---|
//! | 0x9fc00..0xa0000 | MP floating pointer |
//! | 0xe0000..0xf0000 | ACPI tables, the RSDP first |
//! | 0xf0000..0x100000 | MP configuration table |
//!
//! Interrupts are wired as KVM wires them unless told otherwise: GSI n is pin n of the one I/O APIC, GSI 0 (the PIT)
//! included, so no table redirects IRQ 0 to pin 2 as a PC's would.

pub mod acpi;
pub mod mp_table;

use std::ops::Range;

use cistern_memory::Memory;

/// The end of base memory, as on a PC: guests look for the MP floating pointer in its last kilobyte.
pub const BASE_MEMORY_TAIL: Range<u64> = 0x9_fc00..0xa_0000;
/// Where the ACPI tables lie.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// Where the MP configuration table lies.
pub const MP_CONFIGURATION: Range<u64> = 0xf_0000..0x10_0000;

/// The local APIC of every CPU.
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// The one I/O APIC.
const IO_APIC_ADDRESS: u32 = 0xfec0_0000;
/// Its pins, and the GSIs there are.
const IO_APIC_PINS: u8 = 24;

/// Most CPUs the tables can name: APIC ids are bytes, 0xff means all CPUs, and the I/O APIC has an id of its own.
pub const CPUS_MAX: u8 = 254;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// The MP table.
    #[error(transparent)]
    MpTable(#[from] mp_table::MpTableError),
}

/// Writes all tables and returns the address of the RSDP.
///
/// # Errors
/// [`FirmwareError`].
pub fn write(memory: &Memory, platform: &Platform) -> Result<u64, FirmwareError> {
    mp_table::write(memory, platform)?;
    Ok(acpi::write(memory, platform)?)
}

/// The machine the tables describe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Platform {
    /// Number of CPUs, 1 to [`CPUS_MAX`]. Their APIC ids count from 0.
    pub cpus: u8,
    /// The virtio-mmio devices, in the order the guest numbers them.
    pub virtio: Vec<VirtioSlot>,
    /// There is a serial port at its usual place.
    pub has_serial: bool,
    /// There is a pvpanic device at its usual port.
    pub has_pvpanic: bool,
}

/// Where a virtio-mmio device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest-physical address of its registers, below 4 GiB.
    pub mmio_base: u64,
    /// Length of the register area.
    pub mmio_bytes: u64,
    /// Its interrupt: edge-triggered, active high, not shared.
    pub gsi: u32,
}
