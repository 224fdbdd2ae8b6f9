//! Pools of members that each have a descriptor of their own, as they have in processes of their own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod damage;
mod killed;
mod life;
mod records;
mod storm;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use super::*;

const MIB: u64 = 1 << 20;
const BUDGET_BYTES: u64 = 1000 * MIB;

/// A pool's directory, gone with this.
struct Pool(tempfile::TempDir);

impl Pool {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Not there before the first member.
    fn path(&self) -> PathBuf {
        self.0.path().join("pool")
    }

    fn join(&self, name: &str) -> Membership {
        Ledger::join(&self.path(), &request(name)).unwrap()
    }

    fn read(&self) -> PoolView {
        Ledger::read(&self.path()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        names(&self.read())
    }

    fn file_path(&self) -> PathBuf {
        self.path().join("ledger")
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.file_path()).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.file_path()).unwrap()
    }

    /// What is there before any member.
    fn put(&self, bytes: &[u8]) {
        fs::create_dir_all(self.path()).unwrap();
        fs::write(self.file_path(), bytes).unwrap();
    }
}

fn request(name: &str) -> JoinRequest {
    JoinRequest {
        name: name.to_owned(),
        settings: SettingsRequest::default(),
        default_budget_bytes: BUDGET_BYTES,
        size_bytes: 256 * MIB,
        reservation_bytes: 0,
        limit_bytes: 256 * MIB,
        shares: 2560,
    }
}

fn names(view: &PoolView) -> Vec<String> {
    view.members.iter().map(|member| member.identity.name.clone()).collect()
}

/// A report that has this number in it everywhere.
fn report(number: u64) -> Report {
    Report {
        time_ns: number,
        charge_bytes: number,
        own_bytes: number,
        owed_bytes: number,
        grow_to_bytes: number,
        orders_time_ns: number,
        balloon_most_bytes: number,
        balloon_given_bytes: number,
        reported_bytes: number,
        touched_bytes: number,
        active_bytes: number,
        active_fast_bytes: Some(number),
        active_slow_bytes: Some(number),
        resident_bytes: number,
        shared_bytes: number,
        merged_bytes: number,
        mergeable_bytes: number,
        compressed_bytes: number,
        swapped_bytes: number,
        zero_bytes: number,
        ballooned_bytes: number,
        balloon_target_bytes: number,
        guest_free_bytes: Some(number),
        balloon: BalloonHealth::from_number((number % 3) as u8).unwrap(),
        wants_growth: !number.is_multiple_of(2),
        can_reclaim: number.is_multiple_of(2),
        refaults: number,
        refaulted_bytes: number,
        stall_ns: number,
        evicted_pages: number,
        over_limit_pages: number,
        flags: number as u32,
    }
}

/// Orders that have this number in them everywhere.
fn orders(number: u64) -> Orders {
    Orders {
        grant_bytes: number,
        reclaim_to_bytes: number.is_multiple_of(2).then_some(number),
        grow_to_bytes: number,
        unmerge_to_bytes: number,
        balloon_target_bytes: number,
        residence_ms: number.is_multiple_of(3).then_some(number),
    }
}

/// A round that has it in its orders for these members, and in itself.
fn round(number: u64, members: &[MemberId]) -> Round {
    Round {
        time_ns: now_ns(),
        level: Level::from_number((number % 5) as u8).unwrap(),
        free_bytes: -(number as i64),
        orders: members.iter().map(|member| (*member, orders(number))).collect(),
    }
}
