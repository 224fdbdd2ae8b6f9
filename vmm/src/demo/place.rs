//! Where the demo keeps its files.

use std::env;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// File systems in memory: a swap file there would be no gain (statfs(2)).
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// Folders of the demo, gone when this is dropped.
pub struct Place {
    files: TempDir,
    swap: Option<TempDir>,
}

impl Place {
    /// Makes them.
    ///
    /// # Errors
    /// The temporary folder cannot be written to.
    pub fn new() -> Result<Self> {
        let files = builder().tempdir().context("temporary folder")?;
        Ok(Self { files, swap: swap_folders().iter().find_map(|folder| swap_in(folder)) })
    }

    /// The pool.
    pub fn pool(&self) -> PathBuf {
        self.files.path().join("pool")
    }

    /// The kernel all guests boot.
    pub fn kernel(&self) -> PathBuf {
        self.files.path().join("probe")
    }

    /// A guest's control socket.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.files.path().join(format!("{name}.sock"))
    }

    /// The folder for swap files, if there is a disk for them.
    pub fn swap(&self) -> Option<&Path> {
        self.swap.as_ref().map(TempDir::path)
    }
}

/// Where a swap file may be, the better place first.
fn swap_folders() -> Vec<PathBuf> {
    let own = env::var_os("TMPDIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    own.into_iter().chain([PathBuf::from("/var/tmp")]).collect()
}

/// A new folder in this one, if it is on a disk and takes nameless files.
fn swap_in(folder: &Path) -> Option<TempDir> {
    if is_in_memory(folder).ok()? {
        return None;
    }
    let folder = builder().tempdir_in(folder).ok()?;
    OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(folder.path()).ok()?;
    Some(folder)
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("cistern-demo-");
    builder
}

fn is_in_memory(folder: &Path) -> io::Result<bool> {
    let folder = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all zeroes is a valid statfs, which the kernel overwrites; the path ends with a zero.
    let system = unsafe {
        let mut system: libc::statfs = mem::zeroed();
        if libc::statfs(folder.as_ptr(), &mut system) != 0 {
            return Err(io::Error::last_os_error());
        }
        system
    };
    Ok(IN_MEMORY.contains(&(system.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_no_place_for_a_swap_file() {
        assert!(is_in_memory(Path::new("/dev/shm")).expect("a folder"));
        assert!(is_in_memory(Path::new("/nowhere")).is_err());
        assert!(swap_in(Path::new("/dev/shm")).is_none());
        assert!(swap_in(Path::new("/nowhere")).is_none());
    }

    #[test]
    fn nothing_is_left() {
        let place = Place::new().expect("folders");
        let folders: Vec<_> =
            [Some(place.files.path()), place.swap()].into_iter().flatten().map(PathBuf::from).collect();
        assert!(folders.iter().all(|folder| folder.is_dir()));
        drop(place);
        assert!(!folders.iter().any(|folder| folder.exists()));
    }
}
