//! The serial port: a 16550 UART whose line is the machine's console.

use std::convert::Infallible;
use std::io::{self, Write};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Serial as Uart, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::port::PortDevice;

/// First I/O port (COM1).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Number of ports.
pub const SERIAL_PORTS: u16 = 8;
/// The interrupt, active high and edge-triggered.
pub const SERIAL_GSI: u32 = 4;

/// Modem control register, and in it the bit that connects the line's output to its input.
const MCR_OFFSET: u16 = 4;

/// Where the guest's output goes. Flushed after every byte, so that a
/// prompt appears; it should have no buffer of its own.
pub type Output = Box<dyn Write + Send>;

/// The serial port. Input and output do not wait for each other: an output that blocks (a stopped terminal, a full pipe)
/// holds up the vCPU that prints, which is what a slow line does, and nobody else.
pub struct Serial {
    uart: Mutex<Uart<Line, InputEvents, Staging>>,
    output: Mutex<Sink>,
}

/// What became of output the host could not take.
#[derive(Debug)]
pub struct OutputFailure {
    /// What the host said first.
    pub cause: io::Error,
    /// Bytes lost until now.
    pub lost_bytes: u64,
}

impl Serial {
    /// A serial port that interrupts the guest through `line` (an irqfd of [`SERIAL_GSI`]), tells through `input_space`
    /// when it takes input again, and prints to `output`.
    pub fn new(line: EventFd, input_space: EventFd, output: Output) -> Self {
        let events = InputEvents { starved: AtomicBool::new(false), input_space };
        Self {
            uart: Mutex::new(Uart::with_events(Line(line), events, Staging::default())),
            output: Mutex::new(Sink { output, failure: None }),
        }
    }

    /// Puts host input into the receive FIFO and returns how many bytes it took. When that is fewer than given, keep the
    /// rest: the `input_space` eventfd is signalled once the guest has read what it has.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut uart = self.uart();
        let room = uart.fifo_capacity();
        // A full FIFO is an error to the UART and an ordinary state to us; in loopback it takes nothing.
        let accepted = if room == 0 { 0 } else { uart.enqueue_raw_bytes(bytes).unwrap_or(0) };
        if accepted < bytes.len() {
            uart.events().starved.store(true, Ordering::Relaxed);
        }
        accepted
    }

    /// What went wrong with the output since the last call, `None` when nothing did. Output goes on being tried: a full
    /// disk may have room later.
    pub fn take_output_failure(&self) -> Option<OutputFailure> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).failure.take()
    }

    fn uart(&self) -> MutexGuard<'_, Uart<Line, InputEvents, Staging>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortDevice for Serial {
    fn read(&self, offset: u16, data: &mut [u8]) {
        let Ok(first) = u8::try_from(offset) else { return };
        let mut uart = self.uart();
        for (offset, value) in (first..SERIAL_PORTS as u8).zip(data) {
            *value = uart.read(offset);
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let Ok(first) = u8::try_from(offset) else { return };
        let printed = {
            let mut uart = self.uart();
            for (offset, &value) in (first..SERIAL_PORTS as u8).zip(data) {
                // Neither the line nor the staging buffer can fail.
                let _ = uart.write(offset, value);
            }
            if (offset..offset.saturating_add(data.len() as u16)).contains(&MCR_OFFSET) {
                // Input refused in loopback mode may be welcome now.
                uart.events().in_buffer_empty();
            }
            mem::take(uart.writer_mut())
        };
        if let Staging(Some(byte)) = printed {
            self.output.lock().unwrap_or_else(PoisonError::into_inner).print(byte);
        }
    }
}

/// The interrupt line, an irqfd.
struct Line(EventFd);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // An eventfd write fails only when its counter is full: then the line is raised already.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// Wakes whoever feeds the input, only if it waits: a guest that reads an empty port wakes nobody.
struct InputEvents {
    starved: AtomicBool,
    input_space: EventFd,
}

impl SerialEvents for InputEvents {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.starved.swap(false, Ordering::Relaxed) {
            // Fails only when the counter is full: then the reader is being woken already.
            let _ = self.input_space.write(1);
        }
    }
}

/// Holds what an access prints until the UART's lock is released. One byte: an access reaches the data register once.
#[derive(Default)]
struct Staging(Option<u8>);

