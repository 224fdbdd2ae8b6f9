//! How much memory a pool may use if its user leaves that to us.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Meminfo;

/// What is left to the host: an eighth of its memory, at most this.
const RESERVE_BYTES_MAX: u64 = 2 << 30;

/// What is left of a cgroup's limit for what is charged there and no pool counts: KVM's own memory, 0.7 MiB a guest of 64 MiB on
/// Linux 6.12, and that of processes beside the guests. Whoever exceeds it is killed.
const UNCOUNTED_PART: u64 = 16;

/// The limit of this process's memory cgroup or the host's memory, whichever leaves less, each less a reserve. `None` when neither can
/// be read.
pub fn automatic_budget_bytes() -> Option<u64> {
    let host_bytes = Meminfo::read().and_then(|meminfo| meminfo.bytes("MemTotal")).map(less_reserve);
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&cgroups).into_iter().filter_map(|file| limit_bytes(&fs::read_to_string(file).ok()?));
    limits.map(|bytes| bytes - bytes / UNCOUNTED_PART).chain(host_bytes).min()
}

/// Memory of the host that can be had without swapping, in bytes.
pub(super) fn available_bytes() -> Option<u64> {
    Meminfo::read()?.bytes("MemAvailable")
}

fn less_reserve(bytes: u64) -> u64 {
    bytes - (bytes / 8).min(RESERVE_BYTES_MAX)
}

/// The files that may hold a limit: of the cgroup and all above it, in version 2 and in version 1 (kernel
/// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).
fn limit_files(cgroups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|path| Path::new(root).join(path).join(file)));
    }
    files
}

/// A limit as such a file has it; version 1 writes a number larger than any memory for none.
fn limit_bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_looked_for_in_both_versions() {
        let files = limit_files("12:memory:/a/b\n3:cpu,cpuacct:/x\n0::/c\nnonsense\n");
        let expected = [
            "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/c/memory.max",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
        assert_eq!((limit_bytes("max\n"), limit_bytes("1048576\n"), limit_bytes("0")), (None, Some(1 << 20), None));
    }

    #[test]
    fn a_host_keeps_a_reserve() {
        assert_eq!(less_reserve(8 << 30), 7 << 30);
        assert_eq!(less_reserve(64 << 30), 62 << 30);
        let budget_bytes = automatic_budget_bytes().expect("every Linux says what it has");
        assert!(budget_bytes > 64 << 20 && available_bytes().is_some_and(|bytes| bytes > 0), "{budget_bytes}");
    }
}
