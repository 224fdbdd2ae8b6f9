//! The network device (virtio 1.2, section 5.1) over a tap interface. Checksums and segmentation are left to whoever
//! does them best: the header of each frame goes through to the kernel and back.

mod receive;
mod tap;
mod transmit;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use super::device::{DeviceError, Driver, VirtioDevice, copy_config};
pub use tap::NetError;
use tap::Tap;

/// Queue of buffers for frames to the guest.
const RECEIVE: usize = 0;
/// Queue of frames from the guest.
const TRANSMIT: usize = 1;
const QUEUE_SIZES: &[u16] = &[256, 256];

/// Length of `struct virtio_net_hdr_v1`, in front of each frame.
const HEADER_BYTES: usize = 12;

/// Longest frame with its header, as segmentation offload makes them (virtio 1.2, section 5.1.6.3.1).
const FRAME_BYTES_MAX: usize = HEADER_BYTES + 65550;

/// What a network interface has done since it was made. A frame is one a driver sees: up to 64 KiB with offloads.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames given to the guest.
    pub received: AtomicU64,
    /// Frames for the guest that did not fit its buffers.
    pub receive_dropped: AtomicU64,
    /// Frames given to the host.
    pub transmitted: AtomicU64,
    /// Frames of the guest that were malformed, or that the host did not take.
    pub transmit_dropped: AtomicU64,
}

/// A network interface of the guest.
#[derive(Debug)]
pub struct Net {
    name: String,
    mac: [u8; 6],
    tap: Tap,
    /// The tap may hold frames: it was not found empty since the last event.
    tap_ready: bool,
    counters: Arc<NetCounters>,
}

impl Net {
    /// Attaches to the tap of this name, which must exist and belong to this user. Without a `mac` the address follows
    /// from the tap's name, so it stays the same from run to run; taps of one name on two hosts share it.
    ///
    /// # Errors
    /// A [`NetError`], one line that says what to do.
    pub fn open(tap_name: &str, mac: Option<[u8; 6]>) -> Result<Self, NetError> {
        let mac = mac.unwrap_or_else(|| mac_of_name(tap_name));
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(NetError::Mac { name: tap_name.to_owned(), mac });
        }
        let tap = Tap::open(tap_name)?;
        Ok(Self { name: format!("net {tap_name}"), mac, tap, tap_ready: true, counters: Arc::default() })
    }

    /// The guest's address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The counters, to be read while the device runs.
    pub fn counters(&self) -> Arc<NetCounters> {
        Arc::clone(&self.counters)
    }

    fn host_error(&self, cause: std::io::Error) -> DeviceError {
        DeviceError::Host { object: "tap".to_owned(), cause }
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..6].copy_from_slice(&self.mac);
        config[6..].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        copy_config(&config, offset, data);
    }

    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let mut offload = 0;
        if driver.has_feature(VIRTIO_NET_F_GUEST_CSUM) {
            offload |= libc::TUN_F_CSUM;
            // Without checksum offload the kernel takes neither of these.
            if driver.has_feature(VIRTIO_NET_F_GUEST_TSO4) {
                offload |= libc::TUN_F_TSO4;
            }
            if driver.has_feature(VIRTIO_NET_F_GUEST_TSO6) {
                offload |= libc::TUN_F_TSO6;
            }
        }
        self.tap_ready = true;
        self.tap.set_offload(offload).map_err(|cause| self.host_error(cause))
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        match queue {
            RECEIVE => self.receive(driver),
            _ => self.transmit(driver),
        }
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.tap.as_raw_fd())
    }

    fn host_event(&mut self, driver: Option<&mut Driver>) -> Result<(), DeviceError> {
        self.tap_ready = true;
        driver.map_or(Ok(()), |driver| self.receive(driver))
    }
}

/// A locally administered address made from a hash (FNV-1a) of the name.
fn mac_of_name(name: &str) -> [u8; 6] {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}
