//! Pages that KSM has merged, and mappings that advice has cut in two.

use std::fs::{self, File};
use std::io;

use super::*;

/// KSM as this test needs it, and as it was found when it ends.
struct Ksm {
    found: Vec<(&'static str, String)>,
    /// Whoever drives KSM holds this (`sharing::ksm`).
    _lock: File,
}

const SETTINGS: [(&str, &str); 3] = [("pages_to_scan", "10000"), ("sleep_millisecs", "5"), ("run", "1")];

fn path(name: &str) -> String {
    format!("/sys/kernel/mm/ksm/{name}")
}

impl Ksm {
    fn start() -> Self {
        let lock = File::open(path("run")).expect("a kernel with KSM");
        lock.lock().unwrap();
        let found =
            SETTINGS.map(|(name, _)| (name, fs::read_to_string(path(name)).expect("a kernel with KSM"))).to_vec();
        let ksm = Self { found, _lock: lock };
        for (name, value) in SETTINGS {
            fs::write(path(name), value).expect("the tests run as root");
        }
        ksm
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        for (name, value) in self.found.iter().rev() {
            let _ = fs::write(path(name), value.trim());
        }
    }
}

fn merge(guest: &Guest, gfn: u64, pages: u64) {
    let address = guest.ram.host_address(gfn).unwrap();
    // SAFETY: whole pages of guest RAM; merging changes no content.
    let result =
        unsafe { libc::madvise(address as *mut libc::c_void, (pages * PAGE_SIZE) as usize, libc::MADV_MERGEABLE) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn merged_pages() -> u64 {
    let text = fs::read_to_string("/proc/self/ksm_merging_pages").unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn merged_pages_are_unmerged_and_go() {
    if !methods().contains(&EvictionMethod::Move) {
        // Without MOVE pages are never merged: KSM drops the write protection that copying rests on.
        return;
    }
    let guest = Guest::new(&[0..8 * MIB], with_swap(EvictionMethod::Move));
    (0..2048).for_each(|gfn| guest.write(gfn, &page_of(1, 0)));
    // The advice cuts the mapping at both ends of its range, and a move across such a border does nothing.
    merge(&guest, 300, 1000);
    guest.pager.arm().unwrap();
    let ksm = Ksm::start();
    let deadline = Instant::now() + Duration::from_secs(60);
    while merged_pages() < 900 {
        assert!(Instant::now() < deadline, "{} pages are merged", merged_pages());
        thread::sleep(Duration::from_millis(10));
    }
    drop(ksm);
    assert_eq!(guest.evict(0..2048), 2048);
    let statistics = guest.at_rest();
    assert!(statistics.evictions.unmerged >= 900, "{statistics:#?}");
    assert_eq!(guest.store(0..2048), 2048);
    (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(1, 0), "page {gfn}"));
    guest.check_no_failure();
}
