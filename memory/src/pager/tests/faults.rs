//! Faults injected over the calls to the kernel: no page is lost, no thread hangs.

use std::iter::repeat_n;

use super::port::{Call, Plan, PortFault};
use super::storm::{PAGES, check_emptied, storm, touches};
use super::*;

/// An armed guest whose pager asks a faulty kernel.
fn guest(pages: u64, config: PagerConfig) -> (Guest, Arc<Plan>) {
    let (guest, plan) = (Guest::new(&[0..pages * PAGE_SIZE], config), Arc::new(Plan::default()));
    guest.arm_through(&plan);
    (guest, plan)
}

/// The same with pages of every sort.
fn filled_guest(pages: u64, config: PagerConfig) -> (Guest, Arc<Plan>) {
    let (guest, plan) = guest(pages, config);
    (0..pages).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
    (guest, plan)
}

#[track_caller]
fn check_pages(guest: &Guest, gfns: Range<u64>) {
    guest.soon(|| gfns.for_each(|gfn| assert!(guest.read(gfn) == page_of(gfn, 0), "page {gfn:#x}")));
    guest.check_no_failure();
}

#[test]
fn no_page_is_lost_in_a_storm_of_failing_calls() {
    for method in methods() {
        println!("{method:?}");
        let (guest, plan) = guest(PAGES, with_swap(method));
        guest.pager.set_limits(Limits::alone(Some(4 * MIB))).unwrap();
        plan.set_weather(Some(1));
        storm(&guest, touches(30_000), || {});
        plan.set_weather(None);
        check_emptied(&guest);
        let of_method: &[Call] = match method {
            EvictionMethod::Move => &[Call::Move],
            EvictionMethod::Copy => &[Call::Protect, Call::Unprotect],
        };
        for call in [Call::Read, Call::Copy].iter().chain(of_method) {
            let (injected, calls) = (plan.injected(*call), plan.calls(*call));
            assert!(injected > 20, "{method:?}: {call:?}: {injected} of {calls} calls failed");
        }
    }
}

#[test]
fn a_call_that_fails_is_tried_again() {
    for method in methods() {
        let back = if method == EvictionMethod::Move { Call::Move } else { Call::Copy };
        for errno in [libc::EAGAIN, libc::EEXIST, libc::ENOENT, libc::EBUSY, libc::ENOMEM, libc::EINVAL] {
            // From nowhere, from aside, from each store.
            let (guest, plan) = guest(256, with_swap(method));
            plan.order(Call::Copy, [PortFault::Errno(errno); 5]);
            guest.soon(|| guest.write(0, &page_of(0, 0)));
            (1..256).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
            assert_eq!(guest.evict(0..256), 256);
            plan.order(back, [PortFault::Errno(errno); 5]);
            check_pages(&guest, 0..1);
            assert_eq!(plan.ordered(back), 0, "{method:?}: {errno}");
            guest.evict(0..1);
            assert_eq!(guest.store(0..256), 256);
            for gfn in [8, 21, 66, 103] {
                plan.order(Call::Copy, [PortFault::Errno(errno); 5]);
                check_pages(&guest, gfn..gfn + 1);
                assert_eq!(plan.ordered(Call::Copy), 0, "{method:?}: {errno}, page {gfn}");
            }
            assert!(guest.at_rest().failures.retried >= 6 * 5);
            check_pages(&guest, 0..256);
        }
    }
}

