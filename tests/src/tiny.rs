//! Guests of a few instructions: machine code in an ELF file, for tests of what a kernel would take too long to say.
//!
//! The code is made of instructions that mean the same in 32-bit and in 64-bit mode, so that one text serves both entries.

use std::fs;
use std::path::Path;

/// Where the code is loaded and entered.
const LOAD_ADDRESS: u32 = 0x10_0000;

const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the note that names the PVH entry point.
const PHYS32_ENTRY: u32 = 18;
/// An entry point no one-to-one mapping reaches: what a kernel linked for its virtual address has.
const UNUSABLE_ENTRY: u64 = 0xffff_ffff_8100_0000;

const SERIAL_PORT: u16 = 0x3f8;
const LINE_STATUS_PORT: u16 = 0x3fd;
const KEYBOARD_PORT: u8 = 0x64;
const EXIT_PORT: u8 = 0xf4;
const PVPANIC_PORT: u16 = 0x505;
const POWER_STATUS_PORT: u16 = 0x600;
const POWER_CONTROL_PORT: u16 = 0x604;
/// A port without a device: reading it costs time and changes nothing.
const DELAY_PORT: u8 = 0x80;

/// Which boot protocol a guest is entered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The ELF file's own entry point, in 64-bit mode.
    Linux64,
    /// The entry point in the PVH note, in 32-bit mode; the file's own cannot be used.
    Pvh,
}

/// Machine code under construction; each method appends. It ends with something that ends, or with [`Code::halt`].
#[derive(Debug, Clone, Default)]
pub struct Code {
    bytes: Vec<u8>,
}

