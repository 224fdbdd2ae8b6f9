use std::slice;
use std::sync::Arc;

use cistern_memory::GuestRam;

use super::*;

fn guest_ram(bytes: u64) -> Arc<GuestRam> {
    GuestRam::new(slice::from_ref(&(0..bytes))).expect("guest RAM")
}

/// A table found by address: checked sum, full length.
fn table_at(memory: &Memory, address: u64, signature: &[u8; 4]) -> Vec<u8> {
    let mut header = [0; 8];
    memory.read_slice(&mut header, GuestAddress(address)).expect("RAM");
    assert_eq!(&header[..4], signature);
    let mut table = vec![0; u32_at(&header, 4) as usize];
    memory.read_slice(&mut table, GuestAddress(address)).expect("RAM");
    assert!(ACPI_TABLES.contains(&address) && address + table.len() as u64 <= ACPI_TABLES.end);
    if signature != b"FACS" {
        assert_eq!(sum(&table), 0, "{signature:?}");
    }
    table
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

struct Tables {
    fadt: Vec<u8>,
    madt: Vec<u8>,
    dsdt: Vec<u8>,
}

/// Writes the tables and follows them from the RSDP, as a guest does.
fn tables(platform: &Platform) -> Tables {
    let ram = guest_ram(2 << 20);
    let memory = ram.memory();
    let rsdp_address = write(memory, platform).expect("tables");
    assert_eq!(rsdp_address, 0xe_0000);
    let mut rsdp = [0; 36];
    memory.read_slice(&mut rsdp, GuestAddress(rsdp_address)).expect("RAM");
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));

    let xsdt = table_at(memory, u64_at(&rsdp, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table_at(memory, u64_at(&xsdt, 36), b"FACP");
    let madt = table_at(memory, u64_at(&xsdt, 44), b"APIC");
    let dsdt = table_at(memory, u64_at(&fadt, 140), b"DSDT");
    assert_eq!(u64::from(u32_at(&fadt, 40)), u64_at(&fadt, 140), "both pointers to the DSDT agree");
    let facs = u64::from(u32_at(&fadt, 36));
    assert_eq!((facs % 64, table_at(memory, facs, b"FACS").len()), (0, 64));
    Tables { fadt, madt, dsdt }
}

fn platform(cpus: u8, devices: u64) -> Platform {
    let slot =
        |index| VirtioSlot { mmio_base: 0xd000_0000 + index * 0x1000, mmio_bytes: 0x1000, gsi: 5 + index as u32 };
    Platform { cpus, virtio: (0..devices).map(slot).collect(), has_serial: true, has_pvpanic: true }
}

#[test]
fn fadt_names_the_registers_the_power_device_has() {
    let fadt = tables(&platform(1, 0)).fadt;
    assert_eq!(fadt.len(), 276);
    assert_eq!(u16_at(&fadt, 46), 9, "SCI");
    assert_eq!(u32_at(&fadt, 48), 0, "no SMI command: always in ACPI mode");
    assert_eq!((u32_at(&fadt, 56), fadt[88]), (0x600, 4), "PM1a event");
    assert_eq!((u32_at(&fadt, 64), fadt[89]), (0x604, 2), "PM1a control");
    assert_eq!((u32_at(&fadt, 76), fadt[91]), (0x608, 4), "PM timer");
    assert_eq!((fadt[148], u64_at(&fadt, 152)), (1, 0x600), "PM1a event, extended");
    assert_eq!((fadt[172], u64_at(&fadt, 176)), (1, 0x604), "PM1a control, extended");
    assert_eq!((fadt[208], u64_at(&fadt, 212)), (1, 0x608), "PM timer, extended");
    assert_eq!((fadt[116], u64_at(&fadt, 120), fadt[128]), (1, 0x64, 0xfe), "reset");
    assert_eq!(u16_at(&fadt, 109), 0b10_1101, "boot flags: no keyboard controller");
    let flags = u32_at(&fadt, 112);
    assert_eq!(flags & (1 << 20 | 1 << 4), 0, "full ACPI hardware, power button in it");
    assert_ne!(flags & 1 << 10, 0, "the reset register may be used");
}

#[test]
fn madt_names_every_cpu_and_the_level_triggered_sci() {
    for cpus in [1, 2, 254] {
        let madt = tables(&platform(cpus, 0)).madt;
        assert_eq!((u32_at(&madt, 36), u32_at(&madt, 40)), (0xfee0_0000, 1));
        let mut entries = Vec::new();
        let mut rest = &madt[44..];
        while rest.len() > 1 {
            let (entry, others) = rest.split_at(usize::from(rest[1]));
            entries.push(entry);
            rest = others;
        }
        assert!(rest.is_empty());
        let (processors, others) = entries.split_at(usize::from(cpus));
        for (id, entry) in processors.iter().enumerate() {
            assert_eq!(**entry, [0, 8, id as u8, id as u8, 1, 0, 0, 0]);
        }
        assert_eq!(others[0], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(others[1], [2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
        assert_eq!(others[2], [4, 6, 0xff, 0, 0, 1]);
        assert_eq!(others.len(), 3, "no other override: GSI 0 is pin 0 in KVM");
    }
}

#[test]
fn dsdt_holds_the_devices_asked_for() {
    let dsdt = tables(&platform(1, 3)).dsdt;
    // Name (_S5, Package (4) {0, 0, 0, 0})
    assert!(contains(&dsdt, b"\x08\\_S5_\x12\x06\x04\0\0\0\0"));
    // IO (Decode16, 0x3f8, 0x3f8, 1, 8) and Interrupt (consumer, edge, high, exclusive) {4}
    assert!(contains(&dsdt, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 3, 1, 4, 0, 0, 0]));
    assert!(contains(&dsdt, &[0x47, 1, 5, 5, 5, 5, 1, 1]));
    for index in 0..3u8 {
        assert!(contains(&dsdt, format!("V{index:03}").as_bytes()));
        // Memory32Fixed (ReadWrite, base, 0x1000), Interrupt (...) {gsi}
        let base = 0xd000_0000 + u32::from(index) * 0x1000;
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend(base.to_le_bytes());
        resources.extend([0, 0x10, 0, 0, 0x89, 6, 0, 3, 1, 5 + index, 0, 0, 0]);
        assert!(contains(&dsdt, &resources), "device {index}");
    }
    assert!(!contains(&dsdt, b"V003"));

    let bare = tables(&Platform { cpus: 1, ..Platform::default() }).dsdt;
    assert!(!contains(&bare, b"COM1") && !contains(&bare, b"QEMU0001") && !contains(&bare, b"LNRO0005"));
}

#[test]
fn what_cannot_be_described_is_refused() {
    let ram = guest_ram(2 << 20);
    let refusal = |platform: &Platform| write(ram.memory(), platform).expect_err("refused").to_string();
    assert_eq!(refusal(&platform(0, 0)), "ACPI tables: 0 CPUs: the number must be 1 to 254");
    assert_eq!(refusal(&platform(255, 0)), "ACPI tables: 255 CPUs: the number must be 1 to 254");
    assert_eq!(refusal(&platform(1, 25)), "ACPI tables: 25 virtio devices: at most 24");
    let mut high = platform(1, 1);
    high.virtio[0].mmio_base = 0xffff_f800;
    assert_eq!(refusal(&high), "ACPI tables: virtio device at 0xfffff800, 4096 bytes: not below 4 GiB");

    let small = guest_ram(0x8_0000);
    assert!(matches!(write(small.memory(), &platform(1, 0)), Err(AcpiError::Write { table: "FACS", .. })));
}

#[test]
fn a_full_machine_fits() {
    let dsdt = tables(&platform(254, 24)).dsdt;
    assert!(contains(&dsdt, b"V023"));
}
