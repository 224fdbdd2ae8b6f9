//! What the VMM left in memory: boot parameters (Linux boot protocol), command line, memory map, MP table. All of it is
//! copied, because the memory it lies in is used afterwards.

use cistern_probe::mp_table::{self, POINTER_BYTES, Processors};
use cistern_probe::pool::{MAX_RANGES, Range};

const E820_COUNT: usize = 0x1e8;
const MAGIC: usize = 0x202;
const COMMAND_LINE: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_BYTES: usize = 20;
const E820_MAX: usize = 128;
const E820_RAM: u32 = 1;

const MAX_COMMAND_LINE: usize = 4096;
const MAX_MP_TABLE: usize = 8192;

/// Guest RAM as the memory map has it.
#[derive(Default)]
pub struct Ram {
    pieces: [Range; MAX_RANGES],
    count: usize,
}

impl Ram {
    /// Its pieces, in the map's order.
    pub fn pieces(&self) -> &[Range] {
        &self.pieces[..self.count]
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.pieces().iter().map(|piece| piece.bytes()).sum()
    }

    /// The address behind its end.
    pub fn end(&self) -> u64 {
        self.pieces().iter().map(|piece| piece.end).max().unwrap_or_default()
    }
}

/// The parts of the boot parameters the probe uses.
pub struct BootParameters {
    /// Guest RAM.
    pub ram: Ram,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_length: usize,
}

impl BootParameters {
    /// Copies everything out.
    ///
    /// # Safety
    /// `parameters` points to boot parameters as the Linux boot protocol has them, their command line in
    /// mapped memory.
    pub unsafe fn read(parameters: *const u8) -> Result<Self, &'static str> {
        // SAFETY: all offsets lie inside the 4096 bytes of boot parameters.
        let u32_at = |offset: usize| unsafe { parameters.add(offset).cast::<u32>().read_unaligned() };
        let u64_at = |offset: usize| u64::from(u32_at(offset)) | u64::from(u32_at(offset + 4)) << 32;
        if u32_at(MAGIC) != u32::from_le_bytes(*b"HdrS") {
            return Err("boot parameters without a header: not started by the Linux 64-bit boot protocol");
        }
        let mut boot = Self { ram: Ram::default(), command_line: [0; MAX_COMMAND_LINE], command_line_length: 0 };
        let entries = (u32_at(E820_COUNT) & 0xff) as usize;
        for entry in 0..entries.min(E820_MAX) {
            let at = E820_TABLE + entry * E820_ENTRY_BYTES;
            let (start, bytes, kind) = (u64_at(at), u64_at(at + 8), u32_at(at + 16));
            if kind == E820_RAM && boot.ram.count < MAX_RANGES {
                boot.ram.pieces[boot.ram.count] = Range { start, end: start.saturating_add(bytes) };
                boot.ram.count += 1;
            }
        }
        let line = u32_at(COMMAND_LINE) as usize as *const u8;
        while !line.is_null() && boot.command_line_length < MAX_COMMAND_LINE {
            // SAFETY: the command line ends with a zero, which has not been seen yet.
            let byte = unsafe { line.add(boot.command_line_length).read() };
            if byte == 0 {
                break;
            }
            boot.command_line[boot.command_line_length] = byte;
            boot.command_line_length += 1;
        }
        Ok(boot)
    }

    /// The command line; the part before the first byte that is not UTF-8.
    pub fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_length];
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

/// Bytes at an address below 1 GiB.
fn memory(start: u64, bytes: usize) -> &'static [u8] {
    // SAFETY: the first GiB is mapped, and nothing writes to it while boot is reading.
    unsafe { core::slice::from_raw_parts(start as *const u8, bytes) }
}

/// The processors of the MP table, `None` without one. Looked for in the last KiB of base memory, then in the ROM area.
pub fn find_processors() -> Option<Processors> {
    const PLACES: [(u64, usize); 2] = [(0x9_fc00, 0x400), (0xe_0000, 0x2_0000)];
    let table = PLACES.iter().find_map(|&(start, bytes)| mp_table::find(memory(start, bytes)))?;
    let in_low_memory = |bytes: usize| u64::from(table) + bytes as u64 <= 1 << 30;
    if !in_low_memory(mp_table::HEADER_BYTES) {
        return None;
    }
    let bytes = mp_table::table_bytes(memory(table.into(), mp_table::HEADER_BYTES))?;
    if bytes > MAX_MP_TABLE || !in_low_memory(bytes) {
        return None;
    }
    Processors::parse(memory(table.into(), bytes))
}

const _: () = assert!(POINTER_BYTES == 16);
