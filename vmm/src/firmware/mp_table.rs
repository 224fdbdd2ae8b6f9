//! The MP table, for guests without ACPI (Intel MultiProcessor Specification 1.4, chapter 4).

use cistern_memory::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{
    BASE_MEMORY_TAIL, CPUS_MAX, IO_APIC_ADDRESS, IO_APIC_PINS, LOCAL_APIC_ADDRESS, MP_CONFIGURATION, Platform,
};

/// Revision 1.4, as both headers give it.
const SPEC_REVISION: u8 = 4;
const FLOATING_POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;

/// Version of an integrated local APIC, and of KVM's I/O APIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const CPU_ENABLED: u8 = 1 << 0;
const CPU_BOOTSTRAP: u8 = 1 << 1;
/// CPU signature and feature flags of the lowest common denominator (a P6 with FPU and APIC): guests ask CPUID.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;

const IO_APIC_ENABLED: u8 = 1;
const ISA_BUS_ID: u8 = 0;

const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
/// Polarity and trigger mode as the bus has them: ISA is active high, edge-triggered.
const AS_THE_BUS: u16 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Why the MP table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum MpTableError {
    /// There is no CPU, or more than the table can name.
    #[error("MP table: {0} CPUs: the number must be 1 to {CPUS_MAX}")]
    Cpus(u8),
    /// The table's place is not guest RAM.
    #[error("MP table: writing at {address:#x}: {cause}")]
    Write {
        /// Guest-physical address.
        address: u64,
        /// What guest memory said.
        cause: GuestMemoryError,
    },
}

/// Writes the table that describes `platform` and returns the guest-physical address of the floating pointer, which
/// guests find by themselves.
///
/// # Errors
/// See [`MpTableError`].
pub fn write(memory: &Memory, platform: &Platform) -> Result<u64, MpTableError> {
    if !(1..=CPUS_MAX).contains(&platform.cpus) {
        return Err(MpTableError::Cpus(platform.cpus));
    }
    let configuration = configuration(platform.cpus);
    let pointer = floating_pointer(MP_CONFIGURATION.start as u32);
    for (bytes, address) in [(&configuration[..], MP_CONFIGURATION.start), (&pointer[..], BASE_MEMORY_TAIL.start)] {
        memory.write_slice(bytes, GuestAddress(address)).map_err(|cause| MpTableError::Write { address, cause })?;
    }
    Ok(BASE_MEMORY_TAIL.start)
}

fn floating_pointer(configuration_address: u32) -> [u8; FLOATING_POINTER_BYTES] {
    let mut pointer = [0; FLOATING_POINTER_BYTES];
    pointer[0..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&configuration_address.to_le_bytes());
    pointer[8] = (FLOATING_POINTER_BYTES / 16) as u8;
    pointer[9] = SPEC_REVISION;
    // The feature bytes stay zero: a configuration table is there, and interrupts start in virtual wire mode.
    pointer[10] = checksum(&pointer);
    pointer
}

fn configuration(cpus: u8) -> Vec<u8> {
    // Ids must differ across both kinds of APIC; the first free one is the I/O APIC's.
    let io_apic_id = cpus;
    let mut entries = Entries { bytes: vec![0; HEADER_BYTES], count: 0 };
    for id in 0..cpus {
        let flags = if id == 0 { CPU_ENABLED | CPU_BOOTSTRAP } else { CPU_ENABLED };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[ENTRY_PROCESSOR, id, LOCAL_APIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
        entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        entries.push(entry);
    }
    let [b0, b1, b2, b3, b4, b5] = *b"ISA   ";
    entries.push([ENTRY_BUS, ISA_BUS_ID, b0, b1, b2, b3, b4, b5]);
    let [a0, a1, a2, a3] = IO_APIC_ADDRESS.to_le_bytes();
    entries.push([ENTRY_IO_APIC, io_apic_id, IO_APIC_VERSION, IO_APIC_ENABLED, a0, a1, a2, a3]);
    for pin in 0..IO_APIC_PINS {
        entries.push_interrupt(ENTRY_IO_INTERRUPT, INTERRUPT_INT, pin, io_apic_id, pin);
    }
    entries.push_interrupt(ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, 0);
    entries.push_interrupt(ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, ALL_LOCAL_APICS, 1);
    entries.finish()
}

/// The configuration table while it grows.
struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn push<const N: usize>(&mut self, entry: [u8; N]) {
        self.bytes.extend_from_slice(&entry);
        self.count += 1;
    }

    fn push_interrupt(&mut self, entry: u8, kind: u8, isa_irq: u8, apic_id: u8, pin: u8) {
        let [flags_low, flags_high] = AS_THE_BUS.to_le_bytes();
        self.push([entry, kind, flags_low, flags_high, ISA_BUS_ID, isa_irq, apic_id, pin]);
    }

    /// Fills in the header.
    fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u16;
        let header = &mut self.bytes[..HEADER_BYTES];
        header[0..4].copy_from_slice(b"PCMP");
        header[4..6].copy_from_slice(&length.to_le_bytes());
        header[6] = SPEC_REVISION;
        header[8..16].copy_from_slice(b"CISTERN ");
        header[16..28].copy_from_slice(b"MICROVM     ");
        header[34..36].copy_from_slice(&self.count.to_le_bytes());
        header[36..40].copy_from_slice(&LOCAL_APIC_ADDRESS.to_le_bytes());
        self.bytes[7] = checksum(&self.bytes);
        self.bytes
    }
}

