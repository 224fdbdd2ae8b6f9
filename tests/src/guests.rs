//! The Linux test guests, built by `kernels/linux/build`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// One thing `kernels/linux/build` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Uniprocessor kernel, frugal enough for hosts that interpret it; ELF.
    Vmlinux,
    /// SMP kernel for ordinary hosts; ELF.
    VmlinuxSmp,
    /// busybox, the helper programs and the init that knows `init.run="..."`; an uncompressed newc archive.
    Initramfs,
}

impl Guest {
    /// The file's name under [`folder`].
    pub fn file_name(self) -> &'static str {
        match self {
            Guest::Vmlinux => "vmlinux",
            Guest::VmlinuxSmp => "vmlinux-smp",
            Guest::Initramfs => "initramfs.cpio",
        }
    }

    /// Builds it, unless it is up to date, and returns its path.
    ///
    /// # Errors
    /// The build script's own message: what failed, or which Debian packages are missing.
    pub fn build(self) -> Result<PathBuf> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/linux/build");
        let output = Command::new(&script)
            .arg(self.file_name())
            .env("CARGO_TARGET_DIR", process::target_folder())
            .output()
            .with_context(|| format!("{}: cannot be started", script.display()))?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(folder().join(self.file_name()))
    }
}

/// Where built and fetched guests lie: `guests` in cargo's target folder.
pub fn folder() -> PathBuf {
    process::target_folder().join("guests")
}
