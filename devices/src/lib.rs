//! Devices of a microVM. They know guest memory and eventfds; they do not know KVM.

pub mod exit_port;
pub mod i8042;
pub mod port;
pub mod power;
pub mod pvpanic;
pub mod request;
pub mod serial;
pub mod virtio;