/// The byte that makes the sum of all zero, where the byte itself is still zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use std::slice;
    use std::sync::Arc;

    use cistern_memory::GuestRam;

    use super::*;

    fn guest_ram(bytes: u64) -> Arc<GuestRam> {
        GuestRam::new(slice::from_ref(&(0..bytes))).expect("guest RAM")
    }

    /// The table in a guest's memory, followed as a guest follows it: configuration header and entries by their type.
    fn read_back(memory: &Memory) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut pointer = [0; 16];
        memory.read_slice(&mut pointer, GuestAddress(0x9_fc00)).expect("RAM");
        assert_eq!(&pointer[..4], b"_MP_");
        assert_eq!(pointer.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let address = u32::from_le_bytes(pointer[4..8].try_into().expect("four bytes"));

        let mut header = vec![0; 44];
        memory.read_slice(&mut header, GuestAddress(address.into())).expect("RAM");
        assert_eq!(&header[..4], b"PCMP");
        let mut table = vec![0; usize::from(u16::from_le_bytes([header[4], header[5]]))];
        memory.read_slice(&mut table, GuestAddress(address.into())).expect("RAM");
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);

        let mut entries = Vec::new();
        let mut rest = &table[44..];
        while let Some(kind) = rest.first() {
            let (entry, others) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = others;
        }
        assert_eq!(u16::from_le_bytes([header[34], header[35]]), entries.len() as u16);
        (header, entries)
    }

    #[test]
    fn every_number_of_cpus_fits_or_is_refused() {
        let ram = guest_ram(2 << 20);
        for cpus in [1, 2, 37, 38, 64, 254] {
            let platform = Platform { cpus, ..Platform::default() };
            assert_eq!(write(ram.memory(), &platform).expect("a table"), 0x9_fc00);
            let (_, entries) = read_back(ram.memory());
            let processors: Vec<_> = entries.iter().filter(|entry| entry[0] == 0).collect();
            assert_eq!(processors.len(), usize::from(cpus));
            for (id, entry) in processors.iter().enumerate() {
                assert_eq!(usize::from(entry[1]), id);
                assert_eq!(entry[3], if id == 0 { 0b11 } else { 0b01 });
            }
            let io_apic = entries.iter().find(|entry| entry[0] == 2).expect("an I/O APIC");
            assert!(processors.iter().all(|entry| entry[1] != io_apic[1]), "ids differ");
        }
        for cpus in [0, 255] {
            let platform = Platform { cpus, ..Platform::default() };
            assert!(matches!(write(ram.memory(), &platform), Err(MpTableError::Cpus(n)) if n == cpus));
        }
    }

    #[test]
    fn interrupts_go_to_the_pin_of_their_number() {
        let ram = guest_ram(2 << 20);
        write(ram.memory(), &Platform { cpus: 3, ..Platform::default() }).expect("a table");
        let (header, entries) = read_back(ram.memory());
        assert_eq!(header[36..40], 0xfee0_0000u32.to_le_bytes());
        let pins: Vec<_> = entries.iter().filter(|entry| entry[0] == 3).collect();
        assert_eq!(pins.len(), 24);
        for (pin, entry) in pins.iter().enumerate() {
            let pin = pin as u8;
            assert_eq!(entry[..], [3, 0, 0, 0, 0, pin, 3, pin]);
        }
        let local: Vec<_> = entries.iter().filter(|entry| entry[0] == 4).cloned().collect();
        assert_eq!(local, [vec![4, 3, 0, 0, 0, 0, 0, 0], vec![4, 1, 0, 0, 0, 0, 0xff, 1]]);
    }

    #[test]
    fn a_guest_without_that_memory_is_an_error() {
        let ram = guest_ram(0x8_0000);
        let error = write(ram.memory(), &Platform { cpus: 1, ..Platform::default() }).expect_err("no RAM there");
        assert!(error.to_string().contains("0xf0000"), "{error}");
    }
}
