//! What the process costs the host beside guest memory.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::time::{Duration, Instant};

use crate::cpu_time::thread_cpu_time;
use crate::pager::Pager;

/// The kernel looks at every page of the guest to tell what the other mappings hold: so much CPU time may pass for each
/// part of it that a look takes. A guest of 1 GiB costs 40 ms here.
const LOOK_PART: u32 = 200;

/// As much as the kernel gives at once.
const LOOK_BYTES: usize = 4096;

/// What the process costs without guest memory and without what the stores hold.
#[derive(Debug, Default)]
pub(super) struct OwnMemory {
    mappings_bytes: u64,
    /// What guest memory costs less than it would unmerged, by the last look.
    merging_saves_bytes: Option<u64>,
    /// When the mappings are looked at again.
    due: Option<Instant>,
}

impl OwnMemory {
    /// The proportional set size of every mapping that is not the guest's, less the `stored_bytes` of the stores in them, and
    /// the page tables of all (kernel Documentation/filesystems/proc.rst), in bytes. The mappings are not looked at every
    /// time.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn bytes(&mut self, pager: Option<&Pager>, stored_bytes: u64, now: Instant) -> io::Result<u64> {
        if self.due.is_none_or(|due| now >= due) {
            let before = thread_cpu_time();
            // Line by line: all of it in memory would be among what is looked at.
            let smaps = BufReader::with_capacity(LOOK_BYTES, File::open("/proc/self/smaps")?);
            let sizes = Sizes::read(smaps, |address| pager.is_some_and(|pager| pager.holds_guest_memory(address)))?;
            self.mappings_bytes = sizes.own_bytes.saturating_sub(stored_bytes);
            self.merging_saves_bytes = Some(sizes.shared_bytes);
            self.due = Some(now + pause_after(thread_cpu_time().saturating_sub(before)));
        }
        Ok(self.mappings_bytes + page_tables_bytes(&fs::read_to_string("/proc/self/status")?))
    }

    /// What guest memory costs less than as many pages of its own, if the last call has looked at that. The kernel's word, and
    /// dearer to have than what the host's counters say.
    pub fn take_merging_saves_bytes(&mut self) -> Option<u64> {
        self.merging_saves_bytes.take()
    }
}

/// How long to leave it at a look that has taken so much CPU time.
fn pause_after(look: Duration) -> Duration {
    look * LOOK_PART
}

/// Resident memory of the whole process in bytes: what an open VM costs. Cheap.
///
/// # Errors
/// /proc cannot be read.
pub(super) fn resident_bytes() -> io::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.map(|pages| pages * crate::PAGE_SIZE).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What mappings hold, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sizes {
    /// The proportional set size of those that are not the guest's.
    own_bytes: u64,
    /// By how much that of the guest's is below their resident set size.
    shared_bytes: u64,
}

impl Sizes {
    fn read(mut smaps: impl BufRead, is_guest_memory: impl Fn(u64) -> bool) -> io::Result<Self> {
        let (mut sizes, mut is_guests, mut resident_bytes) = (Self::default(), false, 0);
        let mut line = String::new();
        while smaps.read_line(&mut line)? > 0 {
            if let Some(address) = start_of_mapping(&line) {
                is_guests = is_guest_memory(address);
            } else if let Some(field) = line.strip_prefix("Rss:") {
                resident_bytes = kib(field) * 1024;
            } else if let Some(field) = line.strip_prefix("Pss:") {
                let bytes = kib(field) * 1024;
                match is_guests {
                    true => sizes.shared_bytes += resident_bytes.saturating_sub(bytes),
                    false => sizes.own_bytes += bytes,
                }
            }
            line.clear();
        }
        Ok(sizes)
    }
}

fn page_tables_bytes(status: &str) -> u64 {
    status.lines().find_map(|line| line.strip_prefix("VmPTE:")).map_or(0, |field| kib(field) * 1024)
}

/// The number of a field like `   12 kB`.
fn kib(field: &str) -> u64 {
    field.split_ascii_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Where the mapping of a header line like `7f00-7f10 rw-p ...` starts.
fn start_of_mapping(line: &str) -> Option<u64> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?;
    u64::from_str_radix(start, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dearer_a_look_the_rarer() {
        assert_eq!(pause_after(Duration::from_micros(500)), Duration::from_millis(100));
        assert_eq!(pause_after(Duration::from_millis(40)), Duration::from_secs(8));
    }

    #[test]
    fn guest_memory_is_left_out() {
        let smaps = "7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \nRss: 80 kB\nPss: 64 kB\nPss_Dirty: 64 kB\n\
                     555500000000-555500001000 r-xp 00000000 00:00 1 /bin/cistern\nRss: 4 kB\nPss: 2 kB\n\
                     ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\nPss: 1 kB\n";
        let sizes = |own_kib: u64, shared_kib: u64| Sizes { own_bytes: own_kib << 10, shared_bytes: shared_kib << 10 };
        let read = |is_guests: fn(u64) -> bool| Sizes::read(smaps.as_bytes(), is_guests).expect("text in memory");
        assert_eq!(read(|address| address >> 40 == 0x7f), sizes(3, 16));
        assert_eq!(read(|_| false), sizes(67, 0));
        assert_eq!(page_tables_bytes("Name:\tx\nVmPTE:\t     116 kB\nVmSwap:\t0 kB\n"), 116 << 10);
        assert!(resident_bytes().is_ok_and(|bytes| bytes > 1 << 20));
    }
}
