//! The kernel thread that merges, and the CPU time it takes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// `PF_KTHREAD` of the kernel's include/linux/sched.h: anybody may call a process ksmd.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// `USER_HZ`: on x86-64 it is 100 whatever the kernel ticks at.
const TICK: Duration = Duration::from_millis(10);

/// ksmd. It never ends, so its process id stays.
#[derive(Debug, Clone)]
pub struct Ksmd {
    folder: PathBuf,
}

impl Ksmd {
    /// Looks for it; `None` where it is not seen, as in a process namespace of one's own.
    pub fn find() -> Option<Self> {
        let mut folders = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
        folders.find(|folder| is_ksmd(folder)).map(|folder| Self { folder })
    }

    /// CPU time it has had since the host started.
    pub fn cpu_time(&self) -> Option<Duration> {
        // In ns where the kernel was built with CONFIG_SCHED_INFO, else in ticks.
        let exact = fs::read_to_string(self.folder.join("schedstat")).ok();
        let exact = exact.and_then(|text| text.split_ascii_whitespace().next()?.parse().ok()).map(Duration::from_nanos);
        exact.or_else(|| {
            let stat = Stat::parse(&fs::read_to_string(self.folder.join("stat")).ok()?)?;
            Some(TICK * u32::try_from(stat.cpu_ticks).ok()?)
        })
    }
}

fn is_ksmd(folder: &std::path::Path) -> bool {
    // The short file first: there are many processes.
    fs::read_to_string(folder.join("comm")).is_ok_and(|name| name == "ksmd\n")
        && fs::read_to_string(folder.join("stat"))
            .is_ok_and(|text| Stat::parse(&text).is_some_and(|stat| stat.flags & KERNEL_THREAD != 0))
}

/// Fields of /proc/PID/stat.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    flags: u64,
    cpu_ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may have anything in it; what follows its parenthesis begins with field 3.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self { flags: field(9)?, cpu_ticks: field(14)?.checked_add(field(15)?)? })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_and_its_clocks_agree() {
        let ksmd = Ksmd::find().expect("tests see the host's processes");
        let ticks = |ksmd: &Ksmd| {
            let text = fs::read_to_string(ksmd.folder.join("stat")).unwrap();
            TICK * u32::try_from(Stat::parse(&text).unwrap().cpu_ticks).unwrap()
        };
        let (before, exact, after) = (ticks(&ksmd), ksmd.cpu_time().unwrap(), ticks(&ksmd));
        assert!(exact + 2 * TICK >= before && exact <= after + 2 * TICK, "{before:?} {exact:?} {after:?}");
    }

    #[test]
    fn a_name_is_not_enough() {
        let kernels = "37 (ksmd) S 2 0 0 0 -1 2097216 0 0 0 0 1 338 0 0 25 5 1 0 26 0";
        assert_eq!(Stat::parse(kernels), Some(Stat { flags: 2_097_216, cpu_ticks: 339 }));
        let other = Stat::parse("99 (ksmd) S 1) S 2 0 0 0 -1 4194304 0 0 0 0 1 1 0 0").unwrap();
        assert_eq!(other.flags & KERNEL_THREAD, 0);
        assert_eq!(Stat::parse("37 ksmd"), None);
    }
}
