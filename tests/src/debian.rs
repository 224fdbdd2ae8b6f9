//! Debian's cloud kernels, unmodified: fetched once, unpacked beside the other guests.
//!
//! They serve twice: as the kernel of the nested host, and as the stock distribution guest that must boot.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::guests;

/// A cloud kernel that can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloudKernel {
    /// Linux 6.1: userfaultfd without `UFFDIO_MOVE`.
    V6_1,
    /// Linux 6.12: userfaultfd with `UFFDIO_MOVE`.
    V6_12,
}

impl CloudKernel {
    /// `6.1` or `6.12`.
    pub fn version(self) -> &'static str {
        match self {
            CloudKernel::V6_1 => "6.1",
            CloudKernel::V6_12 => "6.12",
        }
    }

    /// Fetches and unpacks the newest package of this version, unless that was done before.
    ///
    /// # Errors
    /// No such package in apt's lists, no network, a package that does not hold what it should.
    pub fn fetch(self) -> Result<CloudPackage> {
        let package = self.version();
        CloudPackage::open(&unpacked_once(package, |folder| unpack(&self.package_name()?, folder).map(drop))?)
    }

    /// The newest package's name in apt's lists, like `linux-image-6.12.9+deb12-cloud-amd64-unsigned`.
    fn package_name(self) -> Result<String> {
        let pattern = format!("^linux-image-{}\\.[0-9].*-cloud-amd64-unsigned$", self.version().replace('.', "\\."));
        let listing = run(Command::new("apt-cache").args(["search", "--names-only", &pattern]), "apt")?;
        listing
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .max_by_key(|name| numbers(name))
            .map(str::to_owned)
            .with_context(|| format!("apt's lists have no package {pattern}: run apt-get update"))
    }
}

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct CloudPackage {
    /// The kernel, a bzImage.
    pub bzimage: PathBuf,
    /// What `uname -r` prints under it.
    pub release: String,
    /// Module name, `_` for `-`, to the file it is in.
    modules: BTreeMap<String, PathBuf>,
    /// Names of what other kernels have as modules and this one has built in.
    built_in: Vec<String>,
}

