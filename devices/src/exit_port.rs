//! The exit port: a guest ends its machine with a status, for tests and CI.

use crate::port::PortDevice;
use crate::request::{GuestRequest, RequestSink};

/// The I/O port, one byte wide.
pub const EXIT_PORT: u16 = 0xf4;

/// The bits of a written byte that make the status.
const STATUS_MASK: u8 = 0x1f;

/// A byte written here becomes [`GuestRequest::Exit`] with its low five bits.
pub struct ExitPort {
    requests: RequestSink,
}

impl ExitPort {
    /// An exit port that reports to `requests`.
    pub fn new(requests: RequestSink) -> Self {
        Self { requests }
    }
}

impl PortDevice for ExitPort {
    fn read(&self, _offset: u16, _data: &mut [u8]) {}

    fn write(&self, offset: u16, data: &[u8]) {
        if let (0, Some(value)) = (offset, data.first()) {
            (self.requests)(GuestRequest::Exit(value & STATUS_MASK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::sink;

    #[test]
    fn low_five_bits_of_the_low_byte_are_the_status() {
        let (requests, received) = sink();
        let port = ExitPort::new(requests);
        port.write(0, &[0]);
        port.write(0, &[0xff]);
        port.write(0, &[0x21, 0xff, 0xff, 0xff]);
        port.write(1, &[7]);
        port.write(0, &[]);
        drop(port);
        let all: Vec<_> = received.iter().collect();
        assert_eq!(all, [GuestRequest::Exit(0), GuestRequest::Exit(31), GuestRequest::Exit(1)]);
    }
}
