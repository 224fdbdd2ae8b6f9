//! Joining a pool, or making it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::codec::{Reading, Record};
use super::error::LedgerError;
use super::file::LedgerFile;
use super::head::{FORMAT, Head};
use super::layout::{HEAD_BYTES, MAXIMUM_MEMBERS, MemberRecord, member_offset};
use super::lock::{self, JOINING, slot_range};
use super::membership::Membership;
use super::now_ns;
use super::record::{Identity, MemberId, Report};
use super::scan::{Looker, Scan};
use super::settings::{PoolSettings, SettingsRequest};

/// How long to wait for others who are joining.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to look whether they are done.
const JOIN_POLL: Duration = Duration::from_millis(1);

/// What a member brings with it, and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The VM's name: printable, without spaces, at most [`MAXIMUM_NAME_BYTES`](super::MAXIMUM_NAME_BYTES).
    pub name: String,
    /// Settings that were asked for explicitly: the pool has the same, or this member does not join.
    pub settings: SettingsRequest,
    /// The budget of a pool that this member makes without asking for one.
    pub default_budget_bytes: u64,
    /// The guest's size.
    pub size_bytes: u64,
    /// What the member is to be guaranteed.
    pub reservation_bytes: u64,
    /// What it may use at most.
    pub limit_bytes: u64,
    /// Its part when active memory does not fit.
    pub shares: u64,
}

/// Joins as a program of this version. See [`Ledger::join`](super::Ledger::join).
pub(super) fn join(pool: &Path, request: &JoinRequest, program: &str) -> Result<Membership, LedgerError> {
    let identity = Identity {
        name: request.name.clone(),
        pid: std::process::id(),
        start_ticks: start_ticks().unwrap_or(0),
        size_bytes: request.size_bytes,
        reservation_bytes: request.reservation_bytes,
        limit_bytes: request.limit_bytes,
        shares: request.shares,
    };
    let wanted = request.settings.or_default(request.default_budget_bytes);
    if let Some(rule) = identity.fault().or(wanted.fault()) {
        return Err(LedgerError::Request { pool: pool.to_owned(), rule });
    }
    let started = Instant::now();
    let file = loop {
        let file = LedgerFile::open_or_make(pool)?;
        lock_joining(&file, started)?;
        // Somebody may have deleted it before it was locked.
        if file.is_in_place()? {
            break file;
        }
    };
    let joiner = Joiner { pool, file: &file, request, program };
    let (settings, is_new) = joiner.settings(wanted)?;
    let scan = if is_new { None } else { Some(Scan::read(&file, Looker::default())?) };
    joiner.admit(scan.as_ref(), &settings)?;
    if is_new {
        // The head first: whoever looks finds either a pool or none.
        file.write_head(program, &settings, 0)?;
        file.file.set_len(HEAD_BYTES).map_err(file.failed("cutting off what an earlier pool left"))?;
    }
    let record = joiner.take_slot(scan.as_ref(), identity)?;
    lock::unlock(&file.file, &JOINING).map_err(file.failed("unlocking"))?;
    let (slot, MemberRecord { generation, identity, .. }) = record;
    Ok(Membership::new(file, MemberId { slot, generation }, identity, settings, program))
}

/// Takes turns with others who join.
fn lock_joining(file: &LedgerFile, started: Instant) -> Result<(), LedgerError> {
    while !lock::try_lock(&file.file, &JOINING).map_err(file.failed("locking"))? {
        if started.elapsed() > JOIN_TIMEOUT {
            return Err(LedgerError::Busy { path: file.path.clone(), seconds: JOIN_TIMEOUT.as_secs() });
        }
        thread::sleep(JOIN_POLL);
    }
    Ok(())
}

/// Somebody who holds the lock of those who join.
struct Joiner<'a> {
    pool: &'a Path,
    file: &'a LedgerFile,
    request: &'a JoinRequest,
    program: &'a str,
}

