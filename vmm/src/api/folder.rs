//! Where control sockets live unless the user says otherwise: a folder nobody else may look into.

use std::env;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What the names of sockets end in.
const EXTENSION: &str = "sock";
/// What the owner may, and nobody else.
const OWN_FOLDER_MODE: u32 = 0o700;

/// Why there is no folder for control sockets.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be made or looked at.
    #[error("control socket: folder {}: {cause}: name a socket with --api-sock", path.display())]
    Make {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Somebody else could change what is in it.
    #[error("control socket: {}: not a folder of this user's: name a socket with --api-sock", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
}

/// The user this process acts as.
pub fn user_id() -> u32 {
    // SAFETY: a plain system call that cannot fail.
    unsafe { libc::geteuid() }
}

/// The folder of this user's control sockets, which need not exist: `cistern` in `$XDG_RUNTIME_DIR` or `/run/user/UID`,
/// else `/tmp/cistern-UID`.
pub fn runtime_folder() -> PathBuf {
    let user_id = user_id();
    let told = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{user_id}"));
    choose(told, usual, user_id)
}

/// A runtime folder must be its user's own: after `su` the variable may still name another's.
fn choose(told: Option<PathBuf>, usual: PathBuf, user_id: u32) -> PathBuf {
    let is_own =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user_id);
    let told = told.filter(|path| path.is_absolute());
    match told.into_iter().chain([usual]).find(is_own) {
        Some(folder) => folder.join("cistern"),
        None => PathBuf::from(format!("/tmp/cistern-{user_id}")),
    }
}

/// Makes the folder, or makes sure that it is this user's and nobody else's.
///
/// # Errors
/// [`FolderError`].
pub fn make(path: &Path) -> Result<(), FolderError> {
    let failed = |cause| FolderError::Make { path: path.to_owned(), cause };
    match DirBuilder::new().mode(OWN_FOLDER_MODE).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    // In /tmp anybody may have been there first, with a link to elsewhere.
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != user_id() {
        return Err(FolderError::Foreign { path: path.to_owned() });
    }
    if metadata.mode() & 0o777 != OWN_FOLDER_MODE {
        fs::set_permissions(path, Permissions::from_mode(OWN_FOLDER_MODE)).map_err(failed)?;
    }
    Ok(())
}

/// The socket of the VM with this name.
pub fn socket_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.{EXTENSION}"))
}

/// Names that have a socket in the folder, in order; VMs that were killed have left theirs.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_first_folder_of_ones_own_is_taken() {
        let own = tempfile::tempdir().expect("folder");
        let (own, nowhere) = (own.path().to_owned(), PathBuf::from("/nonexistent"));
        let user = user_id();
        assert_eq!(choose(Some(own.clone()), nowhere.clone(), user), own.join("cistern"));
        assert_eq!(choose(Some(nowhere.clone()), own.clone(), user), own.join("cistern"));
        assert_eq!(choose(None, own.clone(), user), own.join("cistern"));
        assert_eq!(choose(None, nowhere.clone(), 7), PathBuf::from("/tmp/cistern-7"));
        assert_eq!(choose(Some("relative".into()), nowhere.clone(), 7), PathBuf::from("/tmp/cistern-7"));
        // What belongs to another is passed over.
        assert_eq!(choose(Some(own.clone()), own, user + 1), PathBuf::from(format!("/tmp/cistern-{}", user + 1)));
    }

    #[test]
    fn a_folder_is_closed_to_others() {
        let parent = tempfile::tempdir().expect("folder");
        let folder = parent.path().join("cistern");
        let mode = || fs::symlink_metadata(&folder).expect("it is there").mode() & 0o777;
        make(&folder).expect("made");
        assert_eq!(mode(), 0o700);
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).expect("ours");
        make(&folder).expect("made ours alone");
        assert_eq!(mode(), 0o700);

        let link = parent.path().join("link");
        symlink(&folder, &link).expect("a link");
        assert!(matches!(make(&link), Err(FolderError::Foreign { .. })));
        let file = parent.path().join("file");
        fs::write(&file, "").expect("write");
        assert!(matches!(make(&file), Err(FolderError::Foreign { .. })));
        assert!(matches!(make(&parent.path().join("no/parent")), Err(FolderError::Make { .. })));
    }

    #[test]
    fn names_are_those_of_sockets() {
        let folder = tempfile::tempdir().expect("folder");
        for file in ["b.sock", "a.b.sock", "other", ".lock"] {
            fs::write(folder.path().join(file), "").expect("write");
        }
        assert_eq!(names(folder.path()), ["a.b", "b"]);
        assert!(names(&folder.path().join("nonexistent")).is_empty());
        assert_eq!(socket_path(folder.path(), "a.b"), folder.path().join("a.b.sock"));
    }
}
