//! Records as bytes: what is written is read, and nothing else is taken for a record.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::codec::{self, Reading, Record};
use super::super::head::{self, Head, head_bytes};
use super::super::layout::{LEDGER_BYTES, MEMBERS_OFFSET, MemberRecord, OrdersRecord, RoundRecord, orders_offset};
use super::*;

const OFFSET: u64 = 4096;

fn sealed<T: Record>(record: &T) -> Vec<u8> {
    let mut place = vec![0xff; T::BYTES];
    codec::seal(record, 7, OFFSET, &mut place);
    place
}

fn opened<T: Record>(record: &T) -> Reading<T> {
    codec::open(&sealed(record), OFFSET)
}

prop_compose! {
    fn any_identity()(
        name in "[^\\s\\p{C}]{1,16}", pid: u32, start_ticks: u64, size_bytes in 1..=MAXIMUM_BYTES,
        limit_bytes in 0..=MAXIMUM_BYTES, part in 0..=100_u64, shares in 1..=MAXIMUM_SHARES,
    ) -> Identity {
        let reservation_bytes = limit_bytes / 100 * part;
        Identity { name, pid, start_ticks, size_bytes, reservation_bytes, limit_bytes, shares }
    }
}

prop_compose! {
    fn any_report()(
        times in any::<[u64; 7]>(), bytes in any::<[u64; 15]>(), options in any::<[Option<u64>; 3]>(),
        balloon in 0..3_u8, wants_growth: bool, can_reclaim: bool, flags: u32,
    ) -> Report {
        let [time_ns, refaults, refaulted_bytes, stall_ns, evicted_pages, over_limit_pages, orders_time_ns] = times;
        let [charge_bytes, touched_bytes, active_bytes, resident_bytes, shared_bytes, own_bytes, grow_to_bytes, ..] = bytes;
        let [.., balloon_most_bytes, balloon_given_bytes, reported_bytes, _, _, _, _, _] = bytes;
        let [.., compressed_bytes, swapped_bytes, zero_bytes, ballooned_bytes, balloon_target_bytes] = bytes;
        let [active_fast_bytes, active_slow_bytes, guest_free_bytes] = options;
        let balloon = BalloonHealth::from_number(balloon).unwrap();
        Report {
            time_ns, charge_bytes, touched_bytes, active_bytes, active_fast_bytes, active_slow_bytes, resident_bytes,
            shared_bytes, compressed_bytes, swapped_bytes, zero_bytes, ballooned_bytes, balloon_target_bytes,
            guest_free_bytes, balloon, wants_growth, can_reclaim, refaults, refaulted_bytes, stall_ns, evicted_pages,
            over_limit_pages, flags, own_bytes, grow_to_bytes, orders_time_ns, balloon_given_bytes, reported_bytes,
            balloon_most_bytes, merged_bytes: shared_bytes, mergeable_bytes: zero_bytes, owed_bytes: own_bytes,
        }
    }
}

prop_compose! {
    fn any_member()(generation: u64, identity in any_identity(), report in any_report()) -> MemberRecord {
        let report = report.in_range(identity.size_bytes);
        MemberRecord { generation, identity, report }
    }
}

prop_compose! {
    fn any_orders()(
        generation: u64, time_ns: u64, leader_pid: u32, level in 0..5_u8, bytes in any::<[u64; 4]>(),
        reclaim_to_bytes: Option<u64>, residence_ms: Option<u64>,
        free_bytes in -(MAXIMUM_BYTES as i64)..=MAXIMUM_BYTES as i64,
    ) -> OrdersRecord {
        let [grant_bytes, grow_to_bytes, unmerge_to_bytes, balloon_target_bytes] = bytes;
        let orders =
            Orders { grant_bytes, reclaim_to_bytes, grow_to_bytes, unmerge_to_bytes, balloon_target_bytes, residence_ms };
        let (level, orders) = (Level::from_number(level).unwrap(), orders.in_range());
        OrdersRecord { generation, standing: StandingOrders { time_ns, leader_pid, level, free_bytes, orders } }
    }
}

