//! Files in a pool's folder, beside its ledger: each is there whole or not at all, for its owner alone, and never mapped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file is read and written in pieces of this size.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// What the name of a file ends in while it is being written.
pub(super) const UNFINISHED: &str = "new";

/// Why a file of the pool's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {action}: {cause}", path.display())]
pub struct FolderError {
    /// The file, or the folder.
    pub path: PathBuf,
    /// What was done.
    pub action: &'static str,
    /// What the kernel said.
    pub cause: io::Error,
}

/// An error of an operation on a file.
pub(super) fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |cause| FolderError { path, action, cause }
}

/// Opens a file to read it; `None` if there is none, or something else in its place.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    // Nobody is led elsewhere by a link, or kept waiting by a pipe.
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) if cause.raw_os_error() == Some(libc::ELOOP) => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// A file under the name it has while it is written, gone with this unless it is given its own.
pub(super) struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    /// Writes a file. Nobody else writes one of this name at the same time; what an earlier one left is removed.
    pub fn write(
        path: PathBuf,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<Self, FolderError> {
        remove(&path).map_err(failed(&path, "removing what was left"))?;
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut writer = BufWriter::with_capacity(PIECE_BYTES, made.map_err(failed(&path, "making it"))?);
        let unfinished = Self { path };
        let written = write(&mut writer).and_then(|()| writer.flush());
        written.map_err(failed(&unfinished.path, "writing"))?;
        Ok(unfinished)
    }

    /// Puts it in the place of whatever has this name.
    pub fn replace(self, path: &Path) -> Result<(), FolderError> {
        fs::rename(&self.path, path).map_err(failed(path, "putting it in place"))
    }

    /// Gives it this name if nothing has it.
    pub fn add(self, path: &Path) -> Result<(), FolderError> {
        match fs::hard_link(&self.path, path) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed(path, "putting it in place")(cause))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Nothing is there under this name any more if it was put in place.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a file; tells whether there was one.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn write(path: PathBuf, bytes: &[u8]) -> Unfinished {
        Unfinished::write(path, |file| file.write_all(bytes)).unwrap()
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("file"), folder.path().join("file.new"));
        fs::write(&new, "left by somebody who was killed").unwrap();
        write(new.clone(), b"one").replace(&path).unwrap();
        assert_eq!(names(folder.path()), ["file"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        write(new.clone(), b"two").add(&path).unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"one".to_vec(), vec!["file".to_owned()]));
        write(new.clone(), b"three").replace(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        let no_disk = Unfinished::write(new, |_| Err(io::ErrorKind::StorageFull.into()));
        assert!(no_disk.is_err_and(|error| error.to_string().contains("file.new: writing: ")));
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        fs::write(path("file"), "").unwrap();
        symlink(path("file"), path("link")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        assert!(open(&path("file")).unwrap().is_some());
        for name in ["missing", "link", "folder"] {
            assert!(open(&path(name)).unwrap().is_none(), "{name}");
        }
        assert!(remove(&path("file")).unwrap());
        assert!(!remove(&path("file")).unwrap());
    }
}