#[test]
fn a_call_that_stops_half_way_goes_on_there() {
    for method in methods() {
        for errno in [libc::EAGAIN, libc::ENOMEM, libc::EBUSY] {
            let (guest, plan) = guest(256, with_swap(method));
            plan.order(
                Call::Copy,
                [PortFault::Partial(5, errno), PortFault::Partial(3, errno), PortFault::Errno(errno)],
            );
            // A first touch brings sixteen pages.
            guest.soon(|| guest.write(7, &page_of(7, 0)));
            assert_eq!((guest.at_rest().pages.resident, plan.ordered(Call::Copy)), (16, 0));
            (0..256).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
            let (out, back) = match method {
                EvictionMethod::Move => (Call::Move, Call::Move),
                EvictionMethod::Copy => (Call::Protect, Call::Copy),
            };
            plan.order(out, [PortFault::Partial(60, errno), PortFault::Partial(50, errno)]);
            let mut went = guest.evict(0..256);
            if method == EvictionMethod::Copy && errno != libc::EAGAIN {
                // What is protected is known for all pages together.
                assert_eq!(went, 0);
                plan.cancel(out);
                went = guest.evict(0..256);
            }
            assert_eq!(went, 256, "{method:?}: {errno}");
            // Each of a walk's windows stops somewhere.
            let partial = [PortFault::None, PortFault::Partial(2, errno), PortFault::Partial(1, errno)];
            plan.order(back, partial);
            check_pages(&guest, 0..256);
            assert_eq!((guest.evict(0..256), guest.store(0..256)), (256, 256));
            plan.order(Call::Copy, partial);
            check_pages(&guest, 0..256);
            assert_eq!([Call::Copy, out, back].map(|call| plan.ordered(call)), [0; 3]);
        }
    }
}

#[test]
fn a_page_that_cannot_be_moved_back_is_copied() {
    if !methods().contains(&EvictionMethod::Move) {
        return;
    }
    for errno in [libc::EBUSY, libc::EINVAL] {
        let (guest, plan) = filled_guest(64, with_swap(EvictionMethod::Move));
        assert_eq!(guest.evict(0..64), 64);
        let copies = plan.calls(Call::Copy);
        plan.order(Call::Move, [PortFault::Errno(errno); 64]);
        check_pages(&guest, 9..10);
        assert_eq!(plan.calls(Call::Copy), copies + 1, "{errno}");
        plan.cancel(Call::Move);
        // Nothing is left aside: the page can go there again.
        assert_eq!(guest.evict(0..64), 1);
        check_pages(&guest, 0..64);
    }
}

#[test]
fn pages_that_cannot_leave_stay() {
    for method in methods() {
        for errno in [libc::EAGAIN, libc::EEXIST, libc::ENOENT, libc::EBUSY, libc::ENOMEM, libc::EINVAL] {
            let (guest, plan) = filled_guest(64, with_swap(method));
            let out = if method == EvictionMethod::Move { Call::Move } else { Call::Protect };
            plan.order(out, [PortFault::Errno(errno); 4096]);
            guest.soon(|| assert_eq!(guest.evict(0..64), 0, "{method:?}: {errno}"));
            let statistics = guest.at_rest();
            assert_eq!((statistics.pages.resident, statistics.pages.aside), (64, 0), "{method:?}: {errno}");
            let failures = statistics.failures;
            assert_eq!(failures.busy + failures.eviction, 64, "{method:?}: {errno}: {failures:?}");
            check_pages(&guest, 0..64);
            plan.cancel(out);
            assert_eq!(guest.evict(0..64), 64);
            check_pages(&guest, 0..64);
        }
    }
}

#[test]
fn without_memory_the_guest_waits_and_goes_on_later() {
    for method in methods() {
        let (guest, plan) = guest(64, with_swap(method));
        let waits = |call, gfn, expected: &Page| {
            plan.order(call, repeat_n(PortFault::Errno(libc::ENOMEM), 100_000));
            guest.soon(|| {
                thread::scope(|scope| {
                    let reader = scope.spawn(|| guest.read(gfn));
                    thread::sleep(Duration::from_millis(100));
                    assert!(!reader.is_finished(), "{method:?}: page {gfn} came without memory");
                    plan.cancel(call);
                    assert!(reader.join().unwrap() == *expected, "{method:?}: page {gfn}");
                });
            });
        };
        waits(Call::Copy, 20, &[0; PAGE_BYTES]);
        (0..64).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
        assert_eq!(guest.evict(0..64), 64);
        waits(if method == EvictionMethod::Move { Call::Move } else { Call::Copy }, 50, &page_of(50, 0));
        assert_eq!(guest.store(0..64), 63);
        for gfn in [0, 1, 10, 31] {
            waits(Call::Copy, gfn, &page_of(gfn, 0));
        }
        check_pages(&guest, 0..64);
    }
}

