//! Frames from the tap to the guest, read straight into its buffers.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use cistern_memory::{GuestRam, Memory, Pin, RamError};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF};

use super::{FRAME_BYTES_MAX, HEADER_BYTES, Net, RECEIVE};
use crate::virtio::device::{DeviceError, Driver};
use crate::virtio::queue::VirtQueue;
use crate::virtio::scatter::{Buffers, MAX_SEGMENTS};

/// Frames read in one event before the other devices get their turn, those that are dropped included.
const FRAMES_PER_EVENT: usize = 256;

/// What a buffer must take at least where the host makes no frame longer than usual (virtio 1.2, section 5.1.6.3.1).
const PLAIN_FRAME_BYTES: usize = 1526;

/// Where the header holds the number of chains that the frame takes (`num_buffers`, 16 bits).
const CHAIN_COUNT_OFFSET: usize = 10;

/// Bytes of buffers for the next frame.
struct Wanted {
    /// Take no more chains from the queue than this needs.
    enough: usize,
    /// Do not wait for more than this when the queue is empty.
    acceptable: usize,
}

/// Buffers taken from the queue for the next frame.
#[derive(Default)]
struct Posted<'m> {
    chains: VecDeque<Buffers<'m>>,
    /// What keeps the first chains in guest RAM: until they are used, or the event ends. A frame takes few of the chains
    /// that it could take, so most would be pinned again and again otherwise.
    pins: VecDeque<Vec<Pin>>,
    bytes: usize,
    segments: usize,
}

impl Net {
    /// Reads frames until the tap or the guest's buffers are used up.
    pub(super) fn receive(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let mergeable = driver.has_feature(VIRTIO_NET_F_MRG_RXBUF);
        let large = driver.has_feature(VIRTIO_NET_F_GUEST_TSO4) || driver.has_feature(VIRTIO_NET_F_GUEST_TSO6);
        let wanted = Wanted {
            enough: if mergeable { FRAME_BYTES_MAX } else { 1 },
            acceptable: if large { FRAME_BYTES_MAX } else { PLAIN_FRAME_BYTES },
        };
        let ram = &driver.ram;
        let memory = ram.memory();
        let queue = &mut driver.queues[RECEIVE];
        let mut posted = Posted::default();
        let mut frames = 0;
        while self.tap_ready && posted.fill(queue, memory, &wanted)? {
            if frames == FRAMES_PER_EVENT {
                queue.yield_event();
                break;
            }
            frames += 1;
            self.receive_frame(queue, ram, &mut posted)?;
        }
        posted.chains.iter().for_each(|_| queue.undo_pop());
        Ok(queue.notify(memory, &driver.interrupt)?)
    }

    fn receive_frame(&mut self, queue: &mut VirtQueue, ram: &GuestRam, posted: &mut Posted) -> Result<(), DeviceError> {
        let mut iovecs = Vec::with_capacity(posted.segments + 1);
        // Without pins the guest's buffers have no room: the frame is read, and dropped.
        if posted.pin(ram).is_ok() {
            for chain in &posted.chains {
                let mut room = chain.writable.clone();
                room.truncate(FRAME_BYTES_MAX);
                room.append_iovecs(&mut iovecs);
            }
        }
        iovecs.truncate(MAX_SEGMENTS - 1);
        let room = iovecs.iter().map(|iovec| iovec.iov_len).sum::<usize>();
        // The kernel cuts a frame that is too long in silence; what is behind the guest's buffers tells. A header's length of
        // it, since the kernel takes no less room than that.
        let mut overflow = [0_u8; HEADER_BYTES];
        iovecs.push(libc::iovec { iov_base: overflow.as_mut_ptr().cast(), iov_len: overflow.len() });
        // SAFETY: all iovecs but the last point into guest memory, which holds no Rust references and outlives `ram`; the
        // last is a local array.
        let read = unsafe { self.tap.read(&iovecs) };
        match read.map_err(|cause| self.host_error(cause))? {
            None => self.tap_ready = false,
            Some(bytes) if bytes > room || bytes < HEADER_BYTES => {
                self.counters.receive_dropped.fetch_add(1, Ordering::Relaxed);
            }
            Some(bytes) => {
                posted.use_up(queue, ram.memory(), bytes)?;
                self.counters.received.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl<'m> Posted<'m> {
    /// Takes chains from the queue until the longest frame fits, or one chain where a frame may not use more. False
    /// when it is better to wait for the driver.
    fn fill(&mut self, queue: &mut VirtQueue, memory: &'m Memory, wanted: &Wanted) -> Result<bool, DeviceError> {
        while self.bytes < wanted.enough && self.segments < MAX_SEGMENTS - 1 {
            if let Some(chain) = queue.pop_buffers(memory)? {
                if !chain.readable.is_empty() || chain.writable.len() < HEADER_BYTES {
                    return Err(DeviceError::Request("receive buffer too short, or not for writing"));
                }
                self.bytes += chain.writable.len();
                self.segments += chain.writable.segments();
                self.chains.push_back(chain);
            } else if !queue.enable_kicks(memory)? {
                // A frame that does not fit would be lost: a driver with less than half of its buffers on the queue is
                // about to bring more. One that uses short queues may never have enough for the longest frame.
                let settled = self.bytes >= wanted.acceptable || self.chains.len() >= usize::from(queue.size() / 2);
                return Ok(!queue.is_starved() && !self.chains.is_empty() && settled);
            }
        }
        Ok(true)
    }

    /// Pins the chains that are not pinned yet.
    fn pin(&mut self, ram: &GuestRam) -> Result<(), RamError> {
        for chain in self.chains.range(self.pins.len()..) {
            // A chain may be as long as memory; a frame is not.
            let mut room = chain.writable.clone();
            room.truncate(FRAME_BYTES_MAX);
            self.pins.push_back(room.pin(ram)?);
        }
        Ok(())
    }

    /// Hands back the chains that hold a frame of `bytes` bytes, all at once: the driver must not see a part of it.
    fn use_up(&mut self, queue: &mut VirtQueue, memory: &Memory, bytes: usize) -> Result<(), DeviceError> {
        let mut used = Vec::new();
        let mut header = None;
        let mut left = bytes;
        while left > 0 {
            let chain = self.chains.pop_front().expect("the frame was read into these chains");
            drop(self.pins.pop_front());
            let part = left.min(chain.writable.len());
            left -= part;
            self.bytes -= chain.writable.len();
            self.segments -= chain.writable.segments();
            used.push((chain.head_index, part as u32));
            header.get_or_insert(chain.writable);
        }
        if let Some(mut header) = header {
            // The kernel leaves this field of the header to us. The queue has at most 256 chains.
            header.advance(CHAIN_COUNT_OFFSET);
            header.write(&(used.len() as u16).to_le_bytes());
        }
        Ok(queue.add_used_together(memory, &used)?)
    }
}
