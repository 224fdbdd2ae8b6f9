//! Samples of what a guest touches.

use super::*;

#[test]
fn a_sample_tells_how_much_a_guest_touches() {
    for method in methods() {
        let config = PagerConfig { eviction: Some(method), ..PagerConfig::default() };
        let guest = Guest::new(&[0..8 * MIB, 16 * MIB..24 * MIB], config);
        guest.pager.arm().unwrap();
        let filled = || (0..2048).chain(4096..5120);
        guest.soon(|| filled().for_each(|gfn| guest.write(gfn, &[7; PAGE_BYTES])));
        guest.at_rest();
        let sample = guest.pager.begin_sample(300).unwrap();
        let nothing = Touches { resident_pages: 3072, sampled_pages: 300, ..Touches::default() };
        assert_eq!(guest.pager.touches(&sample), nothing);
        assert_eq!(guest.at_rest().pages.aside, 300);

        // A third of what there is, twice, and 64 new pages (which come in clusters).
        let read = |gfns: Range<u64>| gfns.for_each(|gfn| assert_eq!(guest.read(gfn)[0] & !7, 0));
        guest.soon(|| (read(4096..5120), read(4096..5120), read(5120..5184)));
        // A page is noted a moment after its reader goes on.
        guest.at_rest();
        let touches = guest.pager.touches(&sample);
        assert!((60..140).contains(&touches.sampled_touched_pages), "{touches:?}");
        assert_eq!(touches.arrived_pages, 64, "{touches:?}");

        // The next period begins with what is aside still: that is not resident, and comes back where it is touched.
        let sample = guest.pager.begin_sample(0).unwrap();
        let aside_pages = 300 - touches.sampled_touched_pages;
        assert_eq!(guest.pager.touches(&sample).resident_pages, 3072 + 64 - aside_pages);
        guest.soon(|| read(0..2048));
        guest.at_rest();
        assert_eq!(guest.pager.touches(&sample).arrived_pages, aside_pages);
        guest.pager.end_sample();
        guest.soon(|| read(5184..5200));
        assert_eq!(guest.pager.touches(&sample).arrived_pages, aside_pages, "nobody watches");
    }
}

#[test]
fn pages_that_leave_and_come_back_in_a_period_are_not_counted_twice() {
    for method in methods() {
        let guest = Guest::new(&[0..8 * MIB], in_memory(method));
        guest.pager.arm().unwrap();
        let fill = |gfns: Range<u64>| gfns.for_each(|gfn| guest.write(gfn, &samples::page(Kind::Text, gfn as u32)));
        let read = |gfns: Range<u64>| {
            gfns.for_each(|gfn| assert_eq!(guest.read(gfn), samples::page(Kind::Text, gfn as u32)));
        };
        guest.soon(|| fill(0..1024));
        guest.at_rest();
        let leave = |gfns: Range<u64>| {
            assert!(guest.pager.evict(gfns.clone()).unwrap() > 0);
            guest.pager.store(gfns).unwrap();
        };
        let touches_after = |action: &dyn Fn()| {
            let sample = guest.pager.begin_sample(0).unwrap();
            guest.soon(action);
            guest.at_rest();
            guest.pager.touches(&sample)
        };
        // All of it was there: a sample would tell.
        let touches = touches_after(&|| (leave(0..512), read(0..512), leave(0..512)).2);
        assert_eq!((touches.resident_pages, touches.arrived_pages), (1024, 0), "{touches:?}");
        // About half was not (what does not compress has come back): it counts, however often it comes and goes.
        let touches = touches_after(&|| (read(0..512), leave(0..512), read(0..512)).2);
        assert!((512..600).contains(&touches.resident_pages), "{touches:?}");
        assert_eq!(touches.resident_pages + touches.arrived_pages, 1024, "{touches:?}");
    }
}

