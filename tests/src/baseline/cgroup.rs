//! A memory cgroup around all guests, of version 2 or 1, whichever has the host's memory (kernel Documentation/admin-guide
//! cgroup-v2.rst and cgroup-v1/memory.rst).
//!
//! What is charged to it is all of its processes: guest memory, page tables, KVM's own, files that they were first to read. A
//! page that KSM has merged is charged once. Not charged is what zram compresses into.

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::keeper::Keeper;
use super::shell::{mounted, quoted, write};
use super::throttle::Device;

/// Of version 2: the controllers of the cgroups below.
const HANDED_DOWN: &str = "cgroup.subtree_control";

/// How a kernel's cgroups look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A tree for each controller.
    V1,
    /// One tree for all.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V1 => "version 1",
            Self::V2 => "version 2",
        })
    }
}

/// What the kernel counts for a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory that counts against the limit.
    pub charged_bytes: u64,
    /// What is swapped, before it is compressed.
    pub swapped_bytes: u64,
    /// How often the limit was met since the beginning.
    pub limit_hits: u64,
    /// Processes that were killed because of it.
    pub killed: u64,
}

/// A cgroup of this process's, gone with the [`super::host::Host`] that made it, and whoever is still in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    version: Version,
    folder: PathBuf,
}

impl Cgroup {
    /// Without a limit, and empty.
    ///
    /// # Errors
    /// No memory controller is mounted; no cgroup may be made there.
    pub(super) fn make(keeper: &mut Keeper) -> Result<Self> {
        let (version, parent) = parent()?;
        if version == Version::V2 {
            hand_down("memory", &parent, keeper)?;
        }
        let folder = parent.join(format!("cistern-tests-{}", std::process::id()));
        ensure!(!folder.exists(), "{}: somebody else's", folder.display());
        keeper.will(&removal(&folder)?)?;
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { version, folder })
    }

    /// Makes a disk slow for who is in it.
    ///
    /// # Errors
    /// It is not of version 2; the kernel does not take it.
    pub(super) fn slow_down(&self, device: Device, keeper: &mut Keeper) -> Result<()> {
        ensure!(self.version == Version::V2, "memory and disks of one cgroup are a matter of version 2");
        hand_down("io", self.folder.parent().context("it was made in a folder")?, keeper)?;
        device.slow_for(&self.folder, keeper)
    }

    /// Of which kind it is.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Has a command run in it, with everything that it starts.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        enter(&self.folder, command)
    }

    /// Sets the limit, and has what is above it reclaimed now. Whether the kernel has taken it: version 1 refuses a limit that
    /// it cannot reclaim down to, version 2 kills.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn set_limit(&self, bytes: u64) -> Result<bool> {
        let path = self.folder.join(match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        });
        match fs::write(&path, bytes.to_string()) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(false),
            result => result.map(|()| true).with_context(|| format!("{}: writing {bytes}", path.display())),
        }
    }

    /// What is counted now.
    ///
    /// # Errors
    /// The cgroup is gone; the kernel does not count swap.
    pub fn usage(&self) -> Result<Usage> {
        let [charged, swapped, hits, killed] = match self.version {
            Version::V1 => [
                ("memory.usage_in_bytes", ""),
                ("memory.stat", "swap"),
                ("memory.failcnt", ""),
                ("memory.oom_control", "oom_kill"),
            ],
            Version::V2 => [
                ("memory.current", ""),
                ("memory.swap.current", ""),
                ("memory.events", "max"),
                ("memory.events", "oom_kill"),
            ],
        };
        Ok(Usage {
            charged_bytes: self.number(charged)?,
            swapped_bytes: self.number(swapped)?,
            limit_hits: self.number(hits)?,
            killed: self.number(killed)?,
        })
    }

    /// The number behind a key, or the only one where the key is empty.
    fn number(&self, (file, key): (&str, &str)) -> Result<u64> {
        let path = self.folder.join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        number(&text, key).with_context(|| format!("{}: no {key} in {text:?}", path.display()))
    }
}

/// Where a cgroup for this process's children may be made that counts memory.
///
/// # Errors
/// No memory controller is mounted.
pub fn parent() -> Result<(Version, PathBuf)> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
    let places = places(&read("/proc/mounts")?, &read("/proc/self/cgroup")?);
    places.into_iter().find(has_memory).context("no cgroup has the host's memory")
}

/// Whether cgroups in there count memory, as they are.
///
/// # Errors
/// The folder is no cgroup.
pub fn is_handed_down(version: Version, parent: &Path) -> Result<bool> {
    Ok(version == Version::V1 || hands_down(parent, "memory")?)
}

/// Of version 2: whether cgroups below this one have a controller.
fn hands_down(parent: &Path, controller: &str) -> Result<bool> {
    let file = parent.join(HANDED_DOWN);
    let names = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(has_word(&names, controller))
}

