//! The limit, and what happens where it cannot be kept.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[test]
fn a_guest_four_times_its_limit_stays_below_it() {
    for method in methods() {
        let guest = Guest::new(&[0..64 * MIB], with_swap(method));
        guest.pager.set_limits(Limits::alone(Some(16 * MIB))).unwrap();
        let most = thread::scope(|scope| {
            let touching = scope.spawn(|| {
                for version in 0..3 {
                    for gfn in 0..16384 {
                        assert!(version == 0 || guest.read(gfn) == page_of(gfn, version - 1), "{gfn} {version}");
                        guest.write(gfn, &page_of(gfn, version));
                    }
                }
            });
            let mut most = 0;
            while !touching.is_finished() {
                most = most.max(guest.pager.statistics().charge_bytes);
                thread::sleep(Duration::from_millis(1));
            }
            touching.join().unwrap();
            most
        });
        // What bookkeeping grew by since it was counted last.
        assert!(most <= 16 * MIB + MIB / 4, "{method:?}: {most}");
        let statistics = guest.pager.statistics();
        assert_eq!(statistics.failures.over_limit_pages, 0, "{statistics:#?}");
        assert!(statistics.refaults.waited > 0, "nobody ever had to wait");
        guest.check_no_failure();
    }
}

#[test]
fn what_cannot_be_evicted_is_granted_beyond_the_limit() {
    let guest = Guest::new(&[0..32 * MIB], PagerConfig::default());
    guest.pager.set_limits(Limits::alone(Some(8 * MIB))).unwrap();
    for gfn in 0..4096 {
        guest.write(gfn, &page_of(3, gfn));
    }
    let statistics = guest.pager.statistics();
    assert!(statistics.failures.over_limit_pages > 1000, "{statistics:#?}");
    assert!(statistics.evictions.incompressible > 1000, "{statistics:#?}");
    (0..4096).for_each(|gfn| assert!(guest.read(gfn) == page_of(3, gfn), "{gfn}"));
    // It comes down again when it can.
    (0..4096).for_each(|gfn| guest.write(gfn, &[1; PAGE_BYTES]));
    guest.wait_until("below the limit", |statistics| statistics.charge_bytes <= 8 * MIB);
    guest.check_no_failure();
}

#[test]
fn those_who_wait_are_let_go_at_the_end_and_by_what_is_given_back() {
    // One per mille of a CPU: nothing is evicted in time.
    let guest = Guest::new(&[0..32 * MIB], PagerConfig { reclaim_cpu_percent: 1, ..PagerConfig::default() });
    guest.pager.set_limits(Limits::alone(Some(8 * MIB))).unwrap();
    guest.pager.exempt_thread(vmm_sys_util_thread_id());
    thread::scope(|scope| {
        let touching = scope.spawn(|| (0..4096).for_each(|gfn| guest.write(gfn, &page_of(2, gfn))));
        guest.wait_until("waiting", |statistics| statistics.refaults.waited > 0);
        // This thread does not wait.
        guest.write(8000, &page_of(2, 1));
        guest.ram.discard(0, 2 * MIB).unwrap();
        guest.pager.release();
        touching.join().unwrap();
    });
    guest.check_no_failure();
}

fn vmm_sys_util_thread_id() -> i32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

#[test]
fn the_compressed_store_makes_room_by_what_is_oldest() {
    let guest = Guest::new(&[0..32 * MIB], PagerConfig { store_limit_bytes: MIB, ..with_swap(methods()[0]) });
    guest.pager.set_limits(Limits::alone(Some(8 * MIB))).unwrap();
    (0..8000).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
    let statistics = guest.wait_until("room", |statistics| statistics.charge_bytes <= 8 * MIB);
    assert!(statistics.compressed.held_bytes <= MIB, "{statistics:#?}");
    assert!(statistics.evictions.written_back > 1000, "{statistics:#?}");
    (0..8000).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn), "{gfn}"));
    guest.check_no_failure();
}

#[test]
fn cold_pages_go_to_the_file_by_age() {
    let guest =
        Guest::new(&[0..32 * MIB], PagerConfig { cold_after: Duration::from_secs(1), ..with_swap(methods()[0]) });
    guest.pager.set_limits(Limits::alone(Some(8 * MIB))).unwrap();
    (0..4096).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
    guest.wait_until("written back", |statistics| {
        statistics.evictions.written_back > 0 && statistics.compressed.pages == 0
    });
    (0..4096).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn), "{gfn}"));
    guest.check_no_failure();
}

/// Pages that only lie there take memory from those that are in use: they go on to the file long before they are cold.
#[test]
fn what_lies_compressed_makes_room_for_what_is_used() {
    let guest =
        Guest::new(&[0..32 * MIB], PagerConfig { cold_after: Duration::from_secs(3600), ..with_swap(methods()[0]) });
    guest.pager.set_limits(Limits::alone(Some(6 * MIB))).unwrap();
    // All of it compresses. Half of what there is could be resident, were it not for these.
    (0..2048).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
    guest.wait_until("room", |statistics| statistics.charge_bytes <= 6 * MIB);
    let end = AtomicBool::new(false);
    let statistics = thread::scope(|scope| {
        scope.spawn(|| {
            // Not for ever, should they never go.
            for version in 1..240 {
                for gfn in 4096..4096 + 1024 {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    assert!(version == 1 || guest.read(gfn) == page_of(2, gfn + version - 1), "{gfn} {version}");
                    guest.write(gfn, &page_of(2, gfn + version));
                }
                // Pages stay in RAM for a second or two, and not for the milliseconds this takes.
                thread::sleep(Duration::from_millis(500));
            }
        });
        let statistics = guest.wait_until("written back", |statistics| statistics.pages.swapped > 1024);
        end.store(true, Ordering::Relaxed);
        statistics
    });
    println!("{:?} {:?}", statistics.pages, statistics.evictions);
    (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn), "{gfn}"));
    guest.check_no_failure();
}
