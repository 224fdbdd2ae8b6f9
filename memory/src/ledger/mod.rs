//! The ledger: the shared file through which the members of a pool see each other. It decides nothing.
//!
//! A pool is a directory with one file in it, `ledger`. The file is read and written with pread and pwrite and never
//! mapped: a mapped file that somebody truncates would kill every member.
//!
//! | offset | what | who writes it |
//! |---|---|---|
//! | 0 | head: preamble (64 bytes), settings (64 bytes) | who makes the pool; the leader, if it is damaged |
//! | 4096 | round (128 bytes): time, level, free memory, leader | the leader |
//! | 4224 | orders, 256 records of 128 bytes | the leader, with the round |
//! | 40960 | members, 256 slots of 512 bytes | each its own |
//!
//! Numbers are little endian. The preamble is described in `head`; every other record begins with a sequence number of 8
//! bytes, then come its values in the order in which `layout` writes them, and its last 8 bytes are the XXH3 of all
//! before, seeded with its offset. A place full of zeroes, or behind the end of the file, is blank. Readers take no lock:
//! who comes upon half a record reads again. Values are range checked; a record that stays damaged is ignored and
//! counted until its owner writes it anew.
//!
//! Who is alive is told by open-file-description locks, which the kernel releases with their process: byte 0 is held while
//! somebody joins, byte 1 by the leader, byte 2 by the member that room is made for to begin with (and as many behind it as
//! its slot's number), and the bytes of its slot by each member. Observers only ask who holds what. Where nobody holds
//! anything the pool is over, and the next member makes another in its place.
//!
//! A ledger that is deleted takes nobody with it: those who have it open go on with it, and who joins later makes another.
//! [`Membership::check_place`] tells.

pub(crate) mod codec;
mod error;
mod file;
mod head;
mod join;
mod layout;
mod lock;
mod membership;
mod record;
mod scan;
mod settings;
#[cfg(test)]
mod tests;
mod view;

use std::path::Path;
use std::time::Duration;

pub use error::LedgerError;
pub use join::JoinRequest;
pub use layout::MAXIMUM_MEMBERS;
pub use membership::{Entry, Leadership, Membership};
pub use record::{
    Identity, MAXIMUM_BYTES, MAXIMUM_NAME_BYTES, MAXIMUM_SHARES, MemberId, Orders, Report, Round, StandingOrders,
};
pub use settings::{PoolSettings, SettingsRequest};
pub use view::{MemberView, PoolView};

pub use crate::policy::ladder::BalloonHealth;
pub use crate::policy::watermark::Level;

use file::LedgerFile;
use head::{FORMAT, Head, PROGRAM};
use scan::{Looker, Scan};

/// The file of a pool.
#[derive(Debug)]
pub struct Ledger;

impl Ledger {
    /// Becomes a member of the pool in directory `pool`; makes the directory and the pool if there is none. Where no member
    /// is alive the pool is made anew, with this one's settings. Waits at most some seconds, for others who join.
    ///
    /// # Errors
    /// The pool does not admit this member, what is there is no pool or another version's, or the file system fails.
    pub fn join(pool: &Path, request: &JoinRequest) -> Result<Membership, LedgerError> {
        join::join(pool, request, PROGRAM)
    }

    /// The pool in directory `pool` as an observer sees it, who is no member and disturbs none. A pool whose members are
    /// all gone is shown without any.
    ///
    /// # Errors
    /// There is no pool, it is in another format, its head is damaged, or it cannot be read.
    pub fn read(pool: &Path) -> Result<PoolView, LedgerError> {
        let file = LedgerFile::open(pool)?;
        let scan = Scan::read(&file, Looker::default())?;
        match &scan.head {
            Head::Pool { settings, .. } => {
                let settings = *settings;
                Ok(scan.into_view(settings))
            }
            Head::OtherFormat { format, program } => Err(LedgerError::Version {
                path: file.path,
                theirs: program.clone(),
                their_format: *format,
                ours: PROGRAM.to_owned(),
                our_format: FORMAT,
            }),
            Head::Foreign if scan.live.is_empty() => Err(LedgerError::NotALedger { path: file.path }),
            // Half made, and not being made any more.
            Head::Blank | Head::Damaged if scan.live.is_empty() => Err(LedgerError::NoPool { pool: pool.to_owned() }),
            Head::Blank | Head::Foreign | Head::Damaged => Err(LedgerError::Damaged { path: file.path }),
        }
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of this host share; [`std::time::Instant`] does not show its
/// value.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}
