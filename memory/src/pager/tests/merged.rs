//! Pages that KSM has merged, and mappings that advice has cut in two.

use std::fs::{self, File};
use std::io;

use super::*;
use crate::sharing::ksm::turn::await_turn;

/// KSM as this test needs it, and as it was found when it ends.
pub(super) struct Ksm {
    found: Vec<(&'static str, String)>,
    /// Whoever drives KSM holds this (`sharing::ksm`).
    _lock: File,
}

/// Pages that ksmd has seen in vain are not passed over.
const SETTINGS: [(&str, &str); 4] =
    [("pages_to_scan", "10000"), ("sleep_millisecs", "5"), ("smart_scan", "0"), ("run", "1")];

fn path(name: &str) -> String {
    format!("/sys/kernel/mm/ksm/{name}")
}

impl Ksm {
    pub fn start() -> Self {
        let lock = await_turn();
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
    while merged_pages_of(&guest) < 900 {
        assert!(Instant::now() < deadline, "{} pages are merged", merged_pages_of(&guest));
        thread::sleep(Duration::from_millis(10));
    }
    drop(ksm);
    // A page that ksmd looks at, if it goes on, stays for now.
    let mut moved = 0;
    guest.soon(|| {
        while moved < 2048 {
            moved += guest.evict(0..2048);
        }
    });
    let statistics = guest.at_rest();
    assert!(statistics.evictions.unmerged >= 900, "{statistics:#?}");
    assert_eq!(guest.store(0..2048), 2048);
    (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(1, 0), "page {gfn}"));
    guest.check_no_failure();
}

/// A guest of 8 MiB of one content, merged and known to be.
fn merged_guest(config: PagerConfig, merged: Range<u64>) -> Option<(Guest, Mergeable, Ksm)> {
    if !methods().contains(&EvictionMethod::Move) {
        return None;
    }
    let guest = Guest::new(&[0..8 * MIB], config);
    (0..2048).for_each(|gfn| guest.write(gfn, &page_of(1, if merged.contains(&gfn) { 0 } else { gfn })));
    guest.pager.arm().unwrap();
    let (mergeable, ksm) = merge_and_look(&guest, merged);
    Some((guest, mergeable, ksm))
}

fn merge_and_look(guest: &Guest, merged: Range<u64>) -> (Mergeable, Ksm) {
    let mergeable = guest.pager.mergeable().expect("pages can be moved");
    let ksm = Ksm::start();
    mergeable.advise(merged.clone()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut new_pages = 0;
    while mergeable.merged_pages() < merged.end - merged.start {
        assert!(Instant::now() < deadline, "{} pages are merged", mergeable.merged_pages());
        thread::sleep(Duration::from_millis(10));
        let found = mergeable.look(merged.clone()).unwrap();
        new_pages += found.new;
        assert_eq!((found.merged, new_pages), (mergeable.merged_pages(), mergeable.merged_pages()));
    }
    mergeable.set_saved_part(1.0);
    (mergeable, ksm)
}

/// What its pages cost: there is a little bookkeeping beside.
fn cost_pages(guest: &Guest) -> u64 {
    let usage = guest.pager.usage();
    (usage.charge_bytes - usage.stored_bytes) / PAGE_SIZE
}

/// Lets it have so many pages more than it has.
fn give_room(guest: &Guest, pages: u64) {
    // What bookkeeping takes is known from now on, and not from the reclaimer's next look at it.
    guest.pager.paged.homes.count_bookkeeping();
    let bytes = guest.pager.usage().charge_bytes + pages * PAGE_SIZE + PAGE_SIZE / 2;
    let limits = Limits { grow_to_bytes: Some(bytes), is_firm: true, ..Limits::default() };
    guest.pager.set_limits(limits).unwrap();
}

#[test]
fn a_write_to_a_merged_page_waits_for_room() {
    let Some((guest, _, _ksm)) = merged_guest(PagerConfig::default(), 0..2048) else { return };
    assert!(guest.pager.usage().charge_bytes < MIB, "{}", guest.pager.usage().charge_bytes);
    give_room(&guest, 16);
    guest.soon(|| {
        thread::scope(|scope| {
            let reader = scope.spawn(|| (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(1, 0))));
            reader.join().unwrap();
            let writer = scope.spawn(|| (0..2048).for_each(|gfn| guest.write(gfn, &page_of(1, gfn + 1))));
            guest.wait_until("it waits", |_| guest.pager.usage().is_waiting);
            assert_eq!(guest.pager.statistics().evictions.broken, 16);
            assert!(!writer.is_finished());
            give_room(&guest, 2048);
            writer.join().unwrap();
        });
    });
    let statistics = guest.at_rest();
    assert_eq!(statistics.evictions.broken, 2048);
    assert_eq!(cost_pages(&guest), 2048);
    (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(1, gfn + 1), "page {gfn}"));
    guest.check_no_failure();
}

