//! Chains of descriptors, and what can be wrong with them and the rings they come from.

use cistern_memory::Memory;
use virtio_queue::DescriptorChain;

/// The driver set up or filled a virtqueue in a way the specification forbids.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are malformed.
    #[error("malformed virtqueue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A ring or the descriptor table is not in guest memory.
    #[error("malformed virtqueue: rings outside guest memory")]
    RingOutsideMemory,
    /// A chain ends before its last descriptor: a loop, an index past the table, or a bad indirect table.
    #[error("malformed virtqueue: broken descriptor chain")]
    ChainBroken,
    /// A chain has more descriptors than any driver may use.
    #[error("malformed virtqueue: descriptor chain too long")]
    ChainTooLong,
    /// A descriptor the device may only read follows one it may write.
    #[error("malformed virtqueue: readable descriptor after a writable one")]
    ChainOrder,
    /// A buffer is not in guest memory.
    #[error("malformed virtqueue: buffer outside guest memory at {guest_address:#x}, {bytes} bytes")]
    BufferOutsideMemory {
        /// Guest-physical start of the buffer.
        guest_address: u64,
        /// Its length.
        bytes: u32,
    },
}

/// A chain of descriptors, with the guest memory it points into.
pub type Chain<'m> = DescriptorChain<&'m Memory>;
