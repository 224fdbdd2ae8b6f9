//! Sharing: one copy of what a guest, or several guests of a pool, hold.
//!
//! [`Scanner`] is the thread that looks over guest RAM: zero pages go back to the host, of others it tells the [`merger`],
//! where pages may be merged. [`layout`] cuts guest RAM into the regions of which [`regions`] says when each is looked at.
//! [`fingerprint`] is what members of a pool tell each other of a page, [`sketch`] how they tell it, [`copies`] what each
//! learns from it: how many copies its own pages have; [`exchange`] is all three. [`effort`] says how much of its CPU time the scanner uses, and
//! [`chore`] when what costs time for every page may be done again. [`profit`] says whether a region is worth merging, [`advice`] what
//! the kernel is to be told, and [`ksm`] is the kernel's own part: what it says, and how it is driven.

pub mod advice;
mod chore;
pub mod copies;
mod effort;
mod exchange;
pub mod fingerprint;
mod folder;
mod handle;
mod known;
pub mod ksm;
pub mod layout;
mod mechanisms;
mod merger;
pub mod profit;
mod published;
pub mod regions;
mod salt;
mod scanner;
pub mod sketch;

pub use folder::FolderError;
pub use handle::{MergingStatistics, SharingHandle, SharingStatistics};
pub use mechanisms::{Mechanisms, MechanismsError};
pub use scanner::{PoolPlace, Scanner, SharingConfig, SharingError};