impl Write for Staging {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.first().copied();
        Ok(usize::from(self.0.is_some()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The host's side of the output.
struct Sink {
    output: Output,
    failure: Option<OutputFailure>,
}

impl Sink {
    fn print(&mut self, byte: u8) {
        if let Err(cause) = self.output.write_all(&[byte]).and_then(|()| self.output.flush()) {
            let failure = self.failure.get_or_insert(OutputFailure { cause, lost_bytes: 0 });
            failure.lost_bytes += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{PipeReader, Read, pipe};

    use super::*;

    const DATA: u16 = 0;
    const INTERRUPT_ENABLE: u16 = 1;
    const LINE_STATUS: u16 = 5;
    const FIFO_BYTES: usize = 64;

    struct Port {
        serial: Serial,
        line: EventFd,
        input_space: EventFd,
    }

    fn port(output: Output) -> Port {
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        let (line, input_space) = (eventfd(), eventfd());
        let clone = |fd: &EventFd| fd.try_clone().expect("a second descriptor");
        Port { serial: Serial::new(clone(&line), clone(&input_space), output), line, input_space }
    }

    fn piped() -> (Port, PipeReader) {
        let (reader, writer) = pipe().expect("a pipe");
        (port(Box::new(writer)), reader)
    }

    fn read(port: &Port, offset: u16) -> u8 {
        let mut data = [0xff];
        port.serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_appears_without_a_newline() {
        let (port, mut reader) = piped();
        for byte in b"login: " {
            port.serial.write(DATA, &[*byte]);
        }
        // The port still exists: nothing was flushed by its end.
        let mut printed = [0; 7];
        reader.read_exact(&mut printed).expect("seven bytes");
        assert_eq!(&printed, b"login: ");
    }

    #[test]
    fn a_closed_pipe_is_remembered_once_and_the_guest_goes_on() {
        let (port, reader) = piped();
        drop(reader);
        port.serial.write(DATA, b"a");
        port.serial.write(DATA, b"b");
        assert_eq!(read(&port, LINE_STATUS) & 0x20, 0x20, "ready for more");
        let failure = port.serial.take_output_failure().expect("a failure");
        assert_eq!(failure.cause.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(failure.lost_bytes, 2);
        assert!(port.serial.take_output_failure().is_none());
    }

    #[test]
    fn a_full_disk_is_remembered_and_the_guest_goes_on() {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let port = port(Box::new(full));
        port.serial.write(DATA, b"a");
        let failure = port.serial.take_output_failure().expect("a failure");
        assert_eq!(failure.cause.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn input_is_taken_as_far_as_the_fifo_goes() {
        let (port, _reader) = piped();
        port.serial.write(INTERRUPT_ENABLE, &[1]);
        let input: Vec<u8> = (0..100).collect();
        assert_eq!(port.serial.enqueue(&input), FIFO_BYTES);
        assert_eq!(port.line.read().expect("interrupted"), 1);
        assert_eq!(port.serial.enqueue(&input[FIFO_BYTES..]), 0);
        for byte in &input[..FIFO_BYTES - 1] {
            assert_eq!(read(&port, DATA), *byte);
        }
        assert!(port.input_space.read().is_err(), "not drained yet");
        assert_eq!(read(&port, DATA), 63);
        assert_eq!(port.input_space.read().expect("woken"), 1);
        assert_eq!(port.serial.enqueue(&input[FIFO_BYTES..]), 36);
        assert_eq!(read(&port, DATA), 64);
    }

    #[test]
    fn reading_an_empty_port_wakes_nobody() {
        let (port, _reader) = piped();
        assert_eq!(port.serial.enqueue(b"x"), 1);
        for _ in 0..10 {
            read(&port, DATA);
        }
        assert!(port.input_space.read().is_err());
    }

    #[test]
    fn input_refused_in_loopback_is_asked_for_again() {
        let (port, _reader) = piped();
        port.serial.write(MCR_OFFSET, &[0x10]);
        assert_eq!(port.serial.enqueue(b"x"), 0);
        port.serial.write(MCR_OFFSET, &[0x08]);
        assert_eq!(port.input_space.read().expect("woken"), 1);
        assert_eq!(port.serial.enqueue(b"x"), 1);
        assert_eq!(read(&port, DATA), b'x');
    }

    #[test]
    fn any_access_is_survived() {
        let port = port(Box::new(File::create("/dev/null").expect("/dev/null")));
        for offset in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x100, u16::MAX] {
            for size in [0, 1, 2, 4, 64] {
                let mut data = vec![0xff; size];
                port.serial.read(offset, &mut data);
                port.serial.write(offset, &data);
            }
        }
        assert!(port.serial.enqueue(&[0; 4096]) <= FIFO_BYTES);
    }
}
