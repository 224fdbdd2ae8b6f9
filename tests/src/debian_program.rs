//! Programs of Debian's for guests, with the libraries they need: fetched once and unpacked beside the guests. Nothing is installed
//! here, so that no service of theirs starts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::{unpack, unpacked_once};
use crate::initramfs::shared_libraries;

/// What every machine that could build the guests has itself, and its programs are linked with.
const C_LIBRARY: &str = "libc6";

/// An unpacked package with the libraries that it needs.
#[derive(Clone, Debug)]
pub struct DebianProgram {
    tree: PathBuf,
}

impl DebianProgram {
    /// Fetches and unpacks it, unless that was done before.
    ///
    /// # Errors
    /// No such package in apt's lists, no network.
    pub fn fetch(package: &str) -> Result<Self> {
        let tree = unpacked_once(package, |folder| {
            let (mut wanted, mut known) = (vec![package.to_owned()], vec![C_LIBRARY.to_owned()]);
            while let Some(package) = wanted.pop() {
                let needed = unpack(&package, folder)?;
                known.push(package);
                let is_new = |name: &String| name.starts_with("lib") && !known.contains(name) && !wanted.contains(name);
                let new: Vec<_> = needed.into_iter().filter(is_new).collect();
                wanted.extend(new);
            }
            Ok(())
        });
        Ok(Self { tree: tree.with_context(|| format!("Debian's {package}"))? })
    }

    /// Copies a program, by its path in the package, and all it is linked with, the loader too, into one folder, and returns
    /// the loader's name: what starts the program there.
    ///
    /// # Errors
    /// It is not in the package; a library it needs is neither there nor on this machine.
    pub fn copy_to(&self, program: &str, folder: &Path) -> Result<String> {
        let program = self.tree.join(program);
        let libraries = shared_libraries(&program, &self.tree.join("usr/lib/x86_64-linux-gnu"))?;
        let mut loader = None;
        for source in libraries.iter().map(PathBuf::from).chain([program.clone()]) {
            let name = source.file_name().with_context(|| format!("{}: is no file", source.display()))?;
            fs::copy(&source, folder.join(name)).with_context(|| source.display().to_string())?;
            let name = name.to_string_lossy();
            if name.starts_with("ld-") {
                loader = Some(name.into_owned());
            }
        }
        loader.with_context(|| format!("{}: is linked without a loader", program.display()))
    }
}
