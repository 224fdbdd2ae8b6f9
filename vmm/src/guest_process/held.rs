//! Where a guest's memory is, from what its VMM says of it.

use cistern_memory::PAGE_SIZE;
use serde::Serialize;
use serde_json::Value;

/// Guest memory by what became of it, in bytes; pages on their way count as resident.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Never written, or given back.
    pub untouched_bytes: u64,
    /// Of that, what is in balloons.
    pub ballooned_bytes: u64,
    /// Zero pages, which are not kept at all.
    pub zero_bytes: u64,
    /// Pages whose content another one has, too.
    pub duplicate_bytes: u64,
    /// Compressed pages, as they were.
    pub compressed_bytes: u64,
    /// The host memory these take now.
    pub compressed_held_bytes: u64,
    /// Pages in the swap file.
    pub swapped_bytes: u64,
    /// Pages in host memory as they are.
    pub resident_bytes: u64,
    /// Of these, pages of which nothing is known, as their VM's faults are the kernel's to answer.
    pub unclassified_bytes: u64,
    /// Of these, pages that are merged with equal ones.
    pub merged_bytes: u64,
    /// What these take less than as many pages of their own.
    pub merging_saves_bytes: u64,
}

/// A number in a VM's answer; one that is not there is zero.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

impl Held {
    /// From the answer to `GET /memory`.
    pub fn of(memory: &Value) -> Self {
        let pages = |state: &str| number(&memory["pages"][state]) * PAGE_SIZE;
        // When a VM is armed its pager learns which pages there are: those it knows nothing of then hold nothing.
        let is_armed = memory["armed"] == true;
        let (unwritten_bytes, unclassified_bytes) =
            if is_armed { (pages("unknown"), 0) } else { (0, pages("unknown")) };
        Self {
            untouched_bytes: pages("untouched") + unwritten_bytes,
            unclassified_bytes,
            ballooned_bytes: number(&memory["balloon_inflated_bytes"]),
            zero_bytes: pages("zero"),
            duplicate_bytes: pages("duplicate"),
            compressed_bytes: pages("compressed"),
            compressed_held_bytes: number(&memory["compressed"]["held_bytes"]),
            swapped_bytes: pages("swapped"),
            resident_bytes: ["resident", "aside", "in_flight"].into_iter().map(pages).sum::<u64>() + unclassified_bytes,
            merged_bytes: number(&memory["sharing"]["merging"]["merged_pages"]) * PAGE_SIZE,
            merging_saves_bytes: number(&memory["sharing"]["merging"]["saved_bytes"]),
        }
    }

    /// What has left guest memory and would have to be there otherwise.
    pub fn away_bytes(&self) -> u64 {
        self.zero_bytes + self.duplicate_bytes + self.compressed_bytes + self.swapped_bytes
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.untouched_bytes += other.untouched_bytes;
        self.ballooned_bytes += other.ballooned_bytes;
        self.zero_bytes += other.zero_bytes;
        self.duplicate_bytes += other.duplicate_bytes;
        self.compressed_bytes += other.compressed_bytes;
        self.compressed_held_bytes += other.compressed_held_bytes;
        self.swapped_bytes += other.swapped_bytes;
        self.resident_bytes += other.resident_bytes;
        self.unclassified_bytes += other.unclassified_bytes;
        self.merged_bytes += other.merged_bytes;
        self.merging_saves_bytes += other.merging_saves_bytes;
    }
}
