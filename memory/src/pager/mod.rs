//! The pager: pages leave guest RAM, are stored, and come back when they are touched.

mod config;
mod statistics;

use std::sync::Arc;

pub use config::{EvictionMethod, PagerConfig};
pub use statistics::{
    EvictionStatistics, FailureStatistics, LatencyStatistics, LatencyStep, PageCounts, PagerStatistics,
    RefaultStatistics, SourceStatistics,
};

use crate::ram::GuestRam;
use crate::store::swap::OpenError;
use crate::{RamError, UserfaultError, page_table::PageTableError};

/// Why guest memory cannot be paged.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// There is no userfaultfd.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// There is no swap file.
    #[error(transparent)]
    Swap(#[from] OpenError),
    /// No memory for the page table.
    #[error(transparent)]
    PageTable(#[from] PageTableError),
    /// No address space for the side mapping.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// A page whose content cannot be brought back: the VM cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("page {gfn:#x} is lost: {cause}")]
pub struct LostPage {
    /// Guest frame number.
    pub gfn: u64,
    /// What happened to it.
    pub cause: String,
}

/// Called when a page is lost, on a thread of the pager's. It says so and ends the process without closing anything: a
/// closed userfaultfd would wake the waiters onto zero pages.
pub type OnLost = Box<dyn Fn(&LostPage) + Send + Sync>;

/// The pager of one VM.
pub struct Pager {
    ram: Arc<GuestRam>,
}

impl Pager {
    /// A pager for `ram`, which stays open: nothing is registered, no thread runs, until there is a limit.
    ///
    /// # Errors
    /// [`PagerError::Swap`] and [`PagerError::PageTable`].
    pub fn new(ram: Arc<GuestRam>, config: PagerConfig, on_lost: OnLost) -> Result<Arc<Self>, PagerError> {
        let _ = (config, on_lost);
        Ok(Arc::new(Self { ram }))
    }

    /// Limits what resident and stored pages may cost the host, and arms the VM; `None` lifts the limit, and the VM is
    /// opened again when no page is out.
    ///
    /// # Errors
    /// [`PagerError`] when the VM cannot be armed; the limit is unchanged then.
    pub fn set_resident_limit(&self, limit_bytes: Option<u64>) -> Result<(), PagerError> {
        let _ = (limit_bytes, &self.ram);
        Ok(())
    }

    /// What was counted so far, and what is held now.
    pub fn statistics(&self) -> PagerStatistics {
        unimplemented!("not before the pager is")
    }

    /// Stops evicting, lets everybody grow who waits, and answers faults until this returns.
    pub fn shut_down(&self) {}
}
