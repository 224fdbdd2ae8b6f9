//! One member's place in a pool, and leading it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::codec::{self, Reading, Record};
use super::error::LedgerError;
use super::file::LedgerFile;
use super::head::Head;
use super::layout::{
    MAXIMUM_MEMBERS, MemberRecord, OrdersRecord, ROUND_OFFSET, RoundRecord, member_offset, orders_offset,
};
use super::lock::{self, LEADING, entering_range, slot_range};
use super::record::{Identity, MAXIMUM_BYTES, MemberId, Report, Round, StandingOrders};
use super::scan::{Looker, Scan};
use super::settings::PoolSettings;
use super::view::PoolView;

/// A place in a pool, until it is dropped or the process ends, however it ends. From any thread.
#[derive(Debug)]
pub struct Membership {
    place: Arc<Place>,
}

/// What a member and its leadership have in common: the one descriptor that holds their locks.
#[derive(Debug)]
struct Place {
    file: LedgerFile,
    id: MemberId,
    identity: Identity,
    settings: PoolSettings,
    program: String,
    /// How often the slot was written; held while it is.
    sequence: Mutex<u64>,
    leads: AtomicBool,
    /// The head was not as it should be when it was last read.
    head_damaged: AtomicBool,
    damaged_reads: AtomicU64,
}

impl Membership {
    /// The file's locks for this slot are held.
    pub(super) fn new(
        file: LedgerFile,
        id: MemberId,
        identity: Identity,
        settings: PoolSettings,
        program: &str,
    ) -> Self {
        let place = Place {
            file,
            id,
            identity,
            settings,
            program: program.to_owned(),
            sequence: Mutex::new(0),
            leads: AtomicBool::new(false),
            head_damaged: AtomicBool::new(false),
            damaged_reads: AtomicU64::new(0),
        };
        Self { place: Arc::new(place) }
    }

    /// Which member this is.
    pub fn id(&self) -> MemberId {
        self.place.id
    }

    /// What the others know it as.
    pub fn identity(&self) -> &Identity {
        &self.place.identity
    }

    /// What holds in the pool.
    pub fn settings(&self) -> &PoolSettings {
        &self.place.settings
    }

    /// Tells the others; they read all of a report or none of it. Values that no guest of this size has are replaced by
    /// the nearest that one could. Writes the whole slot, so it also repairs it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn publish(&self, report: &Report) -> Result<(), LedgerError> {
        let Place { file, id, identity, .. } = &*self.place;
        let report = report.in_range(identity.size_bytes);
        let record = MemberRecord { generation: id.generation, identity: identity.clone(), report };
        let mut sequence = self.place.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        *sequence += 1;
        file.write_record(&record, *sequence, member_offset(id.slot))
    }

    /// The orders that stand for this very member; `None` before the first, and while they cannot be read.
    pub fn orders(&self) -> Option<StandingOrders> {
        match self.place.file.read_record::<OrdersRecord>(orders_offset(self.place.id.slot)) {
            Ok(Reading::Whole(record)) if record.generation == self.place.id.generation => Some(record.standing),
            // For nobody yet, or for who had the slot before.
            Ok(Reading::Whole(_) | Reading::Blank) => None,
            Ok(Reading::Damaged) | Err(_) => {
                self.place.damaged_reads.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Everybody in the pool, this member too.
    ///
    /// # Errors
    /// The file cannot be read; what is damaged in it is no error but counted.
    pub fn members(&self) -> Result<PoolView, LedgerError> {
        let place = &*self.place;
        let looker = Looker { slot: Some(place.id.slot), leads: place.leads.load(Ordering::Acquire) };
        let scan = Scan::read(&place.file, looker)?;
        let is_own = matches!(&scan.head, Head::Pool { program, settings }
            if *program == place.program && *settings == place.settings);
        place.head_damaged.store(!is_own, Ordering::Relaxed);
        let damaged = scan.damaged() as u64 + u64::from(!is_own);
        place.damaged_reads.fetch_add(damaged, Ordering::Relaxed);
        Ok(scan.into_view(place.settings))
    }

    /// Records that could not be read since this member joined, counted each time.
    pub fn damaged_reads(&self) -> u64 {
        self.place.damaged_reads.load(Ordering::Relaxed)
    }

    /// Looks whether others still find the file this member writes to. Those who have it go on with it in any case.
    ///
    /// # Errors
    /// [`LedgerError::Replaced`]; or the file system does not say.
    pub fn check_place(&self) -> Result<(), LedgerError> {
        match self.place.file.is_in_place()? {
            true => Ok(()),
            false => Err(LedgerError::Replaced { path: self.place.file.path.clone() }),
        }
    }

    /// Becomes the leader if there is none. Never waits; a ledger that cannot be locked has no leader.
    pub fn try_lead(&self) -> Option<Leadership> {
        let place = &self.place;
        // The kernel would give a descriptor the lock it has.
        if place.leads.swap(true, Ordering::AcqRel) {
            return None;
        }
        match lock::try_lock(&place.file.file, &LEADING) {
            Ok(true) => Some(Leadership { place: Arc::clone(place), written: 0 }),
            Ok(false) | Err(_) => {
                place.leads.store(false, Ordering::Release);
                None
            }
        }
    }

    /// Becomes the one that room is made for, if there is none: of many that each hold a part of what they need none would
    /// ever begin. Never waits. A member has one entry at most.
    pub fn try_enter(&self) -> Option<Entry> {
        let Place { file, id, .. } = &*self.place;
        let is_held = lock::try_lock(&file.file, &entering_range(id.slot)).unwrap_or(false);
        is_held.then(|| Entry { place: Arc::clone(&self.place) })
    }

    /// The slot of the other member that room is made for.
    pub fn entering(&self) -> Option<u16> {
        lock::entering_slot(&self.place.file.file).ok().flatten()
    }
}

impl Drop for Membership {
    /// Its leadership may still have the descriptor.
    fn drop(&mut self) {
        let _ = lock::unlock(&self.place.file.file, &slot_range(self.place.id.slot));
    }
}

/// The right to be given room to begin with, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Entry {
    place: Arc<Place>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Place { file, id, .. } = &*self.place;
        let _ = lock::unlock(&file.file, &entering_range(id.slot));
    }
}