#[test]
fn samples_that_nobody_touched_leave_first() {
    for method in methods() {
        let guest = Guest::new(&[0..16 * MIB], in_memory(method));
        guest.pager.arm().unwrap();
        guest.soon(|| (0..2048).for_each(|gfn| guest.write(gfn, &samples::page(Kind::Text, gfn as u32))));
        guest.at_rest();
        // More than is wanted aside: no other page needs to be moved there.
        guest.pager.begin_sample(1024).unwrap();
        let limit_bytes = guest.pager.usage().charge_bytes - MIB;
        guest.pager.set_limits(Limits { reclaim_to_bytes: Some(limit_bytes), ..Limits::default() }).unwrap();
        let statistics = guest.wait_until("it gives", |statistics| statistics.charge_bytes <= limit_bytes);
        assert_eq!(statistics.evictions.aside, 1024, "{statistics:?}");
    }
}

#[test]
fn a_member_of_a_pool_waits_for_others_and_gives_what_it_is_told_to() {
    let guest = Guest::new(&[0..16 * MIB], PagerConfig::default());
    // Nothing is wanted of it: it waits, and nothing leaves.
    let grow_to = |bytes, reclaim_to_bytes| Limits {
        grow_to_bytes: Some(bytes),
        reclaim_to_bytes,
        is_firm: true,
        ..Limits::default()
    };
    guest.pager.set_limits(grow_to(4 * MIB, None)).unwrap();
    guest.soon(|| {
        thread::scope(|scope| {
            let writer = scope.spawn(|| (0..2048).for_each(|gfn| guest.write(gfn, &[gfn as u8 | 1; PAGE_BYTES])));
            guest.wait_until("it waits", |_| guest.pager.usage().is_waiting);
            thread::sleep(Duration::from_millis(100));
            let statistics = guest.pager.statistics();
            assert!(!writer.is_finished() && statistics.charge_bytes <= 4 * MIB, "{statistics:?}");
            assert_eq!((statistics.pages.resident, statistics.evictions.aside), (1024, 0));
            guest.pager.set_limits(grow_to(12 * MIB, None)).unwrap();
            writer.join().unwrap();
        });
    });
    assert!(!guest.pager.usage().is_waiting);
    assert_eq!(guest.at_rest().evictions.aside, 0);
    guest.pager.set_limits(grow_to(12 * MIB, Some(6 * MIB))).unwrap();
    let statistics = guest.wait_until("it gives", |statistics| statistics.charge_bytes <= 6 * MIB);
    assert!(statistics.charge_bytes > 5 * MIB, "no more than was wanted: {statistics:?}");
    guest.soon(|| (0..2048).for_each(|gfn| assert_eq!(guest.read(gfn), [gfn as u8 | 1; PAGE_BYTES])));
}

#[test]
fn what_only_samples_have_moved_aside_is_stored_too() {
    for method in methods() {
        let guest = Guest::new(&[0..32 * MIB], with_swap(method));
        (0..8192).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
        // Of a guest that touches nothing, samples leave more aside than has to go.
        while guest.pager.statistics().pages.aside < 6000 {
            guest.pager.begin_sample(1000).unwrap();
        }
        guest.pager.set_limits(Limits::alone(Some(20 * MIB))).unwrap();
        guest.wait_until("below the limit", |statistics| statistics.charge_bytes <= 20 * MIB);
        (0..8192).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn), "{gfn}"));
        guest.check_no_failure();
    }
}

/// Aside a page is merged with nothing: of a guest at rest sample after sample would be lost to it.
#[test]
fn what_is_to_be_merged_does_not_stay_aside() {
    if !methods().contains(&EvictionMethod::Move) {
        return;
    }
    let guest = Guest::new(&[0..8 * MIB], PagerConfig::default());
    (0..2048).for_each(|gfn| guest.write(gfn, &page_of(2, gfn)));
    let aside_after_a_period = || {
        let sample = guest.pager.begin_sample(300).unwrap();
        assert_eq!(guest.pager.touches(&sample).sampled_pages, 300);
        guest.pager.return_sample(&sample).unwrap();
        guest.at_rest().pages.aside
    };
    assert_eq!(aside_after_a_period(), 300, "the inactive list");
    guest.pager.mergeable().unwrap().advise(0..2048).unwrap();
    assert_eq!(aside_after_a_period(), 300, "those of this sample are back");
    guest.pager.set_limits(Limits::alone(Some(64 * MIB))).unwrap();
    assert_eq!(aside_after_a_period(), 600, "pages may have to leave");
    (0..2048).for_each(|gfn| assert!(guest.read(gfn) == page_of(2, gfn), "{gfn}"));
    guest.check_no_failure();
}
