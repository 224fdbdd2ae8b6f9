//! Guest memory of one microVM.
//!
//! [`GuestRam`] is the lazily mapped RAM itself. [`Balloon`] is what this crate asks of a balloon device; the device
//! crate implements it, so that nothing here knows virtio or KVM. [`page_table`] is the state machine that every page
//! of a paged guest goes through, [`pager`] what moves them, [`activity`] tells how many a guest works with. Where several
//! guests share a budget, [`policy`] decides who holds how much, [`ledger`] is how they see each other, [`sharing`] finds
//! what several of them hold, and [`manager`] does what was decided.

pub mod activity;
mod balloon;
mod cpu_share;
mod cpu_time;
pub mod ledger;
pub mod manager;
mod mapping;
mod meminfo;
pub mod page_table;
pub mod pager;
pub mod policy;
mod pressure;
mod ram;
pub mod sharing;
pub mod store;
mod userfault;

pub use balloon::{Balloon, BalloonStatistics};
pub use mapping::MappingError;
pub use meminfo::Meminfo;
pub use pressure::Pressure;
pub use ram::{GuestRam, Memory, PAGE_SIZE, Paging, Pin, RamError, RamRegion};
pub use userfault::{UserfaultError, UserfaultSupport};
