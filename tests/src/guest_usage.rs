//! What a Linux guest says of itself while it works: the lines of `kernels/linux/tools/usage.c`.

/// A guest at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestUsage {
    /// Milliseconds since it booted.
    pub up_ms: u64,
    /// Of those, the ones in which its CPU was not idle.
    pub busy_ms: u64,
    /// KiB that it has paged in from and out to its own swap.
    pub swapped_kib: u64,
    /// KiB that it could use without paging (proc_meminfo(5), MemAvailable).
    pub available_kib: u64,
    /// KiB that are in its own swap.
    pub in_swap_kib: u64,
}

impl GuestUsage {
    /// From a line of its console; `None` of others.
    pub fn from_line(line: &str) -> Option<Self> {
        let numbers: Vec<u64> =
            line.strip_prefix("usage: ")?.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let [up_ms, busy_ms, in_kib, out_kib, available_kib, in_swap_kib] = numbers[..] else { return None };
        Some(Self { up_ms, busy_ms, swapped_kib: in_kib + out_kib, available_kib, in_swap_kib })
    }

    /// From all of its console.
    pub fn all(console: &str) -> Vec<Self> {
        console.lines().filter_map(|line| Self::from_line(line.trim())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest() {
        let console = "tcp: listening\r\nusage: 7120 ms, busy 6900 ms, in 4 KiB, out 12 KiB, available 900 KiB, swapped 8 \
                       KiB\r\nusage: 9\n";
        let expected = GuestUsage { up_ms: 7120, busy_ms: 6900, swapped_kib: 16, available_kib: 900, in_swap_kib: 8 };
        assert_eq!(GuestUsage::all(console), [expected]);
    }
}
