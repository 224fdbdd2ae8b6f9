//! A virtqueue as devices use it: chains in, used buffers out, errors instead of silence.

use std::sync::atomic::Ordering;

use cistern_memory::Memory;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::interrupt::Interrupt;

/// The driver set up or filled a virtqueue in a way the specification forbids.
#[derive(Debug, thiserror::Error)]
#[error("malformed virtqueue: {0}")]
pub struct QueueError(#[from] virtio_queue::Error);

/// A chain of descriptors, with the guest memory it points into.
pub type Chain<'m> = DescriptorChain<&'m Memory>;

/// A split virtqueue (virtio 1.2, section 2.7).
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
}

impl VirtQueue {
    /// Wraps a queue the driver has set up.
    pub fn new(queue: Queue) -> Self {
        Self { queue }
    }

    /// The next chain the driver made available, `None` when there is none or the queue is not enabled.
    ///
    /// # Errors
    /// When the ring cannot be read or its indices are impossible.
    pub fn pop<'m>(&mut self, memory: &'m Memory) -> Result<Option<Chain<'m>>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        Ok(self.queue.iter(memory)?.next())
    }

    /// Puts the chain taken last back, to be popped again. Only for the chain popped last, with nothing added since.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Hands a chain back to the driver; `written_bytes` is what the device wrote into it.
    ///
    /// # Errors
    /// When the used ring is not in guest memory.
    pub fn add_used(&mut self, memory: &Memory, head_index: u16, written_bytes: u32) -> Result<(), QueueError> {
        Ok(self.queue.add_used(memory, head_index, written_bytes)?)
    }

    /// Interrupts the driver if it wants to know about the buffers used since the last call.
    ///
    /// # Errors
    /// When the rings are not in guest memory.
    pub fn notify(&mut self, memory: &Memory, interrupt: &Interrupt) -> Result<(), QueueError> {
        if self.queue.ready() && self.queue.needs_notification(memory)? {
            interrupt.signal_queue();
        }
        Ok(())
    }

    /// Asks the driver for kicks again after the queue was drained. True when chains arrived meanwhile: drain again.
    ///
    /// # Errors
    /// When the rings are not in guest memory.
    pub fn enable_kicks(&mut self, memory: &Memory) -> Result<bool, QueueError> {
        if !self.queue.ready() {
            return Ok(false);
        }
        Ok(self.queue.enable_notification(memory)?)
    }

    /// True when the driver has made no chain available that was not popped yet.
    ///
    /// # Errors
    /// When the available ring is not in guest memory.
    pub fn is_empty(&self, memory: &Memory) -> Result<bool, QueueError> {
        Ok(!self.queue.ready() || self.queue.avail_idx(memory, Ordering::Acquire)?.0 == self.queue.next_avail())
    }
}
