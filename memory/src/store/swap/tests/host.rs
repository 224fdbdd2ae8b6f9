//! What the swap file promises about the host: its disk, its page cache, other users, and ends of all kinds.
//!
//! Small file systems of their own are mounted for this, in a mount namespace of the test's thread; that takes root.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

const FOLDER_VARIABLE: &str = "CISTERN_TEST_SWAP_FOLDER";

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `test` in a thread with mounts of its own, which end with it.
fn with_own_mounts(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only this thread's view of mounts and its working directory change.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "a mount namespace takes root");
            run("mount", &["--make-rprivate", "/"]);
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// An ext4 of 4 MiB, mounted. `with_own_mounts` unmounts it.
struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    fn new(mkfs: &[&str], mount: &str) -> Self {
        let folder = folder();
        let image = folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let disk = Self { folder };
        fs::create_dir(disk.path()).unwrap();
        let image = image.to_str().unwrap();
        run("mkfs.ext4", &[&["-q"], mkfs, &[image]].concat());
        run("mount", &["-o", &format!("loop,{mount}"), image, disk.path().to_str().unwrap()]);
        disk
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn free_bytes(&self) -> u64 {
        let output = Command::new("stat").args(["-f", "-c", "%f %S"]).arg(self.path()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (blocks, size) = text.trim().split_once(' ').unwrap();
        blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &[self.path().to_str().unwrap()]);
    }
}

/// How many of the file's pages are in the page cache.
fn cached_pages(file: &File) -> usize {
    let length = file.metadata().unwrap().len() as usize;
    let mut pages = vec![0_u8; length.div_ceil(PAGE_BYTES)];
    // SAFETY: a new mapping, which nobody touches, and a vector with a byte for each of its pages.
    unsafe {
        let map = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED);
        assert_eq!(libc::mincore(map, length, pages.as_mut_ptr()), 0);
        libc::munmap(map, length);
    }
    pages.iter().filter(|page| **page & 1 == 1).count()
}

fn write_and_read_all(swap: &SwapFile, count: u64) {
    let slots = swap.write(&references(&pages(0..count))).unwrap();
    for (slot, seed) in slots.into_iter().zip(0..) {
        assert!(read_one(swap, slot).unwrap().0 == page(seed).0);
    }
}

#[test]
fn the_page_cache_stays_empty() {
    let folder = folder();
    let swap = SwapFile::open(folder.path(), 64 << 20).unwrap();
    write_and_read_all(&swap, 1000);
    assert_eq!(cached_pages(&swap.file), 0, "direct");
    let swap = faulty(1000, Caching::Buffered);
    let slots = swap.write(&references(&pages(0..1000))).unwrap();
    assert_eq!(cached_pages(&swap.file.file), 0, "buffered, written");
    for slot in &slots {
        read_one(&swap, *slot).unwrap();
    }
    assert_eq!(cached_pages(&swap.file.file), 0, "buffered, read");
    // The measure measures: a plain read does fill the cache.
    std::os::unix::fs::FileExt::read_exact_at(&swap.file.file, &mut [0; 4096], 0).unwrap();
    assert!(cached_pages(&swap.file.file) > 0);
}

#[test]
fn a_file_system_that_refuses_direct_io_is_buffered() {
    with_own_mounts(|| {
        let disk = SmallDisk::new(&["-J", "size=1"], "data=journal");
        let swap = SwapFile::open(&disk.path(), 64 << 20).unwrap();
        assert_eq!(swap.statistics().caching, Caching::Buffered);
        write_and_read_all(&swap, 300);
        assert_eq!(cached_pages(&swap.file), 0);
    });
}

#[test]
fn a_full_disk_loses_nothing() {
    with_own_mounts(|| {
        let disk = SmallDisk::new(&["-O", "^has_journal"], "rw");
        let swap = SwapFile::open(&disk.path(), 64 << 20).unwrap();
        let mut held: Vec<(Slot, u64)> = Vec::new();
        let mut seed = 0;
        let error = loop {
            match swap.write(&references(&pages(seed..seed + 64))) {
                Ok(slots) => held.extend(slots.into_iter().zip(seed..)),
                Err(error) => break error,
            }
            seed += 64;
            assert!(seed < 4096, "4 MiB hold no 16");
        };
        assert!(
            matches!(&error.cause, SwapError::Write { cause, .. } if cause.raw_os_error() == Some(libc::ENOSPC)),
            "{error}"
        );
        assert!(held.len() > 256 && swap.statistics().unavailable);
        for (slot, seed) in &held {
            assert!(read_one(&swap, *slot).unwrap().0 == page(*seed).0);
        }
        // Room is made, and the disk is used again.
        for (slot, _) in held.drain(..128) {
            swap.free(slot).unwrap();
        }
        swap.retry();
        let slots = swap.write(&references(&pages(9000..9064))).unwrap();
        held.extend(slots.into_iter().zip(9000..));
        for (slot, seed) in &held {
            assert!(read_one(&swap, *slot).unwrap().0 == page(*seed).0);
        }
    });
}

