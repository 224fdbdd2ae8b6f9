//! A disk that is made slow. By version 1 of the block controller it is slow for everybody; by version 2, whose root has no limits,
//! for the guests' cgroup, which is charged with what is written of its memory, whoever writes, and with what its own threads read
//! (kernel Documentation/admin-guide, cgroup-v1/blkio-controller.rst and cgroup-v2.rst).

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::SLOW_OPERATIONS_PER_SECOND;
use super::keeper::Keeper;
use super::shell::{mounted, quoted, write};

/// A block device, by its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// The one at a path.
    ///
    /// # Errors
    /// There is none.
    pub fn at(path: &Path) -> Result<Self> {
        let number = fs::metadata(path).with_context(|| path.display().to_string())?.rdev();
        Ok(Self { major: libc::major(number), minor: libc::minor(number) })
    }

    /// Makes it slow for everybody. False where version 1 is not there.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn slow_for_everybody(self, keeper: &mut Keeper) -> Result<bool> {
        let Some(folder) = blkio_root(&fs::read_to_string("/proc/mounts").context("/proc/mounts")?) else {
            return Ok(false);
        };
        for direction in ["read", "write"] {
            let path = folder.join(format!("blkio.throttle.{direction}_iops_device"));
            keeper.will(&format!("echo {self} 0 > {}", quoted(&path)?))?;
            write(&path, &format!("{self} {SLOW_OPERATIONS_PER_SECOND}"))?;
        }
        Ok(true)
    }

    /// Makes it slow for a cgroup of version 2 that has the controller.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn slow_for(self, cgroup: &Path, keeper: &mut Keeper) -> Result<()> {
        let (path, most) = (cgroup.join("io.max"), SLOW_OPERATIONS_PER_SECOND);
        // What waits in the queue would be waited for.
        keeper.will(&format!("echo {self} riops=max wiops=max > {}", quoted(&path)?))?;
        write(&path, &format!("{self} riops={most} wiops={most}"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

/// The root of version 1: the kernel's own threads, which do most of what guests wait for, are in it.
fn blkio_root(mounts: &str) -> Option<PathBuf> {
    let is_blkio = |&(_, kind, options): &(&Path, &str, &str)| {
        kind == "cgroup" && options.split(',').any(|option| option == "blkio")
    };
    mounted(mounts).find(is_blkio).map(|(path, ..)| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_found_where_it_is_mounted() {
        let mounts = "cgroup /nowhere/memory cgroup rw,memory 0 0\ncgroup /nowhere/blkio cgroup rw,blkio 0 0\n";
        assert_eq!(blkio_root(mounts), Some(PathBuf::from("/nowhere/blkio")));
        assert_eq!(blkio_root("cgroup2 /nowhere cgroup2 rw 0 0\nblkio /blkio tmpfs rw,blkio 0 0\n"), None);
    }
}
