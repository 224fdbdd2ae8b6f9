//! What KSM says of one process.

use std::fs;
use std::io;

use serde::Serialize;

/// KSM's counters of this process (kernel Documentation/filesystems/proc.rst, `ksm_stat`). `None` is what the kernel does
/// not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct KsmProcess {
    /// Pages that ksmd keeps a note of, merged or not; Linux 6.1.
    pub rmap_items: Option<u64>,
    /// Places that have the kernel's zero page; Linux 6.6.
    pub zero_pages: Option<u64>,
    /// Places that have a merged page; Linux 5.19.
    pub merging_pages: Option<u64>,
    /// What is saved less the notes, in bytes; Linux 6.4.
    pub profit_bytes: Option<i64>,
}

impl KsmProcess {
    /// As it is now.
    ///
    /// # Errors
    /// /proc cannot be read; a kernel without these files is no error.
    pub fn read() -> io::Result<Self> {
        let mut process = optional("/proc/self/ksm_stat")?.map(|text| Self::parse(&text)).unwrap_or_default();
        if process.merging_pages.is_none() {
            // The elder file, which has this number alone.
            let text = optional("/proc/self/ksm_merging_pages")?;
            process.merging_pages = text.and_then(|text| text.trim().parse().ok());
        }
        Ok(process)
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let mut words = text.lines().map(|line| line.split_ascii_whitespace());
            words.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()).flatten())
        };
        let pages = |name| field(name).and_then(|value| value.parse().ok());
        Self {
            rmap_items: pages("ksm_rmap_items"),
            zero_pages: pages("ksm_zero_pages"),
            merging_pages: pages("ksm_merging_pages"),
            profit_bytes: field("ksm_process_profit").and_then(|value| value.parse().ok()),
        }
    }
}

fn optional(path: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        let process = KsmProcess::read().expect("/proc");
        assert!(process.merging_pages.is_some(), "{process:?}");
    }

    #[test]
    fn fields_may_be_missing() {
        let now = "ksm_rmap_items 76\nksm_zero_pages 2\nksm_merging_pages 5\nksm_process_profit -1234\n\
                   ksm_merge_any: no\nksm_mergeable: no\n";
        let all =
            KsmProcess { rmap_items: Some(76), zero_pages: Some(2), merging_pages: Some(5), profit_bytes: Some(-1234) };
        assert_eq!(KsmProcess::parse(now), all);
        let of_6_1 = KsmProcess { rmap_items: Some(3), ..KsmProcess::default() };
        assert_eq!(KsmProcess::parse("ksm_rmap_items 3\n"), of_6_1);
        assert_eq!(KsmProcess::parse("ksm_rmap_items\nksm_zero_pages many\n"), KsmProcess::default());
    }
}
