//! A page where direct I/O can reach it.

use crate::store::{PAGE_BYTES, Page};

/// A page that lies on a page boundary, as direct I/O wants its buffers. A `Vec` of them is one buffer.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct AlignedPage(pub Page);

impl Default for AlignedPage {
    fn default() -> Self {
        Self([0; PAGE_BYTES])
    }
}
