//! A virtqueue as devices use it: chains in, used buffers out, errors instead of silence.

use std::sync::atomic::Ordering;

use cistern_memory::Memory;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, QueueError};
use super::interrupt::Interrupt;
use super::scatter::Buffers;

/// A split virtqueue (virtio 1.2, section 2.7).
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    /// Chains that may still be popped in this event.
    budget: u32,
    /// A pop was refused for want of budget.
    starved: bool,
    /// Buffers were used since the last [`VirtQueue::notify`].
    used: bool,
    /// The next [`VirtQueue::notify`] interrupts in any case.
    interrupt_due: bool,
}

impl VirtQueue {
    /// Wraps a queue the driver has set up.
    pub fn new(queue: Queue) -> Self {
        Self { queue, budget: u32::MAX, starved: false, used: false, interrupt_due: false }
    }

    /// True while the driver has the queue enabled.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// The number of descriptors, as the driver chose it.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The driver disabled the queue: it yields nothing any more.
    pub fn disable(&mut self) {
        self.queue.set_ready(false);
    }

    /// Starts an event in which at most `chains` chains may be popped, so that a driver that refills its queue as fast
    /// as it is drained cannot keep the event loop for itself.
    pub fn set_budget(&mut self, chains: u32) {
        self.budget = chains;
        self.starved = false;
    }

    /// Ends the event early: the device has done its share, and the transport will call it again for this queue.
    pub fn yield_event(&mut self) {
        self.budget = 0;
        self.starved = true;
    }

    /// True when the event ended with work left: the queue must get another event without a kick from the driver.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// The next chain the driver made available, `None` when there is none, the queue is not enabled or this event has
    /// had its share (another one follows by itself then).
    ///
    /// # Errors
    /// When the ring cannot be read or its indices are impossible.
    pub fn pop<'m>(&mut self, memory: &'m Memory) -> Result<Option<Chain<'m>>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        if self.budget == 0 {
            self.starved |= !self.is_empty(memory)?;
            return Ok(None);
        }
        let chain = self.queue.iter(memory)?.next();
        if chain.is_some() {
            self.budget -= 1;
        }
        Ok(chain)
    }

    /// As [`VirtQueue::pop`], with the chain's buffers checked and gathered.
    ///
    /// # Errors
    /// Also when the chain is malformed.
    pub fn pop_buffers<'m>(&mut self, memory: &'m Memory) -> Result<Option<Buffers<'m>>, QueueError> {
        self.pop(memory)?.map(|chain| Buffers::gather(memory, chain)).transpose()
    }

    /// Puts the chain popped last back, to be popped again; called n times, the last n chains. Only valid for chains
    /// that were not handed back, with none handed back that was popped after them.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
        self.budget = self.budget.saturating_add(1);
    }

    /// Hands a chain back to the driver; `written_bytes` is what the device wrote into it.
    ///
    /// # Errors
    /// When the used ring is not in guest memory.
    pub fn add_used(&mut self, memory: &Memory, head_index: u16, written_bytes: u32) -> Result<(), QueueError> {
        self.queue.add_used(memory, head_index, written_bytes)?;
        self.used = true;
        Ok(())
    }

    /// Hands several chains back of which the driver must see all or none; pairs of head index and bytes written.
    ///
    /// # Errors
    /// When the used ring is not in guest memory.
    pub fn add_used_together(&mut self, memory: &Memory, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some(((last_head, last_bytes), others)) = used.split_last() else { return Ok(()) };
        let first = self.queue.next_used();
        for ((head_index, written_bytes), position) in others.iter().zip(0_u16..) {
            let slot = first.wrapping_add(position) % self.queue.size();
            // The ring begins with flags and index, two bytes each; an element is index and length, four bytes each.
            let element = u64::from(*head_index) | u64::from(*written_bytes) << 32;
            let address = self.queue.used_ring() + 4 + 8 * u64::from(slot);
            memory
                .write_slice(&element.to_le_bytes(), GuestAddress(address))
                .map_err(virtio_queue::Error::GuestMemory)?;
        }
        // The last one moves the index over all of them. The queue then takes it for a single one when it decides on an
        // interrupt, so that decision is made here: one too many does no harm.
        self.queue.set_next_used(first.wrapping_add(others.len() as u16));
        self.interrupt_due |= !others.is_empty();
        self.add_used(memory, *last_head, *last_bytes)
    }

    /// Interrupts the driver if it wants to know about the buffers used since the last call.
    ///
    /// # Errors
    /// When the rings are not in guest memory.
    pub fn notify(&mut self, memory: &Memory, interrupt: &Interrupt) -> Result<(), QueueError> {
        if std::mem::take(&mut self.used) && self.queue.ready() {
            let wanted = self.queue.needs_notification(memory)?;
            if std::mem::take(&mut self.interrupt_due) || wanted {
                interrupt.signal_queue();
            }
        }
        Ok(())
    }

    /// Asks the driver for kicks again after the queue was drained. True when chains arrived meanwhile: drain again.
    /// False too when this event has had its share.
    ///
    /// Call it with every available chain popped, also those that will be put back: the driver kicks for chains it
    /// adds behind the last one popped.
    ///
    /// # Errors
    /// When the rings are not in guest memory.
    pub fn enable_kicks(&mut self, memory: &Memory) -> Result<bool, QueueError> {
        if !self.queue.ready() || self.starved {
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
