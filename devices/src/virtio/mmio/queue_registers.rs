//! The registers that describe one virtqueue, until the driver is ready and the queue is built from them.

use cistern_memory::Memory;
use virtio_bindings::virtio_mmio as reg;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::virtio::chain::QueueError;
use crate::virtio::queue::VirtQueue;

/// What the driver wrote to QueueNum, QueueReady and the address registers of one queue. Kept as written: what is wrong
/// with it shows when the queue is built.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueRegisters {
    pub size_max: u16,
    pub ready: bool,
    size: u32,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

impl QueueRegisters {
    /// The registers after reset.
    pub fn new(size_max: u16) -> Self {
        Self { size_max, ready: false, size: size_max.into(), descriptor_table: 0, available_ring: 0, used_ring: 0 }
    }

    /// Takes a write of the size or of half an address; other registers are ignored.
    pub fn write(&mut self, register: u32, value: u32) {
        match register {
            reg::VIRTIO_MMIO_QUEUE_NUM => self.size = value,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut self.descriptor_table, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut self.descriptor_table, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut self.available_ring, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut self.available_ring, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut self.used_ring, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut self.used_ring, value),
            _ => {}
        }
    }

    /// The queue the registers describe; one that is not enabled yields nothing.
    ///
    /// # Errors
    /// When an enabled queue has an impossible size, or rings that are misaligned or not in guest memory.
    pub fn build(&self, memory: &Memory, event_idx: bool) -> Result<VirtQueue, QueueError> {
        let mut queue = Queue::new(self.size_max)?;
        if self.ready {
            queue.try_set_size(u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?)?;
            queue.try_set_desc_table_address(GuestAddress(self.descriptor_table))?;
            queue.try_set_avail_ring_address(GuestAddress(self.available_ring))?;
            queue.try_set_used_ring_address(GuestAddress(self.used_ring))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            if !queue.is_valid(memory) {
                return Err(QueueError::RingOutsideMemory);
            }
        }
        Ok(VirtQueue::new(queue))
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}
