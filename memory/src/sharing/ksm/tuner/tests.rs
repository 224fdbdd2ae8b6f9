//! KSM itself, driven for a moment.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::*;
use crate::sharing::ksm::turn::await_until;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(120);

const PAGES: usize = 1024;

/// Memory of equal pages that is advised. Made after a tuner it goes before it.
struct Advised {
    address: *mut libc::c_void,
}

impl Advised {
    fn new() -> Self {
        let bytes = PAGES * 4096;
        // SAFETY: a new mapping, of anonymous memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED);
        // SAFETY: all of it is mapped, and nobody else's.
        let result = unsafe {
            libc::memset(address, 0x5a, bytes);
            libc::madvise(address, bytes, libc::MADV_MERGEABLE)
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Self { address }
    }

    /// Host pages behind it (kernel Documentation/admin-guide/mm/pagemap.rst); the kernel's counters of this process have
    /// those of other tests too.
    fn host_pages(&self) -> usize {
        let mut entries = [0; PAGES * 8];
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entries, self.address as u64 / 4096 * 8).unwrap();
        let frame = |entry: &[u8]| u64::from_le_bytes(entry.try_into().unwrap()) & ((1 << 55) - 1);
        entries.chunks_exact(8).map(frame).collect::<HashSet<_>>().len()
    }
}

impl Drop for Advised {
    fn drop(&mut self) {
        // SAFETY: mapped by itself, and nothing refers to it.
        unsafe { libc::munmap(self.address, PAGES * 4096) };
    }
}

/// Values that nobody but a tuner has any reason to change meanwhile, as text.
fn settings() -> Vec<String> {
    let text = |setting: &Setting| fs::read_to_string(setting.to_string()).unwrap_or_default();
    Setting::ALL.iter().map(text).collect()
}

fn take(pool: &Path, config: TunerConfig) -> Tuner {
    await_until(|| match Tuner::new(pool, config) {
        Err(KsmError::Taken { .. }) => None,
        result => Some(result.unwrap()),
    })
}

#[test]
fn it_merges_and_leaves_all_as_it_was() {
    let pool = tempfile::tempdir().unwrap();
    let config = TunerConfig { cpu_percent: 20, across_nodes: None };
    let mut tuner = take(pool.path(), config);
    let other = tempfile::tempdir().unwrap();
    assert!(matches!(Tuner::new(other.path(), TunerConfig::default()), Err(KsmError::Taken { .. })));
    let found = settings();
    if found[Setting::Run as usize].trim() == "2" {
        // Not to be started.
        return;
    }
    let started = Instant::now();
    assert_eq!(tuner.step(started, 0).unwrap(), []);
    assert!(!pool.path().join("ksm").exists(), "nothing waits, nothing is changed");
    let advised = Advised::new();
    assert_eq!(advised.host_pages(), PAGES);
    let mut step = 1;
    // A merged page has at most max_page_sharing places, 256 if nobody has changed that.
    while advised.host_pages() > PAGES / 16 {
        assert!(started.elapsed() < PATIENCE, "{} are left, {:?}", advised.host_pages(), tuner.state());
        let lost = tuner.step(started + step * PERIOD, PAGES as u64).unwrap();
        if !lost.is_empty() {
            // Of somebody who does not ask for the lock.
            return;
        }
        step += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    let state = KsmState::read(Some(tuner.state()));
    assert!(state.tuner.as_ref().is_some_and(|tuner| tuner.drives && tuner.pace.is_some()), "{state:?}");
    assert!(state.host.is_some_and(|host| host.run == 1 && host.pages_sharing > 0));
    assert!(pool.path().join("ksm").exists());
    // Others who have the lock count the merged pages of the process.
    drop(advised);
    drop(tuner);
    // Before others, who wait for the lock, have it.
    let lock = File::open(Setting::Run.to_string()).unwrap();
    if lock.try_lock().is_ok() {
        assert_eq!(settings(), found);
    }
    assert!(!pool.path().join("ksm").exists());
    assert!(Tuner::restore_left_behind(pool.path()).unwrap().is_none());
}