#[test]
fn merged_pages_leave_last() {
    let Some((guest, mergeable, _ksm)) = merged_guest(with_swap(EvictionMethod::Move), 0..1024) else { return };
    // Nobody touched one half more than the other.
    let limits = |bytes| Limits {
        grow_to_bytes: Some(16 * MIB),
        reclaim_to_bytes: Some(bytes),
        is_firm: true,
        ..Limits::default()
    };
    guest.pager.set_limits(limits(3 * MIB)).unwrap();
    let statistics = guest.wait_until("it gives", |statistics| statistics.charge_bytes <= 3 * MIB);
    assert_eq!((statistics.evictions.unmerged, mergeable.merged_pages()), (0, 1024), "{statistics:#?}");
    // Samples leave them alone too.
    guest.pager.begin_sample(500).unwrap();
    assert_eq!(mergeable.merged_pages(), 1024);
    // There is nothing else left.
    mergeable.set_saved_part(0.0);
    guest.pager.set_limits(limits(5 * MIB)).unwrap();
    let statistics = guest.wait_until("it gives", |statistics| statistics.charge_bytes <= 5 * MIB);
    assert!(statistics.evictions.unmerged > 0, "{statistics:#?}");
    (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(1, if gfn < 1024 { 0 } else { gfn }), "page {gfn}"));
    guest.check_no_failure();
}

#[test]
fn unmerging_leaves_room_to_growth() {
    let Some((guest, mergeable, _ksm)) = merged_guest(PagerConfig::default(), 0..2048) else { return };
    let grow_to_bytes = guest.pager.usage().charge_bytes + 100 * PAGE_SIZE;
    let limits = |unmerge_to_bytes| Limits {
        grow_to_bytes: Some(grow_to_bytes),
        unmerge_to_bytes: Some(unmerge_to_bytes),
        is_firm: true,
        ..Limits::default()
    };
    guest.pager.set_limits(limits(grow_to_bytes - 60 * PAGE_SIZE)).unwrap();
    let gone_to = mergeable.take_back(0..2048).unwrap();
    assert!((30..=40).contains(&gone_to), "{gone_to}");
    guest.soon(|| (1000..1030).for_each(|gfn| guest.write(gfn, &page_of(1, gfn))));
    assert_eq!(mergeable.take_back(gone_to..2048).unwrap(), gone_to, "what is left is for growth");
    guest.pager.set_limits(limits(grow_to_bytes)).unwrap();
    assert!(mergeable.take_back(gone_to..2048).unwrap() > gone_to);
    guest.check_no_failure();
}

