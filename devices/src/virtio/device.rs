//! What a virtio device is to the transport that drives it.

use std::os::fd::RawFd;
use std::sync::Arc;

use cistern_memory::GuestRam;

use super::interrupt::Interrupt;
use super::queue::VirtQueue;

/// The driver broke the protocol, or the host side failed for good: the device is marked broken (`DEVICE_NEEDS_RESET`)
/// and does nothing until the driver resets it. Everything else goes on.
///
/// An I/O error of one request is not this: it is an answer (`VIRTIO_BLK_S_IOERR` and the like).
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A virtqueue is malformed.
    #[error(transparent)]
    Queue(#[from] super::chain::QueueError),
    /// A request is malformed: the text says what is wrong with it.
    #[error("malformed request: {0}")]
    Request(&'static str),
    /// The host side of the device failed.
    #[error("{object}: {cause}")]
    Host {
        /// The file, interface or socket.
        object: String,
        /// What the kernel said.
        cause: std::io::Error,
    },
}

/// The guest's side of a device from DRIVER_OK to reset: what was negotiated, and the queues.
pub struct Driver {
    /// Feature bits both sides agreed on.
    pub features: u64,
    /// The queues in their numbers' order; one the driver did not enable is not ready and yields nothing.
    pub queues: Vec<VirtQueue>,
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// The line to the guest.
    pub interrupt: Arc<Interrupt>,
}

impl Driver {
    /// True when the feature bit with this number was agreed on.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features & (1u64 << bit) != 0
    }
}

/// Answers a read of configuration space from its content: what is past the end stays as it is in `data`.
pub fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    let bytes = rest.len().min(data.len());
    data[..bytes].copy_from_slice(&rest[..bytes]);
}

/// A virtio device. All calls come from one thread at a time (the transport holds a lock); none may block for long
/// or wait for the guest.
pub trait VirtioDevice: Send {
    /// Short name for messages, like `block /path/disk.img`.
    fn name(&self) -> &str;

    /// The device id (virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// Largest size of each queue; their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Device feature bits offered. The transport adds `VERSION_1`, `RING_INDIRECT_DESC` and `RING_EVENT_IDX`.
    fn features(&self) -> u64;

    /// Reads device configuration space. `data` may reach past its end: what is past it reads as zero (`data` comes
    /// zeroed).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space; most devices have nothing writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready (DRIVER_OK): from now on queues may be used.
    ///
    /// # Errors
    /// As for [`VirtioDevice::queue_event`].
    fn activate(&mut self, _driver: &mut Driver) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver put buffers on queue number `queue`, or the last event left some of them (see
    /// [`VirtQueue::is_starved`]). Called once for each enabled queue after activation.
    ///
    /// # Errors
    /// See [`DeviceError`]: the device is broken from then on.
    fn queue_event(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError>;

    /// A host file descriptor to watch, edge-triggered, for reading; asked for once. A device with many, or one that waits
    /// to write, gives its own epoll instance.
    fn host_fd(&self) -> Option<RawFd> {
        None
    }

    /// The descriptor of [`VirtioDevice::host_fd`] became ready. `driver` is `None` while no driver is active. Called once
    /// after each activation too, since an edge may have passed while there was no driver or the device was broken.
    ///
    /// # Errors
    /// As for [`VirtioDevice::queue_event`].
    fn host_event(&mut self, _driver: Option<&mut Driver>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver reset the device: forget everything it set up.
    fn reset(&mut self) {}
}
