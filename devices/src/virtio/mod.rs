//! virtio devices (virtio 1.2, modern only).
//!
//! One file or folder a device; what all of them stand on is in [`device`] (the trait), [`queue`] (virtqueues),
//! [`interrupt`] and [`mmio`] (the transport).

pub mod balloon;
mod balloon_pages;
pub mod device;
pub mod interrupt;
pub mod mmio;
pub mod queue;
