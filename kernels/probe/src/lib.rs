//! The probe: a bare-metal guest that fills memory, walks it and verifies every page.
//!
//! This library is everything about it that needs no machine: pure functions and plain bookkeeping, without `std` and
//! without allocation, so that the kernel (`kernel/main.rs`) and tests on the host run the same code.
//!
//! - [`program`]: the little language of the command line, with `options` for its steps; [`cmdline`] finds it there;
//!   [`quantity`]: its numbers.
//! - [`content`]: what a page must hold, and what is wrong with one that does not; [`fills`] says which page is what.
//! - [`pool`]: which guest-physical pages there are; [`holdings`]: which of them are free, clean or in the balloon.
//! - [`distribution`], [`histogram`]: what a walk touches and how long it took.
//! - [`json`]: the lines it prints; [`mp_table`], [`timescale`]: what it reads about the machine.
#![cfg_attr(not(test), no_std)]

pub mod cmdline;
pub mod content;
pub mod distribution;
pub mod fills;
pub mod histogram;
pub mod holdings;
pub mod json;
pub mod mp_table;
mod options;
pub mod pool;
pub mod program;
pub mod quantity;
pub mod random;
pub mod timescale;

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;