impl Joiner<'_> {
    /// The settings that will hold, and whether the pool is made with them: nobody in it is alive.
    fn settings(&self, wanted: PoolSettings) -> Result<(PoolSettings, bool), LedgerError> {
        let path = || self.file.path.clone();
        let is_alive = lock::is_any_held(&self.file.file).map_err(self.file.failed("looking at locks"))?;
        let other_version = |their_format, theirs| LedgerError::Version {
            path: path(),
            theirs,
            their_format,
            ours: self.program.to_owned(),
            our_format: FORMAT,
        };
        match self.file.head()? {
            Head::Blank | Head::Foreign | Head::Damaged if is_alive => Err(LedgerError::Damaged { path: path() }),
            Head::OtherFormat { format, program } if is_alive => Err(other_version(format, program)),
            Head::Pool { program, .. } if is_alive && program != self.program => Err(other_version(FORMAT, program)),
            Head::Pool { settings, .. } if is_alive => match self.request.settings.difference(&settings) {
                Some((setting, has, asked)) => {
                    Err(LedgerError::Settings { pool: self.pool.to_owned(), setting, has, asked })
                }
                None => Ok((settings, false)),
            },
            Head::Foreign => Err(LedgerError::NotALedger { path: path() }),
            _ => Ok((wanted, true)),
        }
    }

    /// Whether the others, if there are any, leave room for this one.
    fn admit(&self, scan: Option<&Scan>, settings: &PoolSettings) -> Result<(), LedgerError> {
        let pool = || self.pool.to_owned();
        let others: Vec<_> = scan.iter().flat_map(|scan| scan.members()).map(|(_, other)| &other.identity).collect();
        if let Some(Identity { name, pid, .. }) = others.iter().find(|other| other.name == self.request.name) {
            return Err(LedgerError::NameInUse { pool: pool(), name: name.clone(), pid: *pid });
        }
        let live = scan.map_or(0, |scan| scan.live.len());
        if live >= usize::from(MAXIMUM_MEMBERS) {
            return Err(LedgerError::Full { pool: pool(), members: live });
        }
        let asked_bytes = self.request.reservation_bytes;
        if asked_bytes == 0 {
            return Ok(());
        }
        // What they have reserved is not known.
        if others.len() < live {
            return Err(LedgerError::Unreadable { pool: pool(), members: live - others.len() });
        }
        let reserved_bytes: u64 = others.iter().map(|other| other.reservation_bytes).sum();
        let (budget_bytes, reserve_bytes) = (settings.budget_bytes, settings.reserve_bytes());
        if reserved_bytes + reserve_bytes + asked_bytes > budget_bytes {
            let pool = pool();
            return Err(LedgerError::Reservation { pool, asked_bytes, budget_bytes, reserved_bytes, reserve_bytes });
        }
        Ok(())
    }

    /// Takes the first slot that nobody holds.
    fn take_slot(&self, scan: Option<&Scan>, identity: Identity) -> Result<(u16, MemberRecord), LedgerError> {
        let file = self.file;
        let is_free = |slot: &u16| scan.is_none_or(|scan| !scan.live.contains_key(slot));
        for slot in (0..MAXIMUM_MEMBERS).filter(is_free) {
            let offset = member_offset(slot);
            let last: Reading<MemberRecord> = file.read_record(offset).map_err(file.failed("reading"))?;
            if last != Reading::Blank {
                // Before it is held: nobody ever sees a slot that is held with its last owner in it.
                file.write(&[0; MemberRecord::BYTES], offset)?;
            }
            if !lock::try_lock(&file.file, &slot_range(slot)).map_err(file.failed("locking"))? {
                continue;
            }
            let now_ns = now_ns();
            let generation = last.whole().map_or(0, |last| last.generation.saturating_add(1)).max(now_ns);
            let report = Report { time_ns: now_ns, ..Report::default() };
            let record = MemberRecord { generation, identity, report };
            file.write_record(&record, 0, offset)?;
            return Ok((slot, record));
        }
        Err(LedgerError::Full { pool: self.pool.to_owned(), members: usize::from(MAXIMUM_MEMBERS) })
    }
}

/// When this process started: what follows the name in its stat, which may have anything in it but ends at the last
/// parenthesis, begins with field 3.
fn start_ticks() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?.parse().ok()
}
