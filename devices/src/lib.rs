//! Devices of a microVM. They know guest memory and eventfds; they do not know KVM.

pub mod virtio;
