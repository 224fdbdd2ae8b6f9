//! Hypervisor.

pub mod firmware;