/// Of version 2: has cgroups below this one have a controller, until the host is put back.
fn hand_down(controller: &str, parent: &Path, keeper: &mut Keeper) -> Result<()> {
    if hands_down(parent, controller)? {
        return Ok(());
    }
    ensure!(has(parent, controller), "{}: its cgroups have no {controller} controller", parent.display());
    let file = parent.join(HANDED_DOWN);
    keeper.will(&format!("echo -{controller} > {}", quoted(&file)?))?;
    write(&file, &format!("+{controller}"))
}

/// Has a command run in the cgroup at `folder`, with everything that it starts.
///
/// # Errors
/// The cgroup is gone.
pub fn enter(folder: &Path, command: &mut Command) -> Result<()> {
    let path = folder.join("cgroup.procs");
    let processes = File::options().write(true).open(&path).with_context(|| path.display().to_string())?;
    // SAFETY: a write to an open file is async-signal-safe. Zero is the process that writes.
    unsafe { command.pre_exec(move || (&processes).write_all(b"0")) };
    Ok(())
}

fn number(text: &str, key: &str) -> Option<u64> {
    let of_line = |line: &str| match key {
        "" => Some(line.to_owned()),
        _ => line.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned),
    };
    text.lines().find_map(of_line)?.trim().parse().ok()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_ascii_whitespace().any(|found| found == word)
}

/// Where a cgroup may go: version 2 first, as version 1 has no memory where that has it.
fn places(mounts: &str, own: &str) -> Vec<(Version, PathBuf)> {
    let own_path = |is_own: &dyn Fn(&str) -> bool| {
        own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            is_own(controllers).then(|| PathBuf::from(path.trim_start_matches('/')))
        })
    };
    let place = |(mount, kind, options): (&Path, &str, &str)| {
        match kind {
            // A cgroup with processes, like this one's own, cannot have others below it that are limited.
            "cgroup2" => {
                let own = own_path(&str::is_empty).unwrap_or_default();
                Some((Version::V2, mount.join(own.parent().unwrap_or(Path::new("")))))
            }
            "cgroup" if options.split(',').any(|option| option == "memory") => {
                let own = own_path(&|controllers| controllers.split(',').any(|name| name == "memory"));
                let folder = mount.join(own.unwrap_or_default());
                // Whose own is outside what is mounted here, as in some containers, begins at the top.
                Some((Version::V1, if folder.exists() { folder } else { mount.to_owned() }))
            }
            _ => None,
        }
    };
    let mut places: Vec<_> = mounted(mounts).filter_map(place).collect();
    places.sort_by_key(|(version, _)| *version == Version::V1);
    places
}

fn has_memory((version, folder): &(Version, PathBuf)) -> bool {
    *version == Version::V1 || has(folder, "memory")
}

/// Of version 2: whether a cgroup has a controller that it could hand down.
fn has(folder: &Path, controller: &str) -> bool {
    fs::read_to_string(folder.join("cgroup.controllers")).is_ok_and(|names| has_word(&names, controller))
}

/// Kills whoever is left in it, and removes it: what takes more than a minute fails. A process outside of this one's namespace is
/// a zero there (pid_namespaces(7)), and is left.
pub(crate) fn removal(folder: &Path) -> Result<String> {
    let folder = quoted(folder)?;
    ensure!(!folder.ends_with('/'), "{folder}: a cgroup has a name");
    Ok(format!(
        "n=0; while [ -d {folder} ] && ! rmdir {folder} 2>/dev/null && [ $n -lt 600 ]; do \
         for pid in $(cat {folder}/cgroup.procs 2>/dev/null); do [ $pid = 0 ] || kill -9 $pid 2>/dev/null; done; \
         n=$((n + 1)); sleep 0.1; done; [ ! -d {folder} ]"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_goes_beside_its_makers_or_below_it() {
        let mounts = "proc /proc proc rw 0 0\ncgroup /nowhere/memory cgroup rw,memory 0 0\n\
                      cgroup /nowhere/cpu cgroup rw,cpu 0 0\ncgroup2 /nowhere/unified cgroup2 rw 0 0\n";
        let own = "4:memory:/a/b\n1:cpu:/\n0::/user.slice/session-1.scope\n";
        let expected = [(Version::V2, "/nowhere/unified/user.slice"), (Version::V1, "/nowhere/memory")];
        assert_eq!(places(mounts, own), expected.map(|(version, path)| (version, PathBuf::from(path))));
        let at_the_top = places("cgroup2 /nowhere cgroup2 rw 0 0\n", "0::/\n");
        assert_eq!(at_the_top, [(Version::V2, PathBuf::from("/nowhere/"))]);
        assert!(places("proc /proc proc rw 0 0\n", own).is_empty());
    }

    #[test]
    fn counters_are_found_by_their_names() {
        assert_eq!(number("4096\n", ""), Some(4096));
        let events = "low 0\nmax 275\noom 1\noom_kill 2\n";
        assert_eq!(
            (number(events, "max"), number(events, "oom_kill"), number(events, "oom")),
            (Some(275), Some(2), Some(1))
        );
        assert_eq!(number(events, "swap"), None);
    }
}