#[test]
fn a_protection_that_stayed_holds_no_writer() {
    // A copier gives up: some pages are protected by now, and taking that off fails as well.
    for errno in [libc::EAGAIN, libc::ENOMEM, libc::ENOENT] {
        let (guest, plan) = filled_guest(64, with_swap(EvictionMethod::Copy));
        plan.order(Call::Protect, [PortFault::Partial(32, libc::ENOMEM)]);
        plan.order(Call::Unprotect, [PortFault::Errno(errno); 40]);
        guest.soon(|| {
            assert_eq!(guest.evict(0..64), 0);
            (0..64).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
        });
        check_pages(&guest, 0..64);
    }
}

#[test]
fn a_page_that_is_protected_and_busy_does_not_stop_its_evictor() {
    if !methods().contains(&EvictionMethod::Move) {
        return;
    }
    let (guest, plan) = filled_guest(64, in_memory(EvictionMethod::Move));
    guest.evict(0..64);
    assert_eq!(guest.store(0..64), 48);
    assert_eq!(guest.at_rest().pages.incompressible, 16);
    // As when the swap file can be written again: marks go, protections stay until somebody writes.
    guest.pager.paged.kernel().marks.clear();
    plan.order(Call::Move, [PortFault::Errno(libc::EBUSY)]);
    guest.soon(|| assert_eq!(guest.evict(0..64), 16));
    check_pages(&guest, 0..64);
}

#[test]
fn a_vm_that_cannot_be_registered_stays_open() {
    for method in methods() {
        let guest = Guest::new(&[0..MIB], with_swap(method));
        (0..256).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0)));
        let plan = Arc::new(Plan::default());
        // The side mapping where pages are moved; guest RAM.
        let sides = usize::from(method == EvictionMethod::Move);
        for good in 0..=sides {
            plan.order(Call::Register, repeat_n(PortFault::None, good));
            plan.order(Call::Register, [PortFault::Errno(libc::ENOMEM)]);
            let port = Arc::clone(&plan);
            let outcome = guest.pager.arm_through(|real| Box::new(FaultyPort::over(real, port)));
            assert!(matches!(outcome, Err(PagerError::Userfault(_))), "{method:?}: {outcome:?}");
            assert!(!guest.pager.statistics().armed);
            check_pages(&guest, 0..256);
        }
        guest.arm_through(&plan);
        assert_eq!((guest.evict(0..256), guest.store(0..256)), (256, 256));
        check_pages(&guest, 0..256);
    }
}

#[test]
fn a_vm_that_cannot_be_unregistered_goes_on() {
    for method in methods() {
        let (guest, plan) = filled_guest(256, in_memory(method));
        guest.evict(0..256);
        assert_eq!(guest.store(0..256), 192);
        plan.order(Call::Unregister, [PortFault::Errno(libc::ENOMEM); 1000]);
        check_pages(&guest, 0..256);
        guest.pager.set_limits(Limits::alone(None)).unwrap();
        guest.wait_until("open", |statistics| !statistics.armed);
        // Some pages were found not worth storing, and are protected where that is how a write to them is noticed.
        guest.soon(|| (0..256).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0))));
        guest.ram.discard(0, 64 * PAGE_SIZE).unwrap();
        guest.soon(|| (0..64).for_each(|gfn| guest.write(gfn, &page_of(gfn, 0))));
        plan.cancel(Call::Unregister);
        guest.pager.arm().unwrap();
        check_pages(&guest, 0..256);
        assert_eq!((guest.evict(0..256), guest.store(0..256)), (256, 192));
        check_pages(&guest, 0..256);
    }
}
