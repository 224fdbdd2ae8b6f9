//! Members that come, report, lead, obey and go.

use std::os::unix::fs::MetadataExt;

use super::super::layout::{MEMBERS_OFFSET, member_offset};
use super::super::lock;
use super::*;

#[test]
fn members_see_each_other() {
    let pool = Pool::new();
    let (one, two) = (pool.join("one"), pool.join("two"));
    assert_eq!(fs::metadata(pool.path()).unwrap().mode() & 0o777, 0o700);
    // A child of this process must not keep its slot.
    let links = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    let own: Vec<_> =
        links.filter(|link| fs::read_link(link.path()).is_ok_and(|path| path == pool.file_path())).collect();
    assert_eq!(own.len(), 2);
    for link in own {
        let path = Path::new("/proc/self/fdinfo").join(link.file_name());
        let text = fs::read_to_string(path).unwrap();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_ne!(flags & libc::O_CLOEXEC, 0, "{flags:o}");
    }
    assert_eq!(fs::metadata(pool.file_path()).unwrap().mode() & 0o777, 0o600);
    one.publish(&report(1001)).unwrap();
    two.publish(&report(1002)).unwrap();
    let view = two.members().unwrap();
    assert_eq!(names(&view), ["one", "two"]);
    assert_eq!((view.members[0].report, view.members[1].report), (report(1001), report(1002)));
    assert_eq!(view.members[0].id, one.id());
    assert_eq!(view.members[0].identity.pid, std::process::id());
    assert!(view.members[0].identity.start_ticks > 0);
    assert_eq!((view.corrupt_slots, view.level, view.leader), (0, None, None));
    // Who only looks sees the same.
    assert_eq!(
        pool.read().members.iter().map(|member| member.report).collect::<Vec<_>>(),
        [report(1001), report(1002)]
    );
    drop(one);
    assert_eq!(pool.names(), ["two"]);
    assert_eq!(names(&two.members().unwrap()), ["two"]);
}

#[test]
fn a_report_is_fitted_to_the_guest() {
    let pool = Pool::new();
    let one = pool.join("one");
    one.publish(&Report { swapped_bytes: 257 * MIB, charge_bytes: 300 * MIB, ..Report::default() }).unwrap();
    let view = pool.read();
    assert_eq!(view.corrupt_slots, 0);
    assert_eq!((view.members[0].report.swapped_bytes, view.members[0].report.charge_bytes), (256 * MIB, 300 * MIB));
}

#[test]
fn orders_reach_who_they_are_for() {
    let pool = Pool::new();
    let (one, two, three) = (pool.join("one"), pool.join("two"), pool.join("three"));
    let mut leadership = one.try_lead().unwrap();
    assert_eq!(two.orders(), None);
    let sent = round(4, &[one.id(), two.id()]);
    leadership.publish(&sent).unwrap();
    let standing = StandingOrders {
        time_ns: sent.time_ns,
        leader_pid: std::process::id(),
        level: Level::Stop,
        free_bytes: -4,
        orders: orders(4),
    };
    assert_eq!((one.orders(), two.orders(), three.orders()), (Some(standing), Some(standing), None));
    let view = pool.read();
    assert_eq!((view.level, view.free_bytes, view.leader.as_deref()), (Some(Level::Stop), Some(-4), Some("one")));
    assert_eq!(view.leader_pid, Some(std::process::id()));
    assert_eq!(view.members.iter().map(|member| member.grant_bytes).collect::<Vec<_>>(), [Some(4), Some(4), None]);
    // Who is not named any more has none, and whoever takes a slot does not get those of its last member.
    leadership.publish(&round(5, &[one.id()])).unwrap();
    assert_eq!((one.orders().map(|standing| standing.orders), two.orders()), (Some(orders(5)), None));
    leadership.publish(&round(6, &[one.id(), two.id()])).unwrap();
    let slot = two.id().slot;
    drop(two);
    let four = pool.join("four");
    assert_eq!((four.id().slot, four.orders()), (slot, None));
    assert_eq!(pool.read().members.iter().find(|member| member.id == four.id()).unwrap().grant_bytes, None);
    // Somebody of no slot there is harms nobody.
    leadership.publish(&round(7, &[MemberId { slot: u16::MAX, generation: 1 }, four.id()])).unwrap();
    assert_eq!(four.orders().map(|standing| standing.orders), Some(orders(7)));
}

#[test]
fn one_leads_at_a_time() {
    let pool = Pool::new();
    let (one, two) = (pool.join("one"), pool.join("two"));
    let mut leadership = one.try_lead().unwrap();
    assert!(one.try_lead().is_none(), "it leads already");
    assert!(two.try_lead().is_none());
    leadership.publish(&round(1, &[])).unwrap();
    assert_eq!(pool.read().leader.as_deref(), Some("one"));
    assert_eq!(one.members().unwrap().leader.as_deref(), Some("one"));
    drop(leadership);
    // The round still stands, but nobody leads.
    assert_eq!((pool.read().leader, pool.read().level), (None, Some(Level::Soft)));
    let mut leadership = two.try_lead().unwrap();
    assert!(one.try_lead().is_none());
    leadership.publish(&round(2, &[])).unwrap();
    assert_eq!(one.members().unwrap().leader.as_deref(), Some("two"));
    // Its membership ends, its descriptor is still open for the leadership.
    drop(two);
    assert_eq!(pool.names(), ["one"]);
    assert_eq!(pool.read().leader, None);
    assert!(one.try_lead().is_none());
    drop(leadership);
    assert!(one.try_lead().is_some());
}

