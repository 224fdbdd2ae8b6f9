//! Sharing: one copy of what many guests hold.
//!
//! [`ksm`] is the kernel's own page merging: what it says, and how it is driven.

pub mod ksm;
