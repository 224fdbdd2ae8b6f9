//! Frames from the guest to the tap, written straight from its buffers.

use std::sync::atomic::Ordering;

use cistern_memory::GuestRam;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::{FRAME_BYTES_MAX, HEADER_BYTES, Net, TRANSMIT};
use crate::virtio::device::{DeviceError, Driver};
use crate::virtio::scatter::{MAX_SEGMENTS, Scatter};

impl Net {
    /// Sends what is on the queue. A frame that cannot be sent is dropped, as on any Ethernet.
    pub(super) fn transmit(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let features = driver.features;
        let ram = &driver.ram;
        let memory = ram.memory();
        let queue = &mut driver.queues[TRANSMIT];
        loop {
            while let Some(buffers) = queue.pop_buffers(memory)? {
                if buffers.readable.len() < HEADER_BYTES {
                    return Err(DeviceError::Request("frame shorter than its header"));
                }
                let sent = self.transmit_frame(features, ram, buffers.readable);
                let counter = if sent { &self.counters.transmitted } else { &self.counters.transmit_dropped };
                counter.fetch_add(1, Ordering::Relaxed);
                queue.add_used(memory, buffers.head_index, 0)?;
            }
            queue.notify(memory, &driver.interrupt)?;
            if !queue.enable_kicks(memory)? {
                return Ok(());
            }
        }
    }

    /// True when the host took the frame.
    fn transmit_frame(&self, features: u64, ram: &GuestRam, mut frame: Scatter) -> bool {
        if frame.len() > FRAME_BYTES_MAX {
            return false;
        }
        // Copied before it is checked: the guest can change its own at any time.
        let mut header = [0; HEADER_BYTES];
        frame.read(&mut header);
        if frame.is_empty() || frame.segments() >= MAX_SEGMENTS || !header_agreed(features, &mut header) {
            return false;
        }
        let Ok(_pins) = frame.pin(ram) else { return false };
        let mut iovecs = Vec::with_capacity(1 + frame.segments());
        iovecs.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() });
        frame.append_iovecs(&mut iovecs);
        // SAFETY: the first iovec is a local buffer, the others point into guest memory, which outlives the call.
        matches!(unsafe { self.tap.write(&iovecs) }, Ok(Some(_)))
    }
}

/// Checks that a header asks for nothing but what was negotiated, and clears what only the device may set.
fn header_agreed(features: u64, header: &mut [u8; HEADER_BYTES]) -> bool {
    let agreed = |bit: u32| features & 1 << bit != 0;
    let [flags, segmentation, ..] = header;
    *flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    let segmentation_agreed = match u32::from(*segmentation) {
        VIRTIO_NET_HDR_GSO_NONE => true,
        VIRTIO_NET_HDR_GSO_TCPV4 => agreed(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => agreed(VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    segmentation_agreed && (*flags == 0 || agreed(VIRTIO_NET_F_CSUM))
}
