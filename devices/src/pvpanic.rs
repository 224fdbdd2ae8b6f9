//! pvpanic: the guest's kernel says that it panicked (QEMU: docs/specs/pvpanic).

use crate::port::PortDevice;
use crate::request::{GuestRequest, RequestSink};

/// The I/O port, one byte wide.
pub const PVPANIC_PORT: u16 = 0x505;

/// The guest panicked and stops.
const PANICKED: u8 = 1 << 0;
/// The guest panicked and starts its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;
/// The guest wants to be switched off.
const SHUTDOWN: u8 = 1 << 2;

/// The device: reading tells which events it takes, writing one reports it.
pub struct Pvpanic {
    requests: RequestSink,
}

impl Pvpanic {
    /// A pvpanic device that reports to `requests`.
    pub fn new(requests: RequestSink) -> Self {
        Self { requests }
    }
}

impl PortDevice for Pvpanic {
    fn read(&self, offset: u16, data: &mut [u8]) {
        if let (0, Some(value)) = (offset, data.first_mut()) {
            *value = PANICKED | CRASH_LOADED | SHUTDOWN;
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let (0, Some(&events)) = (offset, data.first()) else { return };
        // The worst one counts: a guest that reports several at once gets no say in which.
        if events & PANICKED != 0 {
            (self.requests)(GuestRequest::Panic);
        } else if events & CRASH_LOADED != 0 {
            (self.requests)(GuestRequest::CrashLoaded);
        } else if events & SHUTDOWN != 0 {
            (self.requests)(GuestRequest::PowerOff);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::sink;

    #[test]
    fn tells_what_it_takes() {
        let device = Pvpanic::new(sink().0);
        let mut data = [0xff; 1];
        device.read(0, &mut data);
        assert_eq!(data, [0b111]);
        let mut wide = [0xff; 4];
        device.read(0, &mut wide);
        assert_eq!(wide, [0b111, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn events_become_requests() {
        let (requests, received) = sink();
        let device = Pvpanic::new(requests);
        device.write(0, &[PANICKED]);
        device.write(0, &[CRASH_LOADED]);
        device.write(0, &[SHUTDOWN]);
        device.write(0, &[PANICKED | SHUTDOWN]);
        device.write(0, &[0xf8]);
        device.write(3, &[PANICKED]);
        drop(device);
        let all: Vec<_> = received.iter().collect();
        assert_eq!(all, [GuestRequest::Panic, GuestRequest::CrashLoaded, GuestRequest::PowerOff, GuestRequest::Panic]);
    }
}