/// The right to lead, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Leadership {
    place: Arc<Place>,
    /// How many slots orders have been written for.
    written: u16,
}

impl Leadership {
    /// Writes a round and its orders at once. Orders of earlier rounds are erased, but for members of slots beyond all
    /// that this leader has ever named: those go stale. Repairs the head if the last look at the pool found it damaged.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn publish(&mut self, round: &Round) -> Result<(), LedgerError> {
        let Place { file, id, identity, settings, program, .. } = &*self.place;
        if self.place.head_damaged.swap(false, Ordering::Relaxed) {
            file.write_head(program, settings, round.time_ns)?;
        }
        let named = round.orders.iter().map(|(member, _)| member.slot).filter(|slot| *slot < MAXIMUM_MEMBERS).max();
        let slots = named.map_or(0, |slot| slot + 1).max(self.written);
        let mut bytes = vec![0; (orders_offset(slots) - ROUND_OFFSET) as usize];
        let free_bytes = round.free_bytes.clamp(-(MAXIMUM_BYTES as i64), MAXIMUM_BYTES as i64);
        let (time_ns, level, leader_pid) = (round.time_ns, round.level, identity.pid);
        // Rounds follow each other in time, across leaders too.
        let sequence = time_ns;
        let head = RoundRecord { time_ns, level, free_bytes, leader: *id, leader_pid };
        codec::seal(&head, sequence, ROUND_OFFSET, &mut bytes[..RoundRecord::BYTES]);
        for (member, orders) in round.orders.iter().filter(|(member, _)| member.slot < slots) {
            let standing = StandingOrders { time_ns, leader_pid, level, free_bytes, orders: orders.in_range() };
            let record = OrdersRecord { generation: member.generation, standing };
            let offset = orders_offset(member.slot);
            let place = &mut bytes[(offset - ROUND_OFFSET) as usize..][..OrdersRecord::BYTES];
            codec::seal(&record, sequence, offset, place);
        }
        file.write(&bytes, ROUND_OFFSET)?;
        self.written = slots;
        Ok(())
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        // In this order: a member that is said to lead may not be given the lock by itself meanwhile.
        let _ = lock::unlock(&self.place.file.file, &LEADING);
        self.place.leads.store(false, Ordering::Release);
    }
}
