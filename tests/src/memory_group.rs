//! A memory cgroup of a process's own: the kernel counts there what it holds for this process and for nobody else (kernel
//! Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst). Nothing is limited.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::baseline::cgroup;
use crate::baseline::keeper::Keeper;

/// What version 1 counts of the kernel's own memory.
const KERNEL_FILE: &str = "memory.kmem.usage_in_bytes";

/// Removed when dropped, or when its maker ends, and whoever is in it then is killed.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
    _keeper: Keeper,
}

/// What the processes of a group are charged for, in bytes; files that the kernel caches are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charged {
    /// Memory of the processes' own, guest memory included.
    pub anonymous_bytes: u64,
    /// Memory of the kernel for them: page tables, KVM's structures, stacks.
    pub kernel_bytes: u64,
}

impl Charged {
    /// All of it.
    pub fn bytes(self) -> u64 {
        self.anonymous_bytes + self.kernel_bytes
    }

    fn parse(stat: &str, kernel_file: Option<&str>) -> Option<Self> {
        let field = |name| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            line.trim().parse::<u64>().ok()
        };
        match kernel_file {
            Some(text) => Some(Self { anonymous_bytes: field("rss")?, kernel_bytes: text.trim().parse().ok()? }),
            None => Some(Self { anonymous_bytes: field("anon")?, kernel_bytes: field("kernel")? }),
        }
    }
}

impl MemoryGroup {
    /// A new one; `None` where there is no memory controller, or this user may make no groups.
    pub fn new(name: &str) -> Option<Self> {
        let (version, parent) = cgroup::parent().ok()?;
        if !cgroup::is_handed_down(version, &parent).ok()? {
            return None;
        }
        let folder = parent.join(format!("cistern-{}-{name}", std::process::id()));
        if folder.exists() {
            return None;
        }
        let mut keeper = Keeper::start().ok()?;
        keeper.will(&cgroup::removal(&folder).ok()?).ok()?;
        fs::create_dir(&folder).ok()?;
        Some(Self { folder, _keeper: keeper })
    }

    /// A command that runs this program in the group.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        cgroup::enter(&self.folder, &mut command).expect("a group is there as long as this");
        command
    }

    /// What is charged now; `None` where the kernel does not tell all of it.
    pub fn charged(&self) -> Option<Charged> {
        let stat = fs::read_to_string(self.folder.join("memory.stat")).ok()?;
        Charged::parse(&stat, fs::read_to_string(self.folder.join(KERNEL_FILE)).ok().as_deref())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn both_versions_are_read() {
        let expected = Charged { anonymous_bytes: 8192, kernel_bytes: 4096 };
        let version_1 = "cache 1\nrss 8192\nrss_huge 0\ntotal_rss 3\n";
        assert_eq!(Charged::parse(version_1, Some("4096\n")), Some(expected));
        let version_2 = "anon 8192\nfile 1\nkernel 4096\nkernel_stack 2\nanon_thp 0\n";
        assert_eq!(Charged::parse(version_2, None), Some(expected));
        assert_eq!(Charged::parse("anon 8192\nkernel_stack 2\n", None), None, "a kernel before 5.18");
    }

    #[test]
    fn a_process_is_charged_in_its_group_which_goes_with_it() {
        let Some(group) = MemoryGroup::new("test") else {
            println!("there is no memory controller");
            return;
        };
        let folder = group.folder.clone();
        let mut command = group.command(Path::new("cat"));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat starts");
        let started = Instant::now();
        // What it is charged with is counted a moment later.
        while !group.charged().is_some_and(|charged| charged.anonymous_bytes > 0 && charged.kernel_bytes > 0) {
            assert!(started.elapsed() < crate::process::LIMIT, "{:?}", group.charged());
            thread::sleep(Duration::from_millis(10));
        }
        drop(group);
        assert!(!folder.exists());
        assert!(!process.wait().expect("it ends").success(), "it was killed with its group");
    }
}
