//! What the integration tests and benches of Cistern share.

pub mod baseline;
pub mod chart;
pub mod control;
pub mod course;
pub mod cycles;
pub mod debian;
pub mod estimates;
pub mod guest_memory;
pub mod guests;
pub mod initramfs;
pub mod ksm;
pub mod lab;
pub mod leftovers;
pub mod namespace;
pub mod paged;
pub mod pool;
pub mod process;
pub mod qemu;
pub mod samples;
pub mod smaps;
pub mod storm;
pub mod terminal;
pub mod tiny;
pub mod watch;
