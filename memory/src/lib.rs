//! Guest memory of one microVM.
//!
//! [`GuestRam`] is the lazily mapped RAM itself. [`Balloon`] is what this crate asks of a balloon device; the device
//! crate implements it, so that nothing here knows virtio or KVM.

mod balloon;
mod ram;
pub mod store;
mod userfault;

pub use balloon::{Balloon, BalloonStatistics};
pub use ram::{GuestRam, Memory, PAGE_SIZE, RamError, RamRegion};
pub use userfault::{UserfaultError, UserfaultSupport};
