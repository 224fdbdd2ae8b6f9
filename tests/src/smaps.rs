//! What a process costs, from `/proc/PID/smaps` (kernel Documentation/filesystems/proc.rst).

use std::fs;
use std::ops::Range;

/// Memory of a process, guest RAM apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Proportional set size of everything but guest RAM: pages shared with other processes count by their share.
    pub vmm_pss_bytes: u64,
    /// Resident set size of everything but guest RAM.
    pub vmm_rss_bytes: u64,
    /// Resident guest RAM.
    pub guest_bytes: u64,
}

impl Footprint {
    /// Of a running process, whose guest RAM is the mapping of `ram_bytes`.
    pub fn of(pid: u32, ram_bytes: u64) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps of a running process of ours");
        Self::parse(&text, ram_bytes)
    }

    fn parse(smaps: &str, ram_bytes: u64) -> Self {
        let mut footprint = Self::default();
        let mut is_ram = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            if let Some(bytes) = mapping_bytes(first) {
                is_ram = bytes == ram_bytes;
                continue;
            }
            let kib = |mut words: std::str::SplitWhitespace| words.next().and_then(|kib| kib.parse::<u64>().ok());
            match (first, is_ram) {
                ("Pss:", false) => footprint.vmm_pss_bytes += kib(words).unwrap_or(0) * 1024,
                ("Rss:", false) => footprint.vmm_rss_bytes += kib(words).unwrap_or(0) * 1024,
                ("Rss:", true) => footprint.guest_bytes += kib(words).unwrap_or(0) * 1024,
                _ => {}
            }
        }
        footprint
    }
}

/// Heaps that the C library has made for single threads: each lies at a multiple of 64 MiB of addresses, all of which it
/// reserves (glibc, malloc/arena.c, `HEAP_MAX_SIZE`).
pub fn thread_heaps(pid: u32) -> usize {
    count_thread_heaps(&fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps of a running process of ours"))
}

fn count_thread_heaps(maps: &str) -> usize {
    const RESERVED_BYTES: u64 = 64 << 20;
    let mappings: Vec<(Range<u64>, &str)> = maps
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((addresses(words.next()?)?, words.next()?))
        })
        .collect();
    let is_heap = |pair: &&[(Range<u64>, &str)]| {
        let [(used, writable), (rest, none)] = pair else { return false };
        used.start % RESERVED_BYTES == 0
            && used.end == rest.start
            && rest.end == used.start + RESERVED_BYTES
            && (*writable, *none) == ("rw-p", "---p")
    };
    mappings.windows(2).filter(is_heap).count()
}

/// Length of the mapping a header line starts with, like `7f00-7f10`.
fn mapping_bytes(word: &str) -> Option<u64> {
    let addresses = addresses(word)?;
    addresses.end.checked_sub(addresses.start)
}

fn addresses(word: &str) -> Option<Range<u64>> {
    let (start, end) = word.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_apart_by_its_size() {
        let smaps = "7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \nRss: 64 kB\nPss: 64 kB\n\
                     555500000000-555500001000 r-xp 00000000 00:00 1 /bin/cistern\nRss: 4 kB\nPss: 2 kB\n";
        let expected = Footprint { vmm_pss_bytes: 2048, vmm_rss_bytes: 4096, guest_bytes: 65536 };
        assert_eq!(Footprint::parse(smaps, 128 << 20), expected);
    }

    #[test]
    fn heaps_of_threads_are_told_by_what_they_reserve() {
        let maps = "7f0000000000-7f0000021000 rw-p 00000000 00:00 0 \n7f0000021000-7f0004000000 ---p 00000000 00:00 0 \n\
                    7f0008000000-7f0008021000 rw-p 00000000 00:00 0 \n7f0008022000-7f000c000000 ---p 00000000 00:00 0 \n";
        assert_eq!(count_thread_heaps(maps), 1);
    }
}
