//! The serial port: one JSON object a line. Also where everything that goes wrong ends.

use core::fmt::Display;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use cistern_probe::json::Line;

use crate::cpu;

/// Prints a line.
pub fn print(line: &mut Line) {
    cpu::print_bytes(line.finish());
}

/// Prints why the probe cannot go on, and ends. The first failure is printed, others are its consequences.
pub fn fail(cause: impl Display) -> ! {
    static FAILED: AtomicBool = AtomicBool::new(false);
    if !FAILED.swap(true, Ordering::SeqCst) {
        let mut line = Line::new();
        line.text("error", cause);
        print(&mut line);
    }
    cpu::end(cpu::END_ERROR)
}

/// Where entry.s sends the processor after an exception, on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn report_exception(vector: u64, error_code: u64, rip: u64, cr2: u64) -> ! {
    fail(format_args!("exception {vector} at rip {rip:#x}, error code {error_code:#x}, cr2 {cr2:#x}"))
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    match info.location() {
        Some(at) => fail(format_args!("panic: {} at {}:{}", info.message(), at.file(), at.line())),
        None => fail(format_args!("panic: {}", info.message())),
    }
}

/// The core library's unwind tables name this; the linker script leaves them out, and nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
