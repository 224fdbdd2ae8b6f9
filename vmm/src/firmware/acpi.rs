//! ACPI tables (ACPI 6.5, chapter 5): RSDP, XSDT, FADT, FACS, MADT and a DSDT with the devices a guest cannot probe for.

use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use cistern_devices::i8042::I8042_PORT;
use cistern_devices::power::{PM_TIMER_PORT, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, SCI_GSI, SLEEP_TYPE_S5};
use cistern_devices::pvpanic::PVPANIC_PORT;
use cistern_devices::serial::{SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS};
use cistern_memory::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{ACPI_TABLES, CPUS_MAX, IO_APIC_ADDRESS, IO_APIC_PINS, LOCAL_APIC_ADDRESS, Platform, VirtioSlot};

const OEM_ID: [u8; 6] = *b"CISTRN";
const OEM_TABLE_ID: [u8; 8] = *b"CISTERN ";
const OEM_REVISION: u32 = 1;

/// The FACS asks for 64 bytes; the others do not mind.
const TABLE_ALIGNMENT: u64 = 64;
const SDT_HEADER_BYTES: u32 = 36;

/// Virtio devices do not share interrupts.
const VIRTIO_DEVICES_MAX: usize = IO_APIC_PINS as usize;

/// IA-PC boot flags (ACPI 6.5, 5.2.9.3). No keyboard controller is announced: guests would wait for a keyboard.
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_NO_VGA: u16 = 1 << 2;
const BOOT_NO_MSI: u16 = 1 << 3;
const BOOT_NO_CMOS_RTC: u16 = 1 << 5;

/// What the keyboard controller takes at its command port to reset the machine.
const I8042_COMMAND_PORT: u16 = I8042_PORT + 4;
const I8042_RESET_COMMAND: u8 = 0xfe;

/// Latencies above these mean that a CPU has no C2 and no C3 state.
const NO_C2_LATENCY_US: u16 = 101;
const NO_C3_LATENCY_US: u16 = 1001;

/// The machine has the two 8259 interrupt controllers of a PC as well.
const MADT_PCAT_COMPAT: u32 = 1;

/// Why the ACPI tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// There is no CPU, or more than the tables can name.
    #[error("ACPI tables: {0} CPUs: the number must be 1 to {CPUS_MAX}")]
    Cpus(u8),
    /// More virtio devices than there are interrupts.
    #[error("ACPI tables: {0} virtio devices: at most {VIRTIO_DEVICES_MAX}")]
    VirtioDevices(usize),
    /// A device's registers are not within the first 4 GiB.
    #[error("ACPI tables: virtio device at {mmio_base:#x}, {mmio_bytes} bytes: not below 4 GiB")]
    VirtioAddress {
        /// Where it was to be.
        mmio_base: u64,
        /// Length of its registers.
        mmio_bytes: u64,
    },
    /// The tables' place is not guest RAM.
    #[error("ACPI tables: writing {table}: {cause}")]
    Write {
        /// The table's signature.
        table: &'static str,
        /// What guest memory said.
        cause: GuestMemoryError,
    },
}

/// Writes the tables that describe `platform` and returns the guest-physical address of the RSDP.
///
/// # Errors
/// See [`AcpiError`]; guest memory may hold some of the tables then.
pub fn write(memory: &Memory, platform: &Platform) -> Result<u64, AcpiError> {
    if !(1..=CPUS_MAX).contains(&platform.cpus) {
        return Err(AcpiError::Cpus(platform.cpus));
    }
    let rsdp_address = ACPI_TABLES.start;
    let mut writer = Writer { memory, next: rsdp_address + Rsdp::len() as u64 };
    let facs = writer.append("FACS", &FACS::new())?;
    let dsdt = writer.append("DSDT", &dsdt(platform)?)?;
    let fadt = writer.append("FADT", &fadt(facs, dsdt).finalize())?;
    let madt = writer.append("MADT", &madt(platform.cpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = writer.append("XSDT", &xsdt)?;
    writer.write_at("RSDP", &Rsdp::new(OEM_ID, xsdt), rsdp_address)?;
    Ok(rsdp_address)
}

/// Lays tables one after the other.
struct Writer<'m> {
    memory: &'m Memory,
    next: u64,
}

impl Writer<'_> {
    fn append(&mut self, name: &'static str, table: &dyn Aml) -> Result<u64, AcpiError> {
        let address = self.next.next_multiple_of(TABLE_ALIGNMENT);
        self.next = self.write_at(name, table, address)?;
        Ok(address)
    }

    /// Returns the address behind the table.
    fn write_at(&self, name: &'static str, table: &dyn Aml, address: u64) -> Result<u64, AcpiError> {
        let bytes = bytes_of(table);
        let end = address + bytes.len() as u64;
        assert!(end <= ACPI_TABLES.end, "{name}: the limits on CPUs and devices keep the tables in their place");
        self.memory
            .write_slice(&bytes, GuestAddress(address))
            .map_err(|cause| AcpiError::Write { table: name, cause })?;
        Ok(end)
    }
}

fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(facs: u64, dsdt: u64) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Of the two buttons, power is fixed hardware (its flag is clear) and sleep is not there.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.x_pm1a_evt_blk = io_register(PM1A_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.pm1_cnt_len = 2;
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.x_pm1a_cnt_blk = io_register(PM1A_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.pm_tmr_len = 4;
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.x_pm_tmr_blk = io_register(PM_TIMER_PORT, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2_LATENCY_US.into();
    fadt.p_lvl3_lat = NO_C3_LATENCY_US.into();
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_MSI | BOOT_NO_CMOS_RTC).into();
    fadt.reset_reg = io_register(I8042_COMMAND_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = I8042_RESET_COMMAND;
    fadt
}

fn io_register(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
}

/// The MADT, put together from the crate's structures: its own table type has no interrupt source override.
fn madt(cpus: u8) -> Sdt {
    let mut body = Vec::new();
    body.dword(LOCAL_APIC_ADDRESS);
    body.dword(MADT_PCAT_COMPAT);
    for id in 0..cpus {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    // KVM's I/O APIC answers with id 0 until the guest writes another; ids of the two kinds do not collide in ACPI.
    IoApic::new(0, IO_APIC_ADDRESS, 0).to_aml_bytes(&mut body);
    InterruptSourceOverride { irq: SCI_GSI as u8, gsi: SCI_GSI, flags: ACTIVE_HIGH | LEVEL_TRIGGERED }
        .to_aml_bytes(&mut body);
    LocalApicNmi.to_aml_bytes(&mut body);
    table(*b"APIC", 5, &body)
}

/// MPS INTI flags (ACPI 6.5, table 5.26).
const ACTIVE_HIGH: u16 = 0b01;
const LEVEL_TRIGGERED: u16 = 0b11 << 2;

/// An ISA interrupt that differs from "edge-triggered, active high, GSI of the same number" (ACPI 6.5, 5.2.12.5).
struct InterruptSourceOverride {
    irq: u8,
    gsi: u32,
    flags: u16,
}

impl Aml for InterruptSourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&[2, 10, 0, self.irq]);
        sink.dword(self.gsi);
        sink.word(self.flags);
    }
}

/// NMI is wired to LINT1 of all CPUs (ACPI 6.5, 5.2.12.7).
struct LocalApicNmi;

impl Aml for LocalApicNmi {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&[4, 6, 0xff]);
        sink.word(0);
        sink.byte(1);
    }
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, SDT_HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

fn dsdt(platform: &Platform) -> Result<Sdt, AcpiError> {
    if platform.virtio.len() > VIRTIO_DEVICES_MAX {
        return Err(AcpiError::VirtioDevices(platform.virtio.len()));
    }
    let mut devices = Vec::new();
    if platform.has_serial {
        devices.extend(serial());
    }
    if platform.has_pvpanic {
        devices.extend(pvpanic());
    }
    for (index, slot) in platform.virtio.iter().enumerate() {
        devices.extend(virtio(index, slot)?);
    }
    let mut body = Scope::raw(Path::new("\\_SB_"), devices);
    let off = Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &0u8, &0u8]);
    Name::new(Path::new("\\_S5_"), &off).to_aml_bytes(&mut body);
    Ok(table(*b"DSDT", 2, &body))
}

fn serial() -> Vec<u8> {
    bytes_of(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &1u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &IO::new(SERIAL_PORT, SERIAL_PORT, 1, SERIAL_PORTS as u8),
                    &edge_interrupt(SERIAL_GSI),
                ]),
            ),
        ],
    ))
}

fn pvpanic() -> Vec<u8> {
    /// Present, enabled, shown, working.
    const STATUS: u8 = 0x0f;
    bytes_of(&Device::new(
        Path::new("PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)])),
            &Name::new(Path::new("_STA"), &STATUS),
        ],
    ))
}

fn virtio(index: usize, slot: &VirtioSlot) -> Result<Vec<u8>, AcpiError> {
    let &VirtioSlot { mmio_base, mmio_bytes, gsi } = slot;
    let out_of_reach = || AcpiError::VirtioAddress { mmio_base, mmio_bytes };
    let base = u32::try_from(mmio_base).map_err(|_| out_of_reach())?;
    let bytes = u32::try_from(mmio_bytes).map_err(|_| out_of_reach())?;
    base.checked_add(bytes).ok_or_else(out_of_reach)?;
    Ok(bytes_of(&Device::new(
        Path::new(&format!("V{index:03}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, base, bytes), &edge_interrupt(gsi)]),
            ),
        ],
    )))
}

/// An interrupt that is edge-triggered, active high and not shared.
fn edge_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