proptest! {
    #[test]
    fn members_come_back_as_they_were(member in any_member()) {
        prop_assert_eq!(opened(&member), Reading::Whole(member));
    }

    #[test]
    fn orders_come_back_as_they_were(orders in any_orders()) {
        prop_assert_eq!(opened(&orders), Reading::Whole(orders));
        let OrdersRecord { generation, standing: StandingOrders { time_ns, level, free_bytes, .. } } = orders;
        let leader = MemberId { slot: (generation % 256) as u16, generation };
        let round = RoundRecord { time_ns, level, free_bytes, leader, leader_pid: orders.standing.leader_pid };
        prop_assert_eq!(opened(&round), Reading::Whole(round));
    }

    #[test]
    fn settings_come_back_as_they_were(budget_bytes in 1..=MAXIMUM_BYTES, tax in 0..100_u8, low in 0..20_000_u32) {
        let settings = PoolSettings {
            budget_bytes,
            idle_tax_percent: tax,
            watermarks_millipercent: [4 * low + 3, 3 * low + 2, 2 * low + 1, low],
        };
        let head = head_bytes(head::FORMAT, "1.2.3", &settings, 5);
        prop_assert_eq!(Head::read(&head), Head::Pool { program: "1.2.3".to_owned(), settings });
        let other = head_bytes(head::FORMAT + 1, "1.2.3", &settings, 5);
        let format = head::FORMAT + 1;
        prop_assert_eq!(Head::read(&other), Head::OtherFormat { format, program: "1.2.3".to_owned() });
    }

    /// One changed byte, wherever it is, and a record in another's place.
    #[test]
    fn a_changed_record_is_damaged(member in any_member(), at in 0..MemberRecord::BYTES, change in 1..=255_u8) {
        let mut bytes = sealed(&member);
        prop_assert!(codec::open::<MemberRecord>(&bytes, OFFSET + 512).is_damaged());
        bytes[at] ^= change;
        prop_assert!(codec::open::<MemberRecord>(&bytes, OFFSET).is_damaged());
    }

    /// As if it was written that way: only the range checks stand between it and a member.
    #[test]
    fn any_bytes_are_decoded_without_harm(
        mut bytes in vec(any::<u8>(), 0..600), places in vec((0..600_usize, 0..4_u8), 0..600),
    ) {
        // Many small values, which get further.
        for (place, value) in places {
            if let Some(byte) = bytes.get_mut(place) {
                *byte = value;
            }
        }
        let _ = codec::open::<MemberRecord>(&bytes, OFFSET);
        let _ = Head::read(&bytes);
        read_as::<MemberRecord>(&bytes, |member| {
            member.identity.fault().is_none() && member.report.active_bytes <= member.identity.size_bytes
        })?;
        read_as::<OrdersRecord>(&bytes, |orders| orders.standing.orders.grant_bytes <= MAXIMUM_BYTES)?;
        read_as::<RoundRecord>(&bytes, |round| round.leader.slot < MAXIMUM_MEMBERS)?;
        read_as::<PoolSettings>(&bytes, |settings| settings.fault().is_none())?;
        let mut head = b"CISTPOOL".to_vec();
        head.extend(&bytes);
        prop_assert_eq!(Head::read(&head), Head::Damaged);
    }
}

/// Gives bytes the checksum they need to be believed.
fn read_as<T: Record>(bytes: &[u8], is_sound: impl Fn(&T) -> bool) -> Result<(), TestCaseError> {
    let mut place = bytes.to_vec();
    place.resize(T::BYTES, 0);
    let end = T::BYTES - 8;
    let checksum = codec::checksum_of(&place[..end], OFFSET);
    place[end..].copy_from_slice(&checksum.to_le_bytes());
    match codec::open::<T>(&place, OFFSET) {
        Reading::Whole(record) => prop_assert!(is_sound(&record)),
        Reading::Damaged => {}
        Reading::Blank => prop_assert!(false, "a checksum is no blank"),
    }
    Ok(())
}

