//! Initial RAM file systems for guests: the project's own, with files, programs and modules added.
//!
//! The kernel unpacks archives that follow one another as one, so what is added comes as a second newc archive (Linux,
//! Documentation/driver-api/early-userspace/buffer-format) behind the one that `kernels/linux/build` makes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::CloudPackage;
use crate::guests::Guest;

/// What a stock distribution kernel needs to see all of the VMM's devices.
const GUEST_MODULES: [&str; 10] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "ext4",
    "evdev",
    "button",
    "pvpanic-mmio",
];

/// An initramfs being put together. Later additions replace earlier ones of the same path.
#[derive(Debug)]
pub struct Initramfs {
    base: PathBuf,
    /// By path inside the guest, without the leading slash: sorted, so a directory comes before what is in it.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory,
    File { content: Content, executable: bool },
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    Copy(PathBuf),
}

impl Initramfs {
    /// The project's initramfs: busybox, the helper programs, and the init.
    ///
    /// # Errors
    /// As for [`Guest::build`].
    pub fn new() -> Result<Initramfs> {
        Ok(Initramfs { base: Guest::Initramfs.build()?, entries: BTreeMap::new() })
    }

    /// The initramfs with which a stock Debian cloud kernel, as a guest, finds its virtio devices.
    ///
    /// # Errors
    /// As for [`Initramfs::new`] and [`CloudPackage::load_order`].
    pub fn for_cloud_guest(package: &CloudPackage) -> Result<Initramfs> {
        let mut initramfs = Initramfs::new()?;
        initramfs.add_modules(package, &GUEST_MODULES)?;
        Ok(initramfs)
    }

    /// Adds a file with the given content. `guest_path` is absolute.
    pub fn add_bytes(&mut self, guest_path: &str, content: impl Into<Vec<u8>>) {
        self.add(guest_path, Entry::File { content: Content::Bytes(content.into()), executable: false });
    }

    /// Adds a copy of a file of this machine, executable. `guest_path` is absolute.
    pub fn add_file(&mut self, guest_path: &str, source: &Path) {
        self.add(guest_path, Entry::File { content: Content::Copy(source.to_owned()), executable: true });
    }

    /// Adds a program of this machine under `/bin` with the shared libraries it needs at their own paths.
    ///
    /// # Errors
    /// It does not exist, is no program, or a library it needs is missing here.
    pub fn add_program(&mut self, source: &Path) -> Result<()> {
        let name = source.file_name().with_context(|| format!("{}: is no file", source.display()))?.to_string_lossy();
        for library in shared_libraries(source, Path::new(""))? {
            self.add_file(&library, Path::new(&library));
        }
        self.add_file(&format!("/bin/{name}"), source);
        Ok(())
    }

    /// Adds modules with all they depend on; init loads them before anything else, in the order of `names`. Once for an
    /// initramfs: a second call replaces the first one's list.
    ///
    /// # Errors
    /// As for [`CloudPackage::load_order`].
    pub fn add_modules(&mut self, package: &CloudPackage, names: &[&str]) -> Result<()> {
        let mut list = String::new();
        for (name, content) in package.load_order(names)? {
            let path = format!("/modules/{name}.ko");
            list.push_str(&path);
            list.push('\n');
            self.add_bytes(&path, content);
        }
        self.add_bytes("/modules.load", list);
        Ok(())
    }

    fn add(&mut self, guest_path: &str, entry: Entry) {
        let path = guest_path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// A source that cannot be read, or `destination` not be written.
    pub fn write(&self, destination: &Path) -> Result<()> {
        let file = File::create(destination).with_context(|| destination.display().to_string())?;
        let mut out = BufWriter::new(file);
        out.write_all(&fs::read(&self.base).with_context(|| self.base.display().to_string())?)?;
        for (path, entry) in &self.entries {
            match entry {
                Entry::Directory => write_member(&mut out, path, 0o040755, &[])?,
                Entry::File { content, executable } => {
                    let mode = if *executable { 0o100755 } else { 0o100644 };
                    match content {
                        Content::Bytes(bytes) => write_member(&mut out, path, mode, bytes)?,
                        Content::Copy(source) => {
                            let bytes = fs::read(source).with_context(|| source.display().to_string())?;
                            write_member(&mut out, path, mode, &bytes)?;
                        }
                    }
                }
            }
        }
        write_member(&mut out, "TRAILER!!!", 0, &[])?;
        out.flush().with_context(|| destination.display().to_string())?;
        Ok(())
    }
}

/// One member of a newc archive: header of hexadecimal fields, name, content, each padded to four bytes.
fn write_member(out: &mut impl Write, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).with_context(|| format!("{path}: too large for an initramfs"))?;
    let name_size = path.len() + 1;
    // Inode 0 for all: only members with several links are told apart by it.
    let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size as u32, 0];
    write!(out, "070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(path.as_bytes())?;
    let header_size = 110 + name_size;
    out.write_all(&[0; 4][..1 + padding(header_size)])?;
    out.write_all(content)?;
    out.write_all(&[0; 4][..padding(content.len())])?;
    Ok(())
}

/// Bytes missing to a multiple of four.
fn padding(size: usize) -> usize {
    size.next_multiple_of(4) - size
}

/// Absolute paths of the libraries (and the loader) a program is linked with, those in `folder` before this machine's own; none
/// for a static one.
pub(crate) fn shared_libraries(program: &Path, folder: &Path) -> Result<Vec<String>> {
    if !program.is_file() {
        bail!("{}: no such program", program.display());
    }
    let ldd = Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", folder).output();
    let output = ldd.context("ldd (Debian package libc-bin)")?;
    let listing = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = listing.lines().find(|line| line.contains("not found")) {
        bail!("{}: shared library {}", program.display(), missing.trim());
    }
    Ok(listing
        .split_whitespace()
        .filter(|word| word.starts_with('/') && word.contains(".so"))
        .map(|path| path.trim_end_matches(':').to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cpio, another program, makes of an archive of ours.
    #[test]
    fn cpio_reads_it_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let base = directory.path().join("base");
        fs::write(&base, []).expect("base");
        let mut initramfs = Initramfs { base, entries: BTreeMap::new() };
        for size in 0..6 {
            initramfs.add_bytes(&format!("/some/where/{size}"), vec![b'x'; size]);
        }
        initramfs.add_program(Path::new("/bin/sh")).expect("a program");
        let archive = directory.path().join("a.cpio");
        initramfs.write(&archive).expect("written");
        let root = directory.path().join("root");
        fs::create_dir(&root).expect("root");
        let status = Command::new("cpio")
            .args(["--quiet", "-idm", "--no-absolute-filenames"])
            .stdin(File::open(&archive).expect("archive"))
            .current_dir(&root)
            .status()
            .expect("cpio (Debian package cpio)");
        assert!(status.success());
        for size in 0..6 {
            assert_eq!(fs::read(root.join(format!("some/where/{size}"))).expect("member"), vec![b'x'; size]);
        }
        assert_eq!(fs::read(root.join("bin/sh")).expect("program"), fs::read("/bin/sh").expect("original"));
        let loader = shared_libraries(Path::new("/bin/sh"), Path::new("")).expect("libraries");
        assert!(!loader.is_empty(), "the shell of this machine is dynamically linked");
        assert!(loader.iter().all(|path| root.join(path.trim_start_matches('/')).is_file()), "{loader:?}");
    }

    #[test]
    fn missing_program_is_named() {
        let error = shared_libraries(Path::new("/no/such/program"), Path::new("")).expect_err("no such program");
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
