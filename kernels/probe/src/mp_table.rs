//! The MP table (Intel MultiProcessor Specification 1.4): which processors there are.

/// Processors the probe uses; more are left alone.
pub const MAX_CPUS: usize = 254;

/// Bytes of the floating pointer structure, which is 16-byte aligned.
pub const POINTER_BYTES: usize = 16;
/// Bytes of the configuration table's header.
pub const HEADER_BYTES: usize = 44;

/// Looks for the floating pointer in a piece of low memory; answers the configuration table's guest-physical address.
pub fn find(memory: &[u8]) -> Option<u32> {
    memory.chunks_exact(POINTER_BYTES).find_map(|pointer| {
        let valid = pointer.starts_with(b"_MP_") && pointer[8] == 1 && sums_to_zero(pointer);
        valid.then(|| u32_at(pointer, 4)).flatten()
    })
}

/// Length of the configuration table whose header this is.
pub fn table_bytes(header: &[u8]) -> Option<usize> {
    let length = usize::from(u16::from_le_bytes([*header.get(4)?, *header.get(5)?]));
    (header.starts_with(b"PCMP") && length >= HEADER_BYTES).then_some(length)
}

/// Local APIC ids of the usable processors, in the table's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processors {
    apic_ids: [u8; MAX_CPUS],
    count: usize,
}

impl Processors {
    /// Reads a configuration table; `None` if it is none or its checksum is wrong.
    pub fn parse(table: &[u8]) -> Option<Self> {
        let table = table.get(..table_bytes(table)?)?;
        if !sums_to_zero(table) {
            return None;
        }
        let mut processors = Self { apic_ids: [0; MAX_CPUS], count: 0 };
        let mut entries = table.get(HEADER_BYTES..)?;
        // Processor entries come first, are of type 0 and have 20 bytes; all others have 8.
        while let Some((entry, rest)) = entries.split_at_checked(20).filter(|(entry, _)| entry[0] == 0) {
            let enabled = entry[3] & 1 != 0;
            if enabled && processors.count < MAX_CPUS {
                processors.apic_ids[processors.count] = entry[1];
                processors.count += 1;
            }
            entries = rest;
        }
        Some(processors)
    }

    /// The ids.
    pub fn apic_ids(&self) -> &[u8] {
        &self.apic_ids[..self.count]
    }
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_checksum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
        bytes[at] = 0;
        bytes[at] = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte));
        bytes
    }

    fn table(processors: &[(u8, bool)]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..4].copy_from_slice(b"PCMP");
        for &(apic_id, enabled) in processors {
            let mut entry = [0; 20];
            entry[1] = apic_id;
            entry[3] = u8::from(enabled);
            bytes.extend(entry);
        }
        bytes.extend([1, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
        let length = (bytes.len() as u16).to_le_bytes();
        bytes[4..6].copy_from_slice(&length);
        with_checksum(bytes, 7)
    }

    #[test]
    fn usable_processors_are_listed() {
        let table = table(&[(0, true), (1, false), (2, true)]);
        assert_eq!(Processors::parse(&table).expect("the table is right").apic_ids(), [0, 2]);
        let mut broken = table.clone();
        broken[50] ^= 1;
        assert_eq!(Processors::parse(&broken), None);
        assert_eq!(Processors::parse(&table[..40]), None);
    }

    #[test]
    fn more_processors_than_fit_are_left_out() {
        let table = table(&[(3, true); MAX_CPUS + 5]);
        assert_eq!(Processors::parse(&table).expect("the table is right").apic_ids().len(), MAX_CPUS);
    }

    #[test]
    fn the_pointer_is_found_on_its_boundary() {
        let mut memory = vec![0; 1024];
        let mut pointer = vec![0; 16];
        pointer[..4].copy_from_slice(b"_MP_");
        pointer[4..8].copy_from_slice(&0x9_fc10u32.to_le_bytes());
        pointer[8] = 1;
        memory[48..64].copy_from_slice(&with_checksum(pointer, 10));
        assert_eq!(find(&memory), Some(0x9_fc10));
        assert_eq!(find(&memory[8..]), None);
        memory[63] ^= 1;
        assert_eq!(find(&memory), None);
    }

    proptest! {
        #[test]
        fn no_table_is_too_strange(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if bytes.len() >= 8 {
                bytes[..4].copy_from_slice(b"PCMP");
                bytes[5] = 0;
                let length = usize::from(bytes[4]).clamp(8, bytes.len());
                let head = with_checksum(bytes[..length].to_vec(), 7);
                bytes[..length].copy_from_slice(&head);
            }
            let _ = Processors::parse(&bytes);
            let _ = find(&bytes);
        }
    }
}