#[test]
fn what_is_out_of_range_is_damaged() {
    let identity = Identity {
        name: "a".to_owned(),
        pid: 1,
        start_ticks: 1,
        size_bytes: MIB,
        reservation_bytes: 0,
        limit_bytes: MIB,
        shares: 1,
    };
    let good = MemberRecord { generation: 1, identity, report: report(5) };
    assert!(matches!(opened(&good), Reading::Whole(_)));
    let with_report = |report| MemberRecord { report, ..good.clone() };
    let with = |change: fn(&mut Identity)| {
        let mut bad = good.clone();
        change(&mut bad.identity);
        bad
    };
    let bad = [
        with_report(Report { active_bytes: MIB + 1, ..report(5) }),
        with_report(Report { charge_bytes: MAXIMUM_BYTES + 1, ..report(5) }),
        with_report(Report { guest_free_bytes: Some(MIB + 1), ..report(5) }),
        with(|identity| identity.size_bytes = 0),
        with(|identity| identity.limit_bytes = MAXIMUM_BYTES + 1),
        with(|identity| identity.reservation_bytes = identity.limit_bytes + 1),
        with(|identity| identity.shares = 0),
        with(|identity| identity.name = String::new()),
        with(|identity| identity.name = "a\u{1b}[2J".to_owned()),
        with(|identity| identity.name = "a\u{202e}b".to_owned()),
        with(|identity| identity.name = "a b".to_owned()),
    ];
    for bad in bad {
        assert!(opened(&bad).is_damaged(), "{bad:?}");
    }
    let most = (MAXIMUM_BYTES + 1) as i64;
    let leader = MemberId { slot: 0, generation: 1 };
    let good = RoundRecord { time_ns: 1, level: Level::Stop, free_bytes: -5, leader, leader_pid: 1 };
    assert_eq!(opened(&good), Reading::Whole(good));
    assert!(opened(&RoundRecord { free_bytes: -most, ..good }).is_damaged());
    assert!(opened(&RoundRecord { leader: MemberId { slot: 256, ..leader }, ..good }).is_damaged());
}

/// It is in files: whoever changes it raises the format.
#[test]
fn the_layout_is_as_written() {
    assert_eq!((orders_offset(0), MEMBERS_OFFSET, LEDGER_BYTES), (4224, 40960, 40960 + 256 * 512));
    let settings = SettingsRequest::default().or_default(BUDGET_BYTES);
    let head = head_bytes(1, "0.1.0", &settings, 0);
    assert_eq!(head[..18], *b"CISTPOOL\x01\0\0\0\x050.1.0");
    let identity = Identity {
        name: "web".to_owned(),
        pid: 1234,
        start_ticks: 5678,
        size_bytes: 256 * MIB,
        reservation_bytes: MIB,
        limit_bytes: 128 * MIB,
        shares: 2560,
    };
    let member = sealed(&MemberRecord { generation: 9, identity, report: report(42) });
    let at = |offset: usize| u64::from_le_bytes(member[offset..offset + 8].try_into().unwrap());
    assert_eq!((at(0), at(8), &member[16..20]), (7, 9, &b"\x03web"[..]));
    let checksum = codec::checksum_of(&member[..504], OFFSET);
    assert_eq!((at(85), at(93), at(125), at(504)), (5678, 256 * MIB, 42, checksum));
}

#[test]
fn orders_go_stale() {
    let standing =
        StandingOrders { time_ns: 50_000, leader_pid: 1, level: Level::High, free_bytes: 0, orders: orders(1) };
    let period = Duration::from_nanos(100);
    assert!(!standing.is_stale(50_000, period));
    assert!(!standing.is_stale(50_300, period));
    assert!(standing.is_stale(50_301, period));
    assert!(!standing.is_stale(49_990, period), "decided while this was asked");
    assert!(standing.is_stale(10_000, period), "from another boot");
}
