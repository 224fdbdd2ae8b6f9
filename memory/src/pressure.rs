//! How long tasks wait because memory is short, as the host's kernel counts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the kernel knows for all of the host.
const HOST_FILE: &str = "/proc/pressure/memory";

/// Pressure stall information of memory (kernel Documentation/accounting/psi.rst): the time at least one task waited, in
/// total since the host, or the cgroup, began. Waits for a userfaultfd are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// The sum, rising all the time.
    pub stalled: Duration,
}

impl Pressure {
    /// As it is now: of this process's cgroup in version 2, or of the host where there is none. `None` where the kernel does
    /// not count it.
    pub fn read() -> Option<Self> {
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let files = files(&cgroups).into_iter().chain([PathBuf::from(HOST_FILE)]);
        files.into_iter().find_map(|file| Self::parse(&fs::read_to_string(file).ok()?))
    }

    fn parse(text: &str) -> Option<Self> {
        let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
        let total = some.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?;
        Some(Self { stalled: Duration::from_micros(total.parse().ok()?) })
    }
}

/// The files of a process's cgroup in version 2, where that is mounted alone and where version 1 is beside it.
fn files(cgroups: &str) -> Vec<PathBuf> {
    let Some(path) = cgroups.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    // The root's are those of all the host: they need not be looked for there.
    if path.is_empty() {
        return Vec::new();
    }
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| Path::new(root).join(path).join("memory.pressure")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_some_is_read() {
        // The example of psi.rst has two lines; older kernels' files of the CPU have one.
        let text =
            "some avg10=2.04 avg60=0.75 avg300=0.40 total=157622151\nfull avg10=0.00 avg60=0.13 avg300=0.20 total=9\n";
        let stalled = |text| Pressure::parse(text).map(|pressure| pressure.stalled);
        assert_eq!(stalled(text), Some(Duration::from_micros(157_622_151)));
        assert_eq!(stalled("some total=7"), Some(Duration::from_micros(7)));
        for other in ["", "full avg10=0.00 total=9\n", "some avg10=0.00\n", "some total=-1\n", "something total=1\n"] {
            assert_eq!(stalled(other), None, "{other}");
        }
    }

    #[test]
    fn a_cgroup_comes_before_the_host() {
        let expected = ["/sys/fs/cgroup/a/b.slice/memory.pressure", "/sys/fs/cgroup/unified/a/b.slice/memory.pressure"];
        assert_eq!(files("4:memory:/x\n0::/a/b.slice\n"), expected.map(PathBuf::from));
        assert_eq!(files("4:memory:/x\n0::/\n"), Vec::<PathBuf>::new());
        assert_eq!(files("4:memory:/x\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_host_that_counts_is_read() {
        // A kernel without the option, or started with psi=0, has no file, or one that cannot be read.
        if fs::read_to_string(HOST_FILE).is_ok() {
            let first = Pressure::read().expect("it is counted");
            let second = Pressure::read().expect("it is counted");
            assert!(second.stalled >= first.stalled, "{first:?} then {second:?}");
        }
    }
}
