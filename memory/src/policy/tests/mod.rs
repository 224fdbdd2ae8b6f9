//! What the parts of the policy promise, alone and together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod allocator;
mod convergence;
mod ladder;
mod promises;
mod ramp;
mod simulator;

const MIB: u64 = 1 << 20;