#[test]
fn unmerging_waits_for_room() {
    let Some((guest, mergeable, ksm)) = merged_guest(PagerConfig::default(), 0..2048) else { return };
    give_room(&guest, 100);
    let gone_to = mergeable.take_back(0..2048).unwrap();
    // ksmd goes on: a page that is its last sharer's for a moment costs a page by then.
    assert!((90..=100).contains(&gone_to) && mergeable.merged_pages() <= 2048 - gone_to, "{gone_to}");
    // What is not advised any more is not merged again; the rest is.
    give_room(&guest, 4096);
    assert_eq!(mergeable.take_back(gone_to..2048).unwrap(), 2048);
    assert_eq!((mergeable.merged_pages(), cost_pages(&guest)), (0, 2048));
    drop(ksm);
    assert_eq!(merged_pages_of(&guest), 0);
    guest.soon(|| (0..2048).for_each(|gfn| guest.write(gfn, &page_of(1, gfn))));
    assert_eq!(guest.at_rest().evictions.broken, 0, "no protection is left behind");
    guest.check_no_failure();
}

/// Merged pages of this guest, as the kernel's page map says.
fn merged_pages_of(guest: &Guest) -> u64 {
    let start = guest.ram.host_address(0).unwrap();
    let mut shared = 0;
    crate::pager::classify::for_each_entry(start..start + 8 * MIB, |_, page| shared += u64::from(page.is_shared))
        .unwrap();
    shared
}

#[test]
fn an_opened_vm_knows_of_no_merged_page() {
    let Some((guest, mergeable, _ksm)) = merged_guest(PagerConfig::default(), 0..2048) else { return };
    guest.pager.set_limits(Limits::default()).unwrap();
    // It says that it is open before all is forgotten.
    guest.wait_until("open", |statistics| !statistics.armed && mergeable.merged_pages() == 0);
    guest.soon(|| (0..2048).for_each(|gfn| guest.write(gfn, &page_of(1, gfn))));
    (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(1, gfn), "page {gfn}"));
}

/// Whoever unmerges a page writes to it, and would wait for itself if the page were protected by then.
#[test]
fn a_page_that_is_being_unmerged_is_not_protected() {
    if !methods().contains(&EvictionMethod::Move) {
        return;
    }
    let guest = Arc::new(Guest::new(&[0..8 * MIB], PagerConfig::default()));
    (0..2048).for_each(|gfn| guest.write(gfn, &page_of(1, 0)));
    let plan = Arc::new(Plan::default());
    guest.arm_through(&plan);
    let mergeable = guest.pager.mergeable().unwrap();
    let _ksm = Ksm::start();
    mergeable.advise(0..2048).unwrap();
    guest.soon(|| {
        while merged_pages_of(&guest) < 2048 {
            thread::sleep(Duration::from_millis(10));
        }
        // Where a look is about to protect the page, somebody evicts it, who goes on once it is protected.
        let (protected, is_protected) = mpsc::channel::<()>();
        let (unprotected, is_unprotected) = mpsc::channel::<()>();
        plan.after_unprotect(move || {
            unprotected.send(()).unwrap();
            let _ = is_protected.recv();
        });
        let (of_evictor, evictor) = mpsc::channel();
        let of_hook = Arc::clone(&guest);
        plan.before_protect(move || {
            let evictor = thread::spawn(move || of_hook.pager.evict(0..1).unwrap());
            while !evictor.is_finished() && is_unprotected.recv_timeout(Duration::from_millis(5)).is_err() {}
            of_evictor.send(evictor).unwrap();
        });
        let found = mergeable.look(0..1).unwrap();
        drop(protected);
        let moved = evictor.recv().unwrap().join().unwrap();
        assert_eq!((found, moved), (MergedPages { merged: 1, new: 1, present: 1 }, 0), "the page is looked at");
        plan.after_unprotect(|| {});
        assert_eq!(guest.evict(0..1), 1);
        assert_eq!((mergeable.merged_pages(), guest.at_rest().evictions.unmerged), (0, 1));
        assert!(guest.read(0) == page_of(1, 0));
    });
    guest.check_no_failure();
}