impl CloudPackage {
    fn open(tree: &Path) -> Result<CloudPackage> {
        let all_modules = tree.join("lib/modules");
        let directory = fs::read_dir(&all_modules)
            .with_context(|| format!("{}: no modules", all_modules.display()))?
            .next()
            .with_context(|| format!("{}: is empty", all_modules.display()))??
            .path();
        let release = name_of(&directory);
        let bzimage = tree.join(format!("boot/vmlinuz-{release}"));
        if !bzimage.exists() {
            bail!("{}: not in the package", bzimage.display());
        }
        let built_in = fs::read_to_string(directory.join("modules.builtin"))
            .with_context(|| format!("{}/modules.builtin", directory.display()))?
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut modules = BTreeMap::new();
        let mut pending = vec![directory.join("kernel")];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    pending.push(path);
                } else if let Some(name) = module_name(&path) {
                    modules.insert(name, path);
                }
            }
        }
        Ok(CloudPackage { bzimage, release, modules, built_in })
    }

    /// The modules in `names` and all they depend on, as (name, content not compressed), dependencies first. What the
    /// kernel has built in is left out.
    ///
    /// # Errors
    /// A module that is neither in the package nor built in; a file that cannot be read or decompressed.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut order = Vec::new();
        for name in names {
            self.add(&name.replace('-', "_"), &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if order.iter().any(|(present, _)| present == name) || self.built_in.iter().any(|present| present == name) {
            return Ok(());
        }
        let path = self.modules.get(name).with_context(|| format!("Linux {}: has no module {name}", self.release))?;
        let content = if path.extension().is_some_and(|extension| extension == "xz") {
            let output = Command::new("xz").arg("-dc").arg(path).output().context("xz (Debian package xz-utils)")?;
            if !output.status.success() {
                bail!("{}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim_end());
            }
            output.stdout
        } else {
            fs::read(path).with_context(|| path.display().to_string())?
        };
        for dependency in dependencies(&content) {
            self.add(&dependency, order)?;
        }
        order.push((name.to_owned(), content));
        Ok(())
    }
}

/// The `depends=` entry of a module's .modinfo section. The package comes without modules.dep: that is made when it is
/// installed.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &module[start + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// `virtio_rng` for `.../virtio-rng.ko.xz`; nothing for files that are no modules.
fn module_name(path: &Path) -> Option<String> {
    let name = name_of(path);
    let stem = name.strip_suffix(".xz").unwrap_or(&name).strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// All numbers in a name, for comparing versions: 6.12.9 is older than 6.12.11.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The tree of files of this name beside the guests, made in a folder that it is given by `make` unless that was done before:
/// complete, or not there at all.
///
/// # Errors
/// Those of `make`; the disk's.
pub(crate) fn unpacked_once(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = guests::folder().join("debian").join(name);
    fs::create_dir_all(&directory).with_context(|| format!("{}: cannot be created", directory.display()))?;
    // Tests run in several processes: one fetches, the others wait.
    let lock = File::create(directory.join("lock"))?;
    lock.lock().with_context(|| format!("{}/lock", directory.display()))?;
    let tree = directory.join("tree");
    if !tree.exists() {
        let unpacked = directory.join("unpacking");
        if unpacked.exists() {
            fs::remove_dir_all(&unpacked)?;
        }
        fs::create_dir(&unpacked)?;
        make(&unpacked)?;
        fs::rename(&unpacked, &tree)?;
    }
    Ok(tree)
}

/// Fetches a package and unpacks it into a folder, with what is there; the names of the packages that it says it needs.
///
/// # Errors
/// No such package in apt's lists, no network.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<Vec<String>> {
    let download = tempfile::tempdir_in(folder.parent().context("a folder lies in another")?)?;
    run(Command::new("apt-get").args(["download", "-q", package]).current_dir(&download), "apt")?;
    let archive = fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package}: left no .deb file"))?;
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(folder), "dpkg")?;
    let needed = run(Command::new("dpkg-deb").arg("-f").arg(&archive).arg("Depends"), "dpkg")?;
    Ok(package_names(&needed))
}

/// Names in a `Depends:` field, of alternatives the first (deb-control(5)).
fn package_names(depends: &str) -> Vec<String> {
    let name = |entry: &str| entry.split_whitespace().next().map(|word| word.trim_end_matches(":any").to_owned());
    depends.split(',').filter_map(name).collect()
}

/// Runs a command to its end; its standard output, or an error with what it said. `package` is where it comes from.
fn run(command: &mut Command, package: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} (Debian package {package})"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_by_number() {
        assert!(numbers("linux-image-6.12.11+deb12-cloud") > numbers("linux-image-6.12.9+deb12-cloud"));
        assert!(numbers("linux-image-6.1.0-47-cloud") < numbers("linux-image-6.1.0-50-cloud"));
    }

    #[test]
    fn packages_by_what_needs_them() {
        let field = "adduser, perl:any, libc6 (>= 2.34), libevent-2.1-7 (>= 2.1.8-stable) | libevent\n";
        assert_eq!(package_names(field), ["adduser", "perl", "libc6", "libevent-2.1-7"]);
    }

    #[test]
    fn module_names() {
        assert_eq!(module_name(Path::new("kernel/a/virtio-rng.ko.xz")).as_deref(), Some("virtio_rng"));
        assert_eq!(module_name(Path::new("kernel/kvm.ko")).as_deref(), Some("kvm"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }

    #[test]
    fn dependencies_from_modinfo() {
        assert_eq!(dependencies(b"x\0license=GPL\0depends=kvm,irq-bypass\0retpoline=Y\0"), ["kvm", "irq_bypass"]);
        assert!(dependencies(b"x\0depends=\0name=kvm").is_empty());
        assert!(dependencies(b"no modinfo").is_empty());
    }
}
