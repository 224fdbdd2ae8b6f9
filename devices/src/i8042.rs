//! The i8042 keyboard controller, as far as a reset needs it.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use vm_superio::{I8042Device, Trigger};

use crate::port::PortDevice;
use crate::request::{GuestRequest, RequestSink};

/// First I/O port: data at 0x60, status and command at 0x64.
pub const I8042_PORT: u16 = 0x60;
/// Number of ports. 0x61 among them belongs to the PIT, which KVM answers before anyone else.
pub const I8042_PORTS: u16 = 5;

/// A controller with nothing attached that knows one command: reset (0xfe). The firmware tables say that there is no
/// keyboard controller, so that guests do not wait for one; those that write the command all the same are understood.
pub struct I8042 {
    controller: Mutex<I8042Device<ResetLine>>,
}

impl I8042 {
    /// A controller that reports resets to `requests`.
    pub fn new(requests: RequestSink) -> Self {
        Self { controller: Mutex::new(I8042Device::new(ResetLine(requests))) }
    }
}

impl PortDevice for I8042 {
    fn read(&self, offset: u16, data: &mut [u8]) {
        if let (Ok(offset), Some(value)) = (u8::try_from(offset), data.first_mut()) {
            *value = self.controller.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        if let (Ok(offset), Some(&value)) = (u8::try_from(offset), data.first()) {
            let Ok(()) = self.controller.lock().unwrap_or_else(PoisonError::into_inner).write(offset, value);
        }
    }
}

/// The wire from the controller to the CPU's reset pin.
struct ResetLine(RequestSink);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)(GuestRequest::Reset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::sink;

    #[test]
    fn only_the_reset_command_resets() {
        let (requests, received) = sink();
        let device = I8042::new(requests);
        device.write(4, &[0xff]);
        device.write(0, &[0xfe]);
        device.write(0x104, &[0xfe]);
        device.write(4, &[]);
        assert!(received.try_recv().is_err());
        device.write(4, &[0xfe]);
        assert_eq!(received.try_recv(), Ok(GuestRequest::Reset));
    }

    #[test]
    fn status_says_ready() {
        let device = I8042::new(sink().0);
        let mut status = [0xff];
        device.read(4, &mut status);
        // Bit 1 (input buffer full) must be clear, else guests wait before they send the reset command.
        assert_eq!(status, [0]);
    }
}
