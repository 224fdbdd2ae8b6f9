//! What a device on the port I/O bus is to the machine.

/// A device behind a range of I/O ports. Shared between vCPU threads, so every device locks what it must itself: a device
/// without state needs no lock, and one whose output blocks does not hold up another's input.
pub trait PortDevice: Send + Sync {
    /// Answers an `in` of `data.len()` bytes (1, 2 or 4) at `offset` from the start of the range. `data` comes filled with
    /// ones, what a port nobody answers reads as; the device overwrites what it knows.
    fn read(&self, offset: u16, data: &mut [u8]);

    /// Takes an `out` of `data.len()` bytes (1, 2 or 4) at `offset` from the start of the range.
    fn write(&self, offset: u16, data: &[u8]);
}
