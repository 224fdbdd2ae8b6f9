//! What the host says of its memory.

use std::fs;

/// `/proc/meminfo` at a moment (kernel Documentation/filesystems/proc.rst).
#[derive(Debug, Clone)]
pub struct Meminfo(String);

impl Meminfo {
    /// As it is now; `None` where there is none.
    pub fn read() -> Option<Self> {
        fs::read_to_string("/proc/meminfo").ok().map(Self)
    }

    /// A field that is given in kB, like `MemTotal`, in bytes.
    pub fn bytes(&self, field: &str) -> Option<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_whole_names_in_kib() {
        let meminfo = Meminfo("MemTotal:       8388608 kB\nMemFree: 1 kB\nHugePages_Total:       0\n".to_owned());
        let fields = ["MemTotal", "MemFree", "Mem", "HugePages_Total", "SwapTotal"];
        assert_eq!(fields.map(|field| meminfo.bytes(field)), [Some(8 << 30), Some(1024), None, None, None]);
    }
}
