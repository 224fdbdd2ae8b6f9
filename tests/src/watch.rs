//! What a VM costs the host, looked at from outside all the while.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::paged::files_open_in;

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(100);

/// The most that was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peak {
    /// Proportional set size of the process, the files it maps apart.
    pub pss_bytes: u64,
    /// Pages of its swap file in the page cache.
    pub cached_pages: u64,
    /// Times it was looked.
    pub looks: u64,
    /// Of those, with a swap file open.
    pub looks_at_swap: u64,
}

/// Looks at a process until it is finished or gone.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Peak>,
}

impl Watch {
    /// Of this process, whose swap file is in this folder if it has one.
    pub fn start(pid: u32, swap_folder: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, folder) = (Arc::clone(&stop), swap_folder.to_owned());
        let thread = thread::spawn(move || watch(pid, folder, &stopped));
        Self { stop, thread }
    }

    /// The most that was seen; at least one look was had.
    #[track_caller]
    pub fn finish(self) -> Peak {
        self.stop.store(true, Ordering::Relaxed);
        let peak = self.thread.join().expect("the watch is well");
        assert!(peak.looks > 0, "the process was never seen");
        peak
    }
}

fn watch(pid: u32, folder: PathBuf, stop: &AtomicBool) -> Peak {
    let mut peak = Peak::default();
    while !stop.load(Ordering::Relaxed) {
        let still = Still::all([pid]);
        if let Some(pss_bytes) = pss_bytes(pid) {
            peak.pss_bytes = peak.pss_bytes.max(pss_bytes);
            peak.looks += 1;
        }
        drop(still);
        for file in files_open_in(pid, &folder) {
            // It may be over by now.
            if let Some(pages) = File::open(file).ok().and_then(|file| cached_pages(&file)) {
                peak.cached_pages = peak.cached_pages.max(pages);
                peak.looks_at_swap += 1;
            }
        }
        thread::sleep(INTERVAL);
    }
    peak
}

/// Processes that are made to pause. The kernel counts one mapping after the other: pages that move between two of them in
/// the meantime would be counted twice, and many do on a machine that has other things to do than to count.
pub struct Still(Vec<libc::pid_t>);

impl Still {
    /// Of children that are not waited for meanwhile.
    pub fn all(processes: impl IntoIterator<Item = u32>) -> Self {
        let still = Self(processes.into_iter().map(|pid| pid as libc::pid_t).collect());
        still.signal(libc::SIGSTOP);
        // One that sleeps goes on sleeping: in a fault that nobody answers now it cannot be stopped, nor does it do anything.
        // A virtual CPU may even turn round and round there, in the kernel: it cannot bring in a page, nor move one.
        for pid in &still.0 {
            while fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().any(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                let (name, state) = stat.rsplit_once(") ").unwrap_or_default();
                state.starts_with('R') && !name.contains("(vcpu")
            }) {
                thread::yield_now();
            }
        }
        still
    }

    fn signal(&self, signal: i32) {
        for &pid in &self.0 {
            // SAFETY: kill takes two numbers; the process is a child that is not waited for while it is watched.
            unsafe { libc::kill(pid, signal) };
        }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.signal(libc::SIGCONT);
    }
}

/// Proportional set size of a process, the files it maps apart; `None` when it is gone. Its program is the only large one,
/// and what of it is reckoned to this process changes as other tests start the same.
pub fn pss_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(field_bytes(&rollup, "Pss_Anon:")? + field_bytes(&rollup, "Pss_Shmem:")?)
}

/// The same with the files it maps, its part of those that others map too.
pub fn pss_with_files_bytes(pid: u32) -> Option<u64> {
    field_bytes(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

/// A process's page tables; `None` when it is gone.
pub fn page_tables_bytes(pid: u32) -> Option<u64> {
    field_bytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmPTE:")
}

/// The number of a field like `Pss:   12 kB`, by the name with its colon.
fn field_bytes(text: &str, name: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix(" kB")?;
    Some(number.trim().parse::<u64>().ok()? * 1024)
}

/// Pages of a file in the page cache, as a mapping of it tells.
fn cached_pages(file: &File) -> Option<u64> {
    let bytes = file.metadata().ok()?.len() as usize;
    if bytes == 0 {
        return Some(0);
    }
    // SAFETY: a new mapping that is never accessed; its pages are only asked after.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return None;
    }
    let mut present = vec![0u8; bytes.div_ceil(4096)];
    // SAFETY: the mapping is as long as said, and there is a byte for each page.
    let result = unsafe { libc::mincore(address, bytes, present.as_mut_ptr()) };
    // SAFETY: the mapping made above, which nobody else knows.
    unsafe { libc::munmap(address, bytes) };
    (result == 0).then(|| present.iter().filter(|&&page| page & 1 != 0).count() as u64)
}