#[test]
fn what_a_balloon_gives_is_what_leaves_the_host() {
    let Some((guest, mergeable, _ksm)) = merged_guest(PagerConfig::default(), 0..1024) else { return };
    guest.evict(1024..1124);
    guest.evict(1200..1210);
    guest.store(1200..1210);
    let discard = |gfns: Range<u64>| {
        let given_bytes = guest.ram.discard(gfns.start * PAGE_SIZE, (gfns.end - gfns.start) * PAGE_SIZE).unwrap();
        given_bytes / PAGE_SIZE
    };
    assert_eq!(discard(0..600), 0, "others have them still");
    assert_eq!(mergeable.merged_pages(), 424);
    assert_eq!(discard(1000..1100), 76, "some are merged, some are aside");
    assert_eq!(discard(1000..1300), 200 - 10, "some are stored, some were given before");
    assert_eq!(guest.pager.statistics().pages.untouched, 900);
    guest.check_no_failure();
}

#[test]
fn a_merged_page_that_has_left_is_known_to_be_merged_no_more() {
    let Some((guest, mergeable, _ksm)) = merged_guest(with_swap(EvictionMethod::Move), 0..2048) else { return };
    // Behind the pager's back: nobody is asked.
    let address = guest.ram.host_address(0).unwrap();
    // SAFETY: whole pages of guest RAM; the advice changes no content.
    let result = unsafe { libc::madvise(address as *mut libc::c_void, 100 << 12, libc::MADV_UNMERGEABLE) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    assert_eq!((guest.evict(0..100), mergeable.merged_pages()), (100, 1948));
    assert_eq!(guest.store(0..100), 100);
    (0..100).for_each(|gfn| assert!(guest.read(gfn) == page_of(1, 0), "page {gfn}"));
    assert_eq!(cost_pages(&guest), 100, "what came back costs a page");
    guest.check_no_failure();
}

#[test]
fn pages_that_wait_to_be_unmerged_are_told_of() {
    let Some((guest, mergeable, _ksm)) = merged_guest(PagerConfig::default(), 0..2048) else { return };
    give_room(&guest, 5);
    assert_eq!(mergeable.take_back(0..2048).unwrap(), 5, "as far as there is room");
    assert!(!guest.pager.usage().is_waiting);
    mergeable.set_waiting(true);
    let usage = guest.pager.usage();
    assert!(usage.unmerging_waits && !usage.is_waiting, "nobody is held up");
    mergeable.set_waiting(false);
    assert!(!guest.pager.usage().unmerging_waits);
}

/// A write that waits for room, to a page that is unmerged meanwhile for room of its own.
#[test]
fn a_write_that_waits_goes_on_when_its_page_is_unmerged() {
    let Some((guest, mergeable, _ksm)) = merged_guest(PagerConfig::default(), 0..2048) else { return };
    give_room(&guest, 0);
    guest.soon(|| {
        thread::scope(|scope| {
            let writer = scope.spawn(|| guest.write(700, &page_of(1, 700)));
            guest.wait_until("it waits", |_| guest.pager.usage().is_waiting);
            // The kernel breaks it up behind the pager's back: the next look finds that there is nothing to wait for.
            let address = guest.ram.host_address(700).unwrap();
            // SAFETY: a page of guest RAM; the advice changes no content.
            unsafe { libc::madvise(address as *mut libc::c_void, 4096, libc::MADV_UNMERGEABLE) };
            assert_eq!(mergeable.look(600..800).unwrap().merged, 199);
            writer.join().unwrap();
        });
    });
    guest.wait_until("nobody waits", |_| !guest.pager.usage().is_waiting);
    assert!(guest.read(700) == page_of(1, 700));
    guest.check_no_failure();
}

#[test]
fn what_others_have_merged_saves_nothing_here() {
    let Some((guest, mergeable, _ksm)) = merged_guest(PagerConfig::default(), 0..2048) else { return };
    // Of the whole host 19 of 20 are saved; of these every second one.
    guest.pager.note_merging_saves(1024 * PAGE_SIZE);
    mergeable.set_saved_part(0.95);
    assert_eq!(cost_pages(&guest), 1024);
    guest.pager.note_merging_saves(4096 * PAGE_SIZE);
    mergeable.set_saved_part(0.75);
    assert_eq!(cost_pages(&guest), 512);
}