#[test]
fn one_enters_at_a_time() {
    let pool = Pool::new();
    let (one, two) = (pool.join("one"), pool.join("two"));
    assert_eq!(two.entering(), None);
    let entry = one.try_enter().unwrap();
    assert!(two.try_enter().is_none());
    assert_eq!(two.entering(), Some(one.id().slot));
    assert!(two.try_lead().is_some(), "that is another lock");
    drop(entry);
    let entry = two.try_enter().unwrap();
    assert!(one.try_enter().is_none());
    assert_eq!(one.entering(), Some(two.id().slot));
    // What the entry holds ends with it, and not with the membership.
    drop(two);
    assert!(one.try_enter().is_none());
    drop(entry);
    assert!(one.try_enter().is_some());
}

#[test]
fn looking_disturbs_nobody() {
    let pool = Pool::new();
    let one = pool.join("one");
    let two = pool.join("two");
    let file = pool.file();
    drop(two);
    assert_eq!(lock::held_slots(&file).unwrap(), [0]);
    assert_eq!(pool.names(), ["one"]);
    // The one who looked has no lock, and still has the file open.
    assert_eq!(pool.join("three").id().slot, 1);
    assert!(one.try_lead().is_some());
}

#[test]
fn slots_are_found_wherever_they_are() {
    let pool = Pool::new();
    let _one = pool.join("one");
    let (here, there) = (pool.file(), pool.file());
    for slot in [3, 4, 100, 255] {
        assert!(lock::try_lock(&there, &lock::slot_range(slot)).unwrap());
    }
    assert_eq!(lock::held_slots(&here).unwrap(), [0, 3, 4, 100, 255]);
    assert_eq!(lock::held_slots(&there).unwrap(), [0]);
    // Somebody who locks the whole file has every slot.
    let pool = Pool::new();
    pool.put(&[]);
    assert!(lock::try_lock(&pool.file(), &(0..0)).unwrap());
    let (here, there) = (pool.file(), pool.file());
    assert!(lock::try_lock(&there, &(0..0)).unwrap());
    assert_eq!(lock::held_slots(&here).unwrap(), (0..256).collect::<Vec<_>>());
}

#[test]
fn a_slot_that_is_held_is_not_read_with_its_last_owner() {
    let pool = Pool::new();
    let (_one, two) = (pool.join("one"), pool.join("two"));
    two.publish(&report(1)).unwrap();
    drop(two);
    assert_ne!(pool.bytes()[member_offset(1) as usize..], [0; 512]);
    let three = pool.join("three");
    assert_eq!(three.id().slot, 1);
    let view = pool.read();
    assert_eq!(names(&view), ["one", "three"]);
    assert_eq!(view.members[1].report.charge_bytes, 0);
    // A small pool is a small file.
    assert_eq!(pool.bytes().len() as u64, MEMBERS_OFFSET + 2 * 512);
}

#[test]
fn a_view_has_the_names_of_the_interface() {
    let pool = Pool::new();
    let one = pool.join("one");
    one.publish(&report(1000)).unwrap();
    let mut leadership = one.try_lead().unwrap();
    leadership.publish(&round(2, &[one.id()])).unwrap();
    let json = serde_json::to_value(pool.read()).unwrap();
    assert_eq!(json["budget_bytes"], BUDGET_BYTES);
    assert_eq!((&json["free_bytes"], &json["state"], &json["leader"]), (&(-2).into(), &"hard".into(), &"one".into()));
    let member = &json["members"][0];
    assert_eq!(member["name"], "one");
    assert_eq!(member["pid"], std::process::id());
    let fields = ["size_bytes", "grant_bytes", "charge_bytes", "active_bytes", "ballooned_bytes", "guest_free_bytes"];
    let values: Vec<_> = fields.iter().map(|field| member[field].as_u64()).collect();
    assert_eq!(values, [256 * MIB, 2, 1000, 1000, 1000, 1000].map(Some));
    assert_eq!(member["balloon"], "absent");
}

#[test]
fn what_is_deleted_takes_nobody_with_it() {
    let pool = Pool::new();
    let (one, two) = (pool.join("one"), pool.join("two"));
    one.check_place().unwrap();
    fs::remove_file(pool.file_path()).unwrap();
    assert!(matches!(one.check_place(), Err(LedgerError::Replaced { .. })));
    one.publish(&report(3)).unwrap();
    assert_eq!(two.members().unwrap().members[0].report, report(3));
    assert!(matches!(Ledger::read(&pool.path()), Err(LedgerError::NoPool { .. })));
    // Another pool, in which the name is free.
    let other = pool.join("one");
    assert_eq!(pool.names(), ["one"]);
    other.check_place().unwrap();
    assert!(matches!(two.check_place(), Err(LedgerError::Replaced { .. })));
    // Somebody who waits for a file that is deleted meanwhile is not left in it.
    let file = pool.file();
    assert!(lock::try_lock(&file, &lock::JOINING).unwrap());
    let late = std::thread::scope(|scope| {
        let late = scope.spawn(|| pool.join("late"));
        std::thread::sleep(Duration::from_millis(50));
        fs::remove_file(pool.file_path()).unwrap();
        drop(file);
        late.join().unwrap()
    });
    late.check_place().unwrap();
    assert_eq!(pool.names(), ["late"]);
    fs::remove_dir_all(pool.path()).unwrap();
    assert!(matches!(other.check_place(), Err(LedgerError::Replaced { .. })));
    other.publish(&report(4)).unwrap();
}
