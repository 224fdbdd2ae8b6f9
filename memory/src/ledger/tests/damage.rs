//! Files that are cut, overwritten and filled with garbage under living members.

use std::os::unix::fs::FileExt;
use std::thread;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::super::layout::{LEDGER_BYTES, ROUND_OFFSET, member_offset, orders_offset};
use super::*;

/// One byte of it is another.
fn flip(pool: &Pool, offset: u64) {
    let file = pool.file();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_damaged_slot_is_ignored_and_counted_until_it_is_written() {
    let pool = Pool::new();
    let (one, two) = (pool.join("one"), pool.join("two"));
    flip(&pool, member_offset(1) + 300);
    let view = pool.read();
    assert_eq!((names(&view), view.corrupt_slots, view.unreadable_members), (vec!["one".to_owned()], 1, 1));
    assert_eq!(one.members().unwrap().corrupt_slots, 1);
    assert_eq!(one.damaged_reads(), 1);
    // Nobody knows what it has reserved, and it still has its slot.
    let guaranteed = JoinRequest { reservation_bytes: MIB, ..request("three") };
    assert!(matches!(Ledger::join(&pool.path(), &guaranteed), Err(LedgerError::Unreadable { members: 1, .. })));
    assert_eq!(pool.join("three").id().slot, 2);
    two.publish(&report(2)).unwrap();
    let view = pool.read();
    assert_eq!((names(&view), view.corrupt_slots), (vec!["one".to_owned(), "two".to_owned()], 0));
    assert!(Ledger::join(&pool.path(), &guaranteed).is_ok());
    // A dead one is counted too, until somebody takes it.
    drop(two);
    flip(&pool, member_offset(1) + 300);
    let view = pool.read();
    assert_eq!((names(&view), view.corrupt_slots, view.unreadable_members), (vec!["one".to_owned()], 1, 0));
    let _four = pool.join("four");
    assert_eq!(pool.read().corrupt_slots, 0);
}

#[test]
fn damaged_orders_are_none() {
    let pool = Pool::new();
    let (one, two) = (pool.join("one"), pool.join("two"));
    let mut leadership = one.try_lead().unwrap();
    leadership.publish(&round(2, &[one.id(), two.id()])).unwrap();
    flip(&pool, orders_offset(1) + 20);
    flip(&pool, ROUND_OFFSET + 20);
    assert!(one.orders().is_some());
    assert_eq!((two.orders(), two.damaged_reads()), (None, 1));
    let view = pool.read();
    assert_eq!((view.corrupt_slots, view.level, view.leader, view.members.len()), (2, None, None, 2));
    assert_eq!(view.members[1].grant_bytes, None);
    leadership.publish(&round(2, &[one.id(), two.id()])).unwrap();
    assert!(two.orders().is_some());
    assert_eq!(pool.read().corrupt_slots, 0);
}

/// As it is when a writer loses its CPU in the middle of a record.
#[test]
fn what_is_whole_a_moment_later_is_read() {
    let pool = Pool::new();
    let (one, two) = (pool.join("one"), pool.join("two"));
    let mut leadership = one.try_lead().unwrap();
    let (mut seen, mut ordered) = (0, 0);
    for number in 0..20 {
        leadership.publish(&round(number, &[two.id()])).unwrap();
        flip(&pool, member_offset(0) + 300);
        flip(&pool, orders_offset(1) + 20);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(1));
                one.publish(&report(number)).unwrap();
                leadership.publish(&round(number, &[two.id()])).unwrap();
            });
            let standing = scope.spawn(|| two.orders());
            seen += usize::from(pool.read().members.len() == 2);
            ordered += usize::from(standing.join().unwrap().is_some());
        });
    }
    // Not always: on a busy host a moment may be longer than anybody waits.
    assert!(seen > 10 && ordered > 10, "{seen}, {ordered} of 20");
}

/// All members write and the leader leads: the pool is whole again.
fn recovers(pool: &Pool, members: &[Membership], leadership: &mut Leadership) {
    // Whatever they make of it, they go on.
    for member in members {
        member.orders();
        member.members().unwrap();
        member.publish(&report(8)).unwrap();
    }
    let _ = Ledger::read(&pool.path());
    let ids: Vec<_> = members.iter().map(Membership::id).collect();
    leadership.publish(&round(8, &ids)).unwrap();
    let view = pool.read();
    assert_eq!((view.members.len(), view.leader.as_deref()), (members.len(), Some("vm0")));
    assert!(view.members.iter().all(|member| member.report == report(8) && member.grant_bytes == Some(8)));
    assert!(members.iter().all(|member| member.orders().is_some()));
    drop(pool.join("late"));
}

#[test]
fn members_survive_whatever_becomes_of_the_file() {
    let pool = Pool::new();
    let members: Vec<_> = (0..5).map(|number| pool.join(&format!("vm{number}"))).collect();
    let mut leadership = members[0].try_lead().unwrap();
    recovers(&pool, &members, &mut leadership);
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut garbage = vec![0; LEDGER_BYTES as usize + 5000];
    for length in [0, 1, 63, 64, 100, 4096, 5000, orders_offset(2) + 7, member_offset(2) + 100] {
        pool.file().set_len(length).unwrap();
        if length < 128 {
            // Nobody makes another pool over the heads of those who live.
            assert!(matches!(Ledger::join(&pool.path(), &request("late")), Err(LedgerError::Damaged { .. })));
            assert!(matches!(Ledger::read(&pool.path()), Err(LedgerError::Damaged { .. })));
        }
        recovers(&pool, &members, &mut leadership);
    }
    for _ in 0..5 {
        random.fill_bytes(&mut garbage);
        pool.file().write_all_at(&garbage, 0).unwrap();
        assert!(matches!(Ledger::join(&pool.path(), &request("late")), Err(LedgerError::Damaged { .. })));
        recovers(&pool, &members, &mut leadership);
    }
    // All that was written over dead slots; nobody else minds.
    assert_eq!(pool.read().corrupt_slots, 251 - 1);
    // One byte in each of a few places.
    for _ in 0..50 {
        flip(&pool, random.next_u64() % LEDGER_BYTES);
        recovers(&pool, &members, &mut leadership);
    }
}
