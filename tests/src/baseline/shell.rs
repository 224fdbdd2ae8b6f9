//! Programs and files of the host, by name.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A path as text.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: not UTF-8", path.display()))
}

/// A path for the shell. Those with characters that mean something to it are refused.
pub(super) fn quoted(path: &Path) -> Result<&str> {
    let text = text(path)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    ensure!(text.chars().all(is_plain), "{text}: only letters, digits and ._- here, please");
    Ok(text)
}

/// What is mounted, by `/proc/mounts`: where, of which kind, with which options (proc_pid_mounts(5)).
pub(super) fn mounted(mounts: &str) -> impl Iterator<Item = (&Path, &str, &str)> {
    mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((Path::new(words.nth(1)?), words.next()?, words.next()?))
    })
}

/// Writes to a file of the kernel's.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("{}: writing {value}", path.display()))
}

/// Runs a program.
///
/// # Errors
/// It is not there; it failed, with what it said.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    output(program, arguments).map(drop)
}

/// The same, and what it printed.
pub(super) fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
