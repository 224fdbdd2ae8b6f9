//! Which device answers at an I/O port or a device address.

use std::ops::Range;
use std::sync::Arc;

use cistern_devices::port::PortDevice;
use cistern_devices::virtio::mmio::MmioTransport;

use crate::layout;

/// A device and the I/O ports it answers.
pub struct PortRange {
    /// The ports.
    pub ports: Range<u16>,
    /// The device.
    pub device: Arc<dyn PortDevice>,
}

/// All devices a vCPU can reach. Ports and addresses nobody answers read as ones and swallow writes, as on a PC.
pub struct Bus {
    ports: Vec<PortRange>,
    virtio: Vec<Arc<MmioTransport>>,
}

impl Bus {
    /// A bus with these port devices, and virtio devices one after the other from [`layout::VIRTIO_BASE`].
    pub fn new(ports: Vec<PortRange>, virtio: Vec<Arc<MmioTransport>>) -> Self {
        Self { ports, virtio }
    }

    /// An `in` instruction.
    pub fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(range) = self.port(port) {
            range.device.read(port - range.ports.start, data);
        }
    }

    /// An `out` instruction.
    pub fn port_out(&self, port: u16, data: &[u8]) {
        if let Some(range) = self.port(port) {
            range.device.write(port - range.ports.start, data);
        }
    }

    /// A load from where there is no RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.virtio(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store to where there is no RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.virtio(address) {
            device.write(offset, data);
        }
    }

    fn port(&self, port: u16) -> Option<&PortRange> {
        self.ports.iter().find(|range| range.ports.contains(&port))
    }

    fn virtio(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let window_offset = address.checked_sub(layout::VIRTIO_BASE)?;
        let index = usize::try_from(window_offset / layout::VIRTIO_BYTES).ok()?;
        Some((self.virtio.get(index)?, window_offset % layout::VIRTIO_BYTES))
    }
}
