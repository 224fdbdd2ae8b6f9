//! What is asked of a balloon, and what it says.

/// What the guest's balloon driver last said about its memory (virtio 1.2, section 5.5.6.4). All sizes in bytes, all
/// counts since the guest's boot; a value the driver did not report is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BalloonStatistics {
    /// Memory swapped in by the guest.
    pub swap_in_bytes: Option<u64>,
    /// Memory swapped out by the guest.
    pub swap_out_bytes: Option<u64>,
    /// Major page faults.
    pub major_faults: Option<u64>,
    /// Minor page faults.
    pub minor_faults: Option<u64>,
    /// Memory not used for anything.
    pub free_bytes: Option<u64>,
    /// Memory the guest manages in total.
    pub total_bytes: Option<u64>,
    /// Estimate of what could be allocated without swapping.
    pub available_bytes: Option<u64>,
    /// Page cache and buffers.
    pub disk_caches_bytes: Option<u64>,
    /// Successful huge page allocations.
    pub hugetlb_allocations: Option<u64>,
    /// Failed huge page allocations.
    pub hugetlb_failures: Option<u64>,
}

/// What the memory side asks of a guest's balloon. Implemented by the balloon device; safe to call from any thread and
/// never waits for the guest: a request is noted, the guest answers when it can.
pub trait Balloon: Send + Sync {
    /// Asks the guest to hold this much in its balloon; the guest gets there in its own time, or not at all.
    fn set_target_bytes(&self, bytes: u64);

    /// The target last asked for.
    fn target_bytes(&self) -> u64;

    /// What the guest has in its balloon now, as the device counted it.
    fn inflated_bytes(&self) -> u64;

    /// Whether the guest drives the balloon: without, nothing that is asked for comes.
    fn has_driver(&self) -> bool;

    /// Host memory that inflating has freed since boot, in bytes: pages that were not in guest RAM count nothing, nor do
    /// those of a VM that is open.
    fn given_bytes(&self) -> u64;

    /// Bytes given back by free page reporting since boot.
    fn reported_bytes(&self) -> u64;

    /// Asks the guest for fresh statistics; they arrive later in [`Balloon::statistics`].
    fn request_statistics(&self);

    /// The statistics that arrived last, `None` before the first.
    fn statistics(&self) -> Option<BalloonStatistics>;
}
