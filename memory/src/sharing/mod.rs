//! Sharing: one copy of what several guests of a pool hold.
//!
//! [`fingerprint`] is what members tell each other of a page. [`sketch`] is how they tell it, [`copies`] what each learns
//! from it: how many copies its own pages have. [`layout`] cuts guest RAM into the regions of which [`regions`] says when
//! each is looked at, [`profit`] whether it is worth merging, and [`advice`] what the kernel is to be told.

pub mod advice;
pub mod copies;
pub mod fingerprint;
mod folder;
pub mod layout;
pub mod profit;
pub mod regions;
mod salt;
pub mod sketch;

pub use folder::FolderError;
