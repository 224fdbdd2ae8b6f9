//! Guest memory of a VM as the kernel counts it, however many mappings advice and protections cut it into.

use std::fs;
use std::iter::Sum;
use std::ops::Range;

/// Guest memory of one or of several processes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestMemory {
    /// Pages that are there, each as a whole.
    pub resident_bytes: u64,
    /// The same, merged ones divided among all who have them: what they cost.
    pub proportional_bytes: u64,
    /// Pages that the kernel has merged with others (KSM), whole.
    pub merged_bytes: u64,
    /// Pages that are parts of huge ones.
    pub huge_bytes: u64,
}

impl GuestMemory {
    /// Of a running process; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
        let merging = fs::read_to_string(format!("/proc/{pid}/ksm_merging_pages")).ok()?;
        let merged_pages: u64 = merging.trim().parse().ok()?;
        Some(Self { merged_bytes: merged_pages * cistern_memory::PAGE_SIZE, ..Self::parse(&smaps) })
    }

    fn parse(smaps: &str) -> Self {
        mappings(smaps).fold(Self::default(), |sum, mapping| Self {
            resident_bytes: sum.resident_bytes + mapping.bytes("Rss:"),
            proportional_bytes: sum.proportional_bytes + mapping.bytes("Pss:"),
            huge_bytes: sum.huge_bytes + mapping.bytes("AnonHugePages:"),
            ..sum
        })
    }
}

impl Sum for GuestMemory {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            resident_bytes: sum.resident_bytes + part.resident_bytes,
            proportional_bytes: sum.proportional_bytes + part.proportional_bytes,
            merged_bytes: sum.merged_bytes + part.merged_bytes,
            huge_bytes: sum.huge_bytes + part.huge_bytes,
        })
    }
}

/// The addresses of a process's guest memory, mappings that touch taken together; pages aside are among them.
pub fn address_ranges(pid: u32) -> Option<Vec<Range<u64>>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for Mapping { addresses, .. } in mappings(&smaps) {
        match ranges.last_mut() {
            Some(last) if last.end == addresses.start => last.end = addresses.end,
            _ => ranges.push(addresses),
        }
    }
    Some(ranges)
}

/// A mapping of guest memory: its addresses, and the lines that follow its header.
struct Mapping<'a> {
    addresses: Range<u64>,
    fields: Vec<&'a str>,
}

impl Mapping<'_> {
    /// The number of a field like `Rss:   12 kB`.
    fn bytes(&self, name: &str) -> u64 {
        let line = self.fields.iter().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    }
}

/// Those that are no file's, not inherited and not dumped (`dc`, `dd` of kernel Documentation/filesystems/proc.rst): nothing
/// but guest memory is all of that.
fn mappings(smaps: &str) -> impl Iterator<Item = Mapping<'_>> {
    let mut all: Vec<(Mapping<'_>, bool)> = Vec::new();
    for line in smaps.lines() {
        if let Some(addresses) = addresses(line) {
            let is_anonymous = line.split_whitespace().count() == 5;
            all.push((Mapping { addresses, fields: Vec::new() }, is_anonymous));
        } else if let Some((mapping, _)) = all.last_mut() {
            mapping.fields.push(line);
        }
    }
    all.into_iter().filter_map(|(mapping, is_anonymous)| {
        let flags = mapping.fields.iter().find_map(|line| line.strip_prefix("VmFlags:"))?;
        let has = |flag| flags.split_whitespace().any(|word| word == flag);
        (is_anonymous && has("dc") && has("dd")).then_some(mapping)
    })
}

/// The addresses a header line starts with, like `7f00-7f10 rw-p`.
fn addresses(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_by_its_flags() {
        let smaps = "7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \nRss: 64 kB\nPss: 32 kB\nAnonHugePages: 16 kB\nVmFlags: rd wr dc dd mg\n\
                     7f0000200000-7f0008000000 rw-p 00000000 00:00 0 \nRss: 8 kB\nPss: 8 kB\nVmFlags: rd wr dc dd\n\
                     7f1000000000-7f1000001000 rw-s 00000000 00:0d 4 anon_inode:kvm\nRss: 4 kB\nVmFlags: rd wr dc dd\n\
                     7f2000000000-7f2000100000 rw-p 00000000 00:00 0 \nRss: 16 kB\nPss: 16 kB\nVmFlags: rd wr mr\n";
        let expected = GuestMemory {
            resident_bytes: 72 << 10,
            proportional_bytes: 40 << 10,
            merged_bytes: 0,
            huge_bytes: 16 << 10,
        };
        assert_eq!(GuestMemory::parse(smaps), expected);
        let twice: GuestMemory = [expected, expected].into_iter().sum();
        assert_eq!(twice.proportional_bytes, 80 << 10);
    }

    #[test]
    fn a_process_without_a_guest_has_none() {
        let pid = std::process::id();
        assert_eq!(GuestMemory::of(pid).map(|memory| memory.resident_bytes), Some(0));
        assert_eq!(address_ranges(pid), Some(vec![]));
    }
}
