//! The virtio devices a configuration asks for.

use std::sync::Arc;

use cistern_devices::virtio::balloon::Balloon as BalloonDevice;
use cistern_devices::virtio::block::{Block, BlockError};
use cistern_devices::virtio::device::{DeviceError, VirtioDevice};
use cistern_devices::virtio::net::{Net, NetError};
use cistern_devices::virtio::rng::Rng;
use cistern_devices::virtio::vsock::{Vsock, VsockError};
use cistern_memory::Balloon;

use crate::config::{BalloonMode, MachineConfig};
use crate::{layout, report};

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceSetError {
    /// A disk.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A network interface.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The virtual socket.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The balloon.
    #[error(transparent)]
    Balloon(#[from] DeviceError),
    /// More devices than interrupt lines.
    #[error("{asked} virtio devices: a microVM has interrupts for {} of them: leave some out", layout::VIRTIO_GSIS.len())]
    TooMany {
        /// How many the configuration asks for.
        asked: usize,
    },
}

/// Devices not yet connected to a machine.
pub struct DeviceSet {
    /// In the order of their register blocks.
    pub virtio: Vec<Box<dyn VirtioDevice>>,
    /// The balloon's handle, when there is one.
    pub balloon: Option<Arc<dyn Balloon>>,
}

impl DeviceSet {
    /// Opens everything the devices need on the host.
    ///
    /// # Errors
    /// [`DeviceSetError`] names the file, interface or socket.
    pub fn open(config: &MachineConfig) -> Result<Self, DeviceSetError> {
        let mut virtio: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for disk in &config.disks {
            let open = if disk.direct { Block::open_direct } else { Block::open };
            let block = open(&disk.path, disk.read_only)?;
            if let Some(note) = block.note() {
                report::line(&format!("warning: {note}"));
            }
            virtio.push(Box::new(block));
        }
        for net in &config.nets {
            virtio.push(Box::new(Net::open(&net.tap, net.mac)?));
        }
        if let Some(vsock) = &config.vsock {
            virtio.push(Box::new(Vsock::new(vsock.cid, &vsock.uds)?));
        }
        if config.rng {
            virtio.push(Box::new(Rng));
        }
        let balloon = if config.balloon == BalloonMode::Off {
            None
        } else {
            let device = BalloonDevice::new(config.balloon == BalloonMode::On)?;
            let handle: Arc<dyn Balloon> = device.handle();
            virtio.push(Box::new(device));
            Some(handle)
        };
        if virtio.len() > layout::VIRTIO_GSIS.len() {
            return Err(DeviceSetError::TooMany { asked: virtio.len() });
        }
        Ok(Self { virtio, balloon })
    }
}
