//! Sockets between guest and host (virtio 1.2, section 5.10), without any vsock in the host's kernel: the host's side are
//! unix sockets, by the same scheme that Firecracker uses (see [`muxer`]).
//!
//! The `TRANSPORT_RESET` event is for a guest whose connections ended without its knowledge, as after a snapshot is
//! restored. Nothing of that kind happens here (a driver that resets the device knows that its connections are gone), so
//! the buffers of the event queue stay where they are.

mod connection;
mod credit;
pub mod muxer;
pub mod packet;
mod unix;

use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::device::{DeviceError, Driver, VirtioDevice, copy_config};
use muxer::Muxer;
use packet::{HEADER_BYTES, HOST_CID, Header};

/// Feature bit: stream sockets.
pub const VIRTIO_VSOCK_F_STREAM: u32 = 0;

const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Bytes `_4294967295` adds to a path.
const PORT_SUFFIX_BYTES: usize = 11;

/// Why a vsock device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context id stands for something else.
    #[error("vsock: cid {cid} is reserved: choose one from 3 to 4294967294")]
    ReservedCid {
        /// The id asked for.
        cid: u64,
    },
    /// The path does not fit into a socket address.
    #[error("vsock: {path}: not a usable socket path: it must have 1 to {longest} bytes")]
    Path {
        /// The path asked for.
        path: PathBuf,
        /// Longest path, in bytes, that leaves room for the port.
        longest: usize,
    },
    /// A process listens there.
    #[error("vsock: {path}: another process listens there")]
    InUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// A file that is no socket is there.
    #[error("vsock: {path}: exists and is not a socket: remove it or choose another path")]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("vsock: {path}: {cause}")]
    Socket {
        /// The path asked for.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    name: String,
    cid: u64,
    muxer: Muxer,
    /// The last event left sockets that were not looked at.
    unpolled: bool,
}

impl Vsock {
    /// A device for the guest with context id `cid`, with its listening socket at `uds`.
    ///
    /// # Errors
    /// When the id is reserved, or `uds` is no path to listen on. A socket file of a process that is gone is replaced.
    pub fn new(cid: u64, uds: &Path) -> Result<Self, VsockError> {
        if cid <= HOST_CID || cid >= u32::MAX.into() {
            return Err(VsockError::ReservedCid { cid });
        }
        let longest = unix::PATH_BYTES_MAX - PORT_SUFFIX_BYTES;
        let bytes = uds.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() > longest || bytes.contains(&0) {
            return Err(VsockError::Path { path: uds.into(), longest });
        }
        let name = format!("vsock {}", uds.display());
        Ok(Self { name, cid, muxer: Muxer::new(cid, uds)?, unpolled: false })
    }

    /// Moves packets both ways until one side has to wait for the guest.
    fn exchange(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        loop {
            self.take_packets(driver)?;
            let stalled = !self.muxer.can_receive();
            self.give_packets(driver)?;
            // Giving may have made room for more to be taken.
            if !stalled || !self.muxer.can_receive() {
                return Ok(());
            }
        }
    }

    /// From the guest.
    fn take_packets(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let memory = driver.ram.memory();
        let queue = &mut driver.queues[TRANSMIT_QUEUE];
        loop {
            while self.muxer.can_receive()
                && let Some(mut buffers) = queue.pop_buffers(memory)?
            {
                let header = Header::read(&mut buffers.readable)
                    .ok_or(DeviceError::Request("packet shorter than its header"))?;
                if header.len as usize > buffers.readable.len() {
                    return Err(DeviceError::Request("packet shorter than its header says"));
                }
                self.muxer.receive(&header, &mut buffers.readable);
                queue.add_used(memory, buffers.head_index, 0)?;
            }
            queue.notify(memory, &driver.interrupt)?;
            if !self.muxer.can_receive() || !queue.enable_kicks(memory)? {
                return Ok(());
            }
        }
    }

    /// To the guest.
    fn give_packets(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let memory = driver.ram.memory();
        let queue = &mut driver.queues[RECEIVE_QUEUE];
        while self.muxer.wants_to_send() {
            let Some(mut buffers) = queue.pop_buffers(memory)? else {
                if queue.enable_kicks(memory)? {
                    continue;
                }
                break;
            };
            let Some(room) = buffers.writable.len().checked_sub(HEADER_BYTES).filter(|room| *room > 0) else {
                return Err(DeviceError::Request("receive buffer without room for a packet"));
            };
            let Some((header, data)) = self.muxer.next_packet(room) else {
                queue.undo_pop();
                break;
            };
            buffers.writable.write(&header.to_bytes());
            buffers.writable.write(data);
            queue.add_used(memory, buffers.head_index, HEADER_BYTES as u32 + header.len)?;
        }
        queue.notify(memory, &driver.interrupt)?;
        Ok(())
    }

    fn poll(&mut self, has_driver: bool) -> Result<(), DeviceError> {
        let polled = self.muxer.poll(has_driver);
        let polled = polled.map_err(|cause| DeviceError::Host { object: "vsock: epoll".to_owned(), cause })?;
        self.unpolled = !polled;
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.cid.to_le_bytes(), offset, data);
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        if queue > TRANSMIT_QUEUE {
            return Ok(());
        }
        if self.unpolled || self.muxer.wants_to_accept() {
            return self.host_event(Some(driver));
        }
        self.exchange(driver)
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.muxer.fd())
    }

    fn host_event(&mut self, driver: Option<&mut Driver>) -> Result<(), DeviceError> {
        self.poll(driver.is_some())?;
        let Some(driver) = driver else { return Ok(()) };
        self.exchange(driver)?;
        if self.unpolled {
            // There is no edge for what was not looked at: come back without one.
            driver.queues[TRANSMIT_QUEUE].yield_event();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.muxer.reset();
    }
}
