//! One processor: its block, which entry.s shares, and the services of CPL 0.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use cistern_probe::PAGE_SIZE;

/// Events that interrupts leave in a processor's block.
pub mod event {
    /// A device wants attention.
    pub const DEVICE: u32 = 1;
    /// The processor's timer ran out.
    pub const TIMER: u32 = 2;
    /// Another processor has something to say.
    pub const WAKE: u32 = 4;
}

/// Numbers of the services in entry.s.
const HALT: u64 = 0;
const PRINT: u64 = 1;
const WRITE_MSR: u64 = 2;
const ALLOW_INTERRUPTS: u64 = 3;
const TRIPLE_FAULT: u64 = 4;
const TAKE_BYTE: u64 = 5;

const TSS_OFFSET: u64 = 0x40;
const GDT_OFFSET: u64 = 0x100;
/// The TSS, an I/O bitmap of 32 bytes and its end.
const TSS_LIMIT: u64 = 0x88;
/// Index of the TSS descriptor in the GDT.
const TSS_DESCRIPTOR: usize = 5;

/// The page each processor has to itself; offsets as in entry.s. Its CPL 0 stack fills the rest.
#[repr(C, align(4096))]
pub struct Block {
    pending: AtomicU32,
    _padding: u32,
    user_stack: u64,
    user_entry: u64,
    user_argument: u64,
    _reserved: [u64; 4],
    tss: [u16; 96],
    gdt: [u64; 7],
    gdt_pointer: [u16; 5],
}

const _: () = assert!(core::mem::offset_of!(Block, tss) as u64 == TSS_OFFSET);
const _: () = assert!(core::mem::offset_of!(Block, gdt) as u64 == GDT_OFFSET);
const _: () = assert!(core::mem::offset_of!(Block, gdt_pointer) == 0x138);

/// Splits a value into the 16-bit pieces of the table it goes to.
fn put(pieces: &mut [u16], value: u64) {
    for (at, piece) in pieces.iter_mut().enumerate() {
        *piece = (value >> (16 * at)) as u16;
    }
}

impl Block {
    /// Prepares the block of another processor: it will run `entry(argument, block)` at CPL 3.
    pub fn prepare(
        &mut self,
        boot: &Cpu,
        user_stack_top: u64,
        entry: unsafe extern "C" fn(u64, *mut Self) -> !,
        argument: u64,
    ) {
        let start = core::ptr::from_mut(self) as u64;
        // SAFETY: the boot processor's block lives for ever; only `pending` in it changes, which is not read here.
        self.gdt = unsafe { (*boot.block).gdt };
        let tss = start + TSS_OFFSET;
        self.gdt[TSS_DESCRIPTOR] = TSS_LIMIT | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        self.gdt[TSS_DESCRIPTOR + 1] = tss >> 32;
        put(&mut self.tss[2..6], start + PAGE_SIZE);
        // The I/O bitmap follows: ports below 0x100 are allowed (zero), then its end.
        self.tss[51] = 104;
        self.tss[68] = 0xff;
        self.gdt_pointer[0] = size_of_val(&self.gdt) as u16 - 1;
        put(&mut self.gdt_pointer[1..], start + GDT_OFFSET);
        // As after a call: 8 below a 16-byte boundary.
        self.user_stack = user_stack_top - 8;
        self.user_entry = entry as *const () as u64;
        self.user_argument = argument;
    }
}

/// The processor this code runs on.
#[derive(Clone, Copy)]
pub struct Cpu {
    block: *mut Block,
}

impl Cpu {
    /// # Safety
    /// `block` is the block of the processor that runs this, and only that processor uses the result.
    pub const unsafe fn new(block: *mut Block) -> Self {
        Self { block }
    }

    fn pending(&self) -> &AtomicU32 {
        // SAFETY: the block lives for ever; the field is atomic.
        unsafe { &(*self.block).pending }
    }

    /// Whether any of these events is waiting to be taken.
    #[inline]
    pub fn has_event(&self, events: u32) -> bool {
        self.pending().load(Ordering::Relaxed) & events != 0
    }

    /// Takes those of these events that are waiting.
    pub fn take_events(&self, events: u32) -> u32 {
        self.pending().fetch_and(!events, Ordering::AcqRel) & events
    }

    /// Sleeps until an event is waiting; returns at once if one is. May return without one.
    pub fn halt(&self) {
        service(HALT, 0, 0);
    }

    /// Takes interrupts from now on.
    pub fn allow_interrupts(&self) {
        service(ALLOW_INTERRUPTS, 0, 0);
    }

    /// Writes a model-specific register; false if there is none of that number.
    #[must_use]
    pub fn write_msr(&self, register: u32, value: u64) -> bool {
        service(WRITE_MSR, register.into(), value) == 0
    }
}

/// Writes bytes to the serial port, faster than port by port on hosts where CPL 0 is interpreted.
pub fn print_bytes(bytes: &[u8]) {
    service(PRINT, bytes.as_ptr() as u64, bytes.len() as u64);
}

/// Takes a byte that has come on the serial port; false if there is none.
pub fn take_byte() -> bool {
    service(TAKE_BYTE, 0, 0) != 0
}

/// Where a VMM may take an exit status from.
const EXIT_PORT: u16 = 0xf4;
/// Exit status: pages were bad.
pub const END_BAD_PAGES: u8 = 1;
/// Exit status: the probe could not go on.
pub const END_ERROR: u8 = 2;

/// Ends the guest with an exit status, where the VMM takes one; elsewhere it just resets.
pub fn end(status: u8) -> ! {
    write_port(EXIT_PORT, status);
    reset()
}

/// Ends the guest through the keyboard controller; where there is none, by a triple fault.
pub fn reset() -> ! {
    write_port(0x64, 0xfe);
    service(TRIPLE_FAULT, 0, 0);
    loop {
        core::hint::spin_loop();
    }
}

fn service(number: u64, first: u64, second: u64) -> u64 {
    let answer;
    // SAFETY: HLT at CPL 3 enters entry.s, which keeps every register but these; the services touch only what their
    // callers above pass.
    unsafe {
        asm!("hlt", inout("rax") number => answer, inout("rdi") first => _, inout("rsi") second => _,
            out("rcx") _, out("rdx") _);
    }
    answer
}

/// Writes a byte to an I/O port.
pub fn write_port(port: u16, value: u8) {
    // SAFETY: the I/O bitmap allows ports below 0x100; the ports written here change no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a byte from an I/O port.
pub fn read_port(port: u16) -> u8 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads a 32-bit device register.
///
/// # Safety
/// `address` is a mapped device register.
pub unsafe fn read_register(address: u64) -> u32 {
    let value;
    // SAFETY: the caller's; a plain MOV, which every hypervisor's emulation knows.
    unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// Writes a 32-bit device register.
///
/// # Safety
/// `address` is a mapped device register, and what it sets off is sound.
pub unsafe fn write_register(address: u64, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack, preserves_flags)) };
}

/// The time stamp counter, read after everything before it has finished and before anything behind it starts.
#[inline]
pub fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter; the fences keep memory accesses on their side of it.
    unsafe { asm!("lfence", "rdtsc", "lfence", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(low) | u64::from(high) << 32
}
