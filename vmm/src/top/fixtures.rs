//! Pools for tests.

use cistern_memory::ledger::{
    BalloonHealth, Identity, Level, MemberId, MemberView, Orders, PoolSettings, PoolView, Report,
};

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// A member of 512 MiB whose numbers all differ and depend on its slot.
pub fn member(name: &str, slot: u16) -> MemberView {
    let mib = |base: u64| (base + u64::from(slot)) * MIB;
    MemberView {
        id: MemberId { slot, generation: 7 },
        identity: Identity {
            name: name.to_owned(),
            pid: 1000 + u32::from(slot),
            start_ticks: 5,
            size_bytes: mib(512),
            reservation_bytes: mib(10),
            limit_bytes: mib(500),
            shares: 5120 + u64::from(slot),
        },
        report: Report {
            time_ns: 1_000_000_000,
            charge_bytes: mib(120),
            own_bytes: mib(4),
            owed_bytes: 0,
            grow_to_bytes: mib(127),
            orders_time_ns: 900_000_000,
            balloon_most_bytes: mib(320),
            balloon_given_bytes: mib(55),
            reported_bytes: mib(10),
            touched_bytes: mib(400),
            active_bytes: mib(80),
            active_fast_bytes: Some(mib(81)),
            active_slow_bytes: None,
            resident_bytes: mib(90),
            shared_bytes: mib(20),
            merged_bytes: 0,
            mergeable_bytes: 0,
            compressed_bytes: mib(30),
            swapped_bytes: mib(40),
            zero_bytes: mib(50),
            ballooned_bytes: mib(60),
            balloon_target_bytes: mib(64),
            guest_free_bytes: Some(mib(70)),
            balloon: BalloonHealth::Working,
            wants_growth: false,
            can_reclaim: true,
            refaults: 1000,
            refaulted_bytes: mib(5),
            stall_ns: 2_000_000,
            evicted_pages: 3000,
            over_limit_pages: 0,
            flags: 0,
        },
        report_age_ms: 300,
        grant_bytes: Some(mib(128)),
        orders: Some(Orders {
            grant_bytes: mib(128),
            reclaim_to_bytes: None,
            grow_to_bytes: mib(127),
            unmerge_to_bytes: mib(126),
            balloon_target_bytes: mib(64),
            residence_ms: None,
        }),
        orders_age_ms: Some(400),
    }
}

/// A pool of 384 MiB with 24 free, led by its first member.
pub fn pool(members: Vec<MemberView>) -> PoolView {
    PoolView {
        settings: PoolSettings {
            budget_bytes: 384 * MIB,
            idle_tax_percent: 75,
            watermarks_millipercent: [6000, 4000, 2000, 1000],
        },
        free_bytes: Some(24 * MIB as i64),
        level: Some(Level::Soft),
        leader: members.first().map(|member| member.identity.name.clone()),
        leader_pid: members.first().map(|member| member.identity.pid),
        round_age_ms: Some(200),
        corrupt_slots: 0,
        unreadable_members: 0,
        members,
    }
}
