//! Hypervisor.

pub mod firmware;
pub mod terminal;