impl Code {
    /// No code yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prints a text on the serial port.
    pub fn print(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self = self.set_dx(SERIAL_PORT);
            // mov al, byte; out dx, al
            self.bytes.extend([0xb0, byte, 0xee]);
        }
        self
    }

    /// Prints the kernel command line, found as the boot protocol says.
    pub fn print_command_line(self, protocol: Protocol) -> Self {
        match protocol {
            // mov esi, [rsi + 0x228]: the zero page's cmd_line_ptr
            Protocol::Linux64 => self.raw(&[0x8b, 0xb6, 0x28, 0x02, 0x00, 0x00]),
            // mov esi, [ebx + 24]: the start info's cmdline_paddr
            Protocol::Pvh => self.raw(&[0x8b, 0x73, 24]),
        }
        .set_dx(SERIAL_PORT)
        // again: lodsb; test al, al; jz end; out dx, al; jmp again; end:
        .raw(&[0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8])
    }

    /// Waits for a byte from the serial port: it is in AL then, and the port in DX.
    pub fn read_key(self) -> Self {
        // again: in al, dx; test al, 1; jz again; mov dl, low half of the port; in al, dx
        self.set_dx(LINE_STATUS_PORT).raw(&[0xec, 0xa8, 0x01, 0x74, 0xfb, 0xb2, SERIAL_PORT as u8, 0xec])
    }

    /// Prints the byte read last.
    pub fn print_key(self) -> Self {
        // out dx, al
        self.raw(&[0xee])
    }

    /// Runs `then` if the byte read last is `key`.
    pub fn if_key(mut self, key: u8, then: Code) -> Self {
        let length = u8::try_from(then.bytes.len()).ok().filter(|length| *length < 128).expect("a short jump");
        // cmp al, key; jne behind
        self.bytes.extend([0x3c, key, 0x75, length]);
        self.bytes.extend(then.bytes);
        self
    }

    /// Does this without end.
    pub fn repeat(self, body: Code) -> Self {
        let distance = 0u32.wrapping_sub(body.bytes.len() as u32 + 5);
        // jmp to the body's start
        self.raw(&body.bytes).raw(&[0xe9]).raw(&distance.to_le_bytes())
    }

    /// Waits until the power button has been pressed.
    pub fn wait_for_power_button(self) -> Self {
        // again: in ax, dx; test ah, 1; jz again
        self.set_dx(POWER_STATUS_PORT).raw(&[0x66, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf9])
    }

    /// Goes through the VMM this often, and does nothing there.
    pub fn delay(self, exits: u32) -> Self {
        // mov ecx, exits; again: in al, port; loop again
        let [a, b, c, d] = exits.to_le_bytes();
        self.raw(&[0xb9, a, b, c, d, 0xe4, DELAY_PORT, 0xe2, 0xfc])
    }

    /// Ends the machine with this status, in 64 to 95.
    pub fn exit(self, status: u8) -> Self {
        self.raw(&[0xb0, status.wrapping_sub(64), 0xe6, EXIT_PORT])
    }

    /// Ends the machine with status 64, and 1 more in 32-bit mode: there 0x40 is `inc eax`, in 64-bit mode a prefix.
    pub fn exit_with_mode(self) -> Self {
        // xor eax, eax; inc eax or nothing; nop
        self.raw(&[0x31, 0xc0, 0x40, 0x90, 0xe6, EXIT_PORT])
    }

    /// Resets the machine through the keyboard controller.
    pub fn reset(self) -> Self {
        self.raw(&[0xb0, 0xfe, 0xe6, KEYBOARD_PORT])
    }

    /// Switches the machine off: ACPI S5.
    pub fn power_off(self) -> Self {
        // mov ax, SLP_EN; out dx, ax
        self.set_dx(POWER_CONTROL_PORT).raw(&[0x66, 0xb8, 0x00, 0x20, 0x66, 0xef])
    }

    /// Reports events of a kernel panic: 1 panicked, 2 the crash kernel runs.
    pub fn panic(self, events: u8) -> Self {
        self.set_dx(PVPANIC_PORT).raw(&[0xb0, events, 0xee])
    }

    /// An exception without anybody to handle it: a triple fault.
    pub fn triple_fault(self) -> Self {
        // ud2; no interrupt table is set up
        self.raw(&[0x0f, 0x0b])
    }

    /// Stays where it is, idle, deaf to interrupts.
    pub fn halt(self) -> Self {
        // again: hlt; jmp again
        self.raw(&[0xf4, 0xeb, 0xfd])
    }

    /// Appends these bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn set_dx(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high])
    }

    /// Writes the guest to a file.
    pub fn write(&self, protocol: Protocol, path: &Path) {
        fs::write(path, self.elf(protocol)).expect("a tiny guest is written");
    }

    fn elf(&self, protocol: Protocol) -> Vec<u8> {
        let note: Vec<u8> = [4, 4, PHYS32_ENTRY]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .chain(*b"Xen\0")
            .chain(LOAD_ADDRESS.to_le_bytes())
            .collect();
        let note_offset = ELF_HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES;
        let code_offset = note_offset + note.len();
        let (entry, note_kind) = match protocol {
            Protocol::Linux64 => (u64::from(LOAD_ADDRESS), 0),
            Protocol::Pvh => (UNUSABLE_ENTRY, PT_NOTE),
        };
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        // Executable, x86-64, version 1.
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        file.extend([entry, ELF_HEADER_BYTES as u64, 0].into_iter().flat_map(u64::to_le_bytes));
        file.extend(0u32.to_le_bytes());
        let sizes = [ELF_HEADER_BYTES, PROGRAM_HEADER_BYTES, 2, 0, 0, 0];
        file.extend(sizes.into_iter().flat_map(|size| (size as u16).to_le_bytes()));
        for (kind, offset, address, bytes) in
            [(PT_LOAD, code_offset, u64::from(LOAD_ADDRESS), self.bytes.len()), (note_kind, note_offset, 0, note.len())]
        {
            // Readable and executable.
            file.extend([kind, 5].into_iter().flat_map(u32::to_le_bytes));
            let (offset, bytes) = (offset as u64, bytes as u64);
            file.extend([offset, address, address, bytes, bytes, 4].into_iter().flat_map(u64::to_le_bytes));
        }
        file.extend(note);
        file.extend(&self.bytes);
        file
    }
}
