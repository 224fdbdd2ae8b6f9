//! The virtio devices behind their transport, driven as a guest would: registers, rings in guest RAM, the event loop.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod block;
mod direct;
mod guest;
mod hostile;
mod ledger;
mod net;
mod network;
mod pins;
mod rng;
mod transport;