#[test]
fn holes_give_blocks_back() {
    let folder = folder();
    let swap = SwapFile::open(folder.path(), 64 << 20).unwrap();
    let blocks = || swap.file.metadata().unwrap().blocks() * 512;
    assert!(blocks() < 64 << 10, "an empty file has no blocks");
    let slots = swap.write(&references(&pages(0..2048))).unwrap();
    let full = blocks();
    assert!(full >= 8 << 20);
    for slot in &slots[512..1536] {
        swap.free(*slot).unwrap();
    }
    assert_eq!(blocks(), full, "freeing alone does no I/O");
    assert_eq!(swap.statistics().reclaimable_bytes, 4 << 20);
    assert_eq!(swap.punch_holes(16), 4 << 20);
    // The file system may need a block or two more to note where the pieces are.
    assert!(blocks() <= full - (4 << 20) + (16 << 10), "{} of {full}", blocks());
    for slot in slots[..512].iter().chain(&slots[1536..]) {
        assert!(read_one(&swap, *slot).unwrap().0 == page(slot.index().into()).0);
        swap.free(*slot).unwrap();
    }
    swap.punch_holes(1);
    assert!(blocks() < 64 << 10, "{}", blocks());
}

#[test]
fn folders_that_will_not_do_are_refused() {
    with_own_mounts(|| {
        let folder = folder();
        let at = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        for kind in ["tmpfs", "ramfs"] {
            let path = at(kind);
            run("mount", &["-t", kind, "none", path.to_str().unwrap()]);
            let error = SwapFile::open(&path, 1 << 20).err().unwrap();
            assert!(matches!(error, OpenError::InMemory { .. }), "{error}");
            assert!(error.to_string().contains(kind) && error.to_string().contains(path.to_str().unwrap()));
            run("umount", &[path.to_str().unwrap()]);
        }
        let disk = SmallDisk::new(&[], "ro");
        assert!(matches!(SwapFile::open(&disk.path(), 1 << 20).err(), Some(OpenError::Create { .. })));
        assert!(matches!(SwapFile::open(&folder.path().join("none"), 1 << 20).err(), Some(OpenError::Folder { .. })));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(matches!(SwapFile::open(&folder.path().join("file"), 1 << 20).err(), Some(OpenError::Folder { .. })));
        assert!(matches!(SwapFile::open(Path::new("a\0b"), 1 << 20).err(), Some(OpenError::Folder { .. })));
    });
}

#[test]
fn the_file_has_no_name_and_one_owner() {
    let folder = folder();
    let swap = SwapFile::open(folder.path(), 1 << 20).unwrap();
    // The path under which others would have to open it.
    let descriptor = format!("/proc/{}/fd/{}", std::process::id(), swap.file.as_raw_fd());
    for file in [&swap.file, &folder::unlinked(&fs::File::open(folder.path()).unwrap().into()).unwrap()] {
        assert_eq!(
            (file.metadata().unwrap().nlink(), file.metadata().unwrap().permissions().mode() & 0o7777),
            (0, 0o600)
        );
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let reads = |user: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(user).args(["head", "-c1", &descriptor]).stderr(Stdio::null()).stdout(Stdio::null());
        command.status().unwrap().success()
    };
    assert!(reads(&[]), "the owner may");
    assert!(!reads(&["--reuid=65534", "--regid=65534", "--clear-groups"]), "another user may not");
    // No way to give it a name later either.
    let link = std::ffi::CString::new(folder.path().join("link").to_str().unwrap()).unwrap();
    let from = std::ffi::CString::new(descriptor.replace(&std::process::id().to_string(), "self")).unwrap();
    // SAFETY: both names are terminated strings that outlive the call.
    let code =
        unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, link.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    assert_eq!(code, -1);
}

/// This test program again, running only `test`.
fn child(test: &str, folder: &Path, shell: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]).arg(program);
    command.args(["--ignored", "--exact", "--nocapture", &format!("store::swap::tests::host::{test}")]);
    command.env(FOLDER_VARIABLE, folder);
    command
}

#[test]
fn a_killed_process_leaves_nothing() {
    with_own_mounts(|| {
        let disk = SmallDisk::new(&["-O", "^has_journal"], "rw");
        let before = disk.free_bytes();
        let mut child = child("writes_and_waits", &disk.path(), "").stdout(Stdio::piped()).spawn().unwrap();
        let mut said = Vec::new();
        let mut output = child.stdout.take().unwrap();
        while !said.ends_with(b"written\n") {
            let mut byte = [0];
            output.read_exact(&mut byte).expect("the child ends too early");
            said.push(byte[0]);
        }
        assert!(disk.free_bytes() <= before - (1 << 20), "the child's pages are on the disk");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(disk.free_bytes(), before);
        let names: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["lost+found"]);
    });
}

#[test]
#[ignore = "the child of a_killed_process_leaves_nothing"]
fn writes_and_waits() {
    let folder = std::env::var_os(FOLDER_VARIABLE).expect("started by its parent");
    let swap = SwapFile::open(Path::new(&folder), 2 << 20).unwrap();
    swap.write(&references(&pages(0..256))).unwrap();
    println!("written");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_file_size_limit_ends_no_process() {
    let folder = folder();
    let status = child("writes_to_the_file_size_limit", folder.path(), "ulimit -f 256;").status().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "the child of a_file_size_limit_ends_no_process"]
fn writes_to_the_file_size_limit() {
    let folder = std::env::var_os(FOLDER_VARIABLE).expect("started by its parent");
    let swap = SwapFile::open(Path::new(&folder), 1 << 30).unwrap();
    let error = swap.write(&references(&pages(0..1000))).unwrap_err();
    assert!(matches!(error.cause, SwapError::Full { .. }), "{error}");
    assert!(error.written.len() == 32 || error.written.len() == 64, "256 blocks of 512 or 1024 bytes");
}
