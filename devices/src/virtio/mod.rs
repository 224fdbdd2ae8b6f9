//! virtio devices (virtio 1.2, modern only).
//!
//! One file or folder a device; what all of them stand on is in [`device`] (the trait), [`queue`] (virtqueues),
//! [`scatter`] (the guest memory of a request), [`interrupt`] and [`mmio`] (the transport).

pub mod balloon;
mod balloon_pages;
pub mod block;
pub mod chain;
pub mod device;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod scatter;
pub mod vsock;
