//! The whole ledger at a look: which slots are held, and what is in them.

use std::collections::BTreeMap;

use super::codec::Reading;
use super::error::LedgerError;
use super::file::{Image, LedgerFile, READ_ATTEMPTS, pause};
use super::head::Head;
use super::layout::{
    MAXIMUM_MEMBERS, MemberRecord, OrdersRecord, ROUND_OFFSET, RoundRecord, member_offset, orders_offset,
};
use super::lock::{self, LEADING};
use super::now_ns;
use super::record::MemberId;
use super::settings::PoolSettings;
use super::view::{MemberView, PoolView};

/// Who looks. Locks of the descriptor that is looked through are its own, and not seen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looker {
    /// The slot it has itself.
    pub slot: Option<u16>,
    /// It is the leader.
    pub leads: bool,
}

/// What was read.
pub(super) struct Scan {
    /// The head as it is in the file.
    pub head: Head,
    /// Live members and what they last wrote.
    pub live: BTreeMap<u16, Reading<MemberRecord>>,
    orders: BTreeMap<u16, Reading<OrdersRecord>>,
    round: Reading<RoundRecord>,
    /// Slots nobody has that hold no record.
    dead_damaged: usize,
    is_led: bool,
}

impl Scan {
    /// Reads everything, and again what was not whole.
    pub fn read(file: &LedgerFile, looker: Looker) -> Result<Self, LedgerError> {
        let failed = || file.failed("looking at locks");
        // Locks come first: who joins erases the slot of a dead member before it takes the lock, so a slot that was held
        // is never read with what its last owner wrote.
        let held = lock::held_slots(&file.file).map_err(failed())?;
        let is_led = looker.leads || lock::is_held(&file.file, &LEADING).map_err(failed())?;
        let image = file.image()?;
        let dead = |slot: &u16| !held.contains(slot) && looker.slot != Some(*slot);
        let dead_damaged = (0..MAXIMUM_MEMBERS).filter(dead);
        let dead_damaged =
            dead_damaged.filter(|slot| image.record::<MemberRecord>(member_offset(*slot)).is_damaged()).count();
        let mut scan = Self {
            head: image.head(),
            live: held.iter().copied().chain(looker.slot).map(|slot| (slot, Reading::Damaged)).collect(),
            orders: BTreeMap::new(),
            round: Reading::Damaged,
            dead_damaged,
            is_led,
        };
        scan.orders = scan.live.keys().map(|slot| (*slot, Reading::Damaged)).collect();
        let mut image = Some(image);
        for attempt in 0..READ_ATTEMPTS {
            let image = match image.take() {
                Some(image) => image,
                None => file.image()?,
            };
            if scan.complete(&image) {
                break;
            }
            pause(attempt);
        }
        Ok(scan)
    }

    /// Reads what is not whole yet; tells whether everything is now.
    fn complete(&mut self, image: &Image) -> bool {
        if matches!(self.head, Head::Damaged) {
            self.head = image.head();
        }
        if self.round.is_damaged() {
            self.round = image.record(ROUND_OFFSET);
        }
        for (slot, reading) in self.live.iter_mut().filter(|(_, reading)| reading.is_damaged()) {
            *reading = match image.record(member_offset(*slot)) {
                // Its owner has yet to write it, for the first time or anew.
                Reading::Blank => Reading::Damaged,
                reading => reading,
            };
        }
        for (slot, reading) in self.orders.iter_mut().filter(|(_, reading)| reading.is_damaged()) {
            *reading = image.record(orders_offset(*slot));
        }
        self.damaged() == self.dead_damaged && !matches!(self.head, Head::Damaged)
    }

    /// Live members that cannot be read.
    fn unreadable(&self) -> usize {
        self.live.values().filter(|reading| reading.is_damaged()).count()
    }

    /// Records that are damaged and stay so.
    pub fn damaged(&self) -> usize {
        let live = self.unreadable();
        let orders = self.orders.values().filter(|reading| reading.is_damaged()).count();
        self.dead_damaged + live + orders + usize::from(self.round.is_damaged())
    }

    /// The live members that can be read.
    pub fn members(&self) -> impl Iterator<Item = (u16, &MemberRecord)> {
        self.live.iter().filter_map(|(slot, reading)| match reading {
            Reading::Whole(record) => Some((*slot, record)),
            Reading::Blank | Reading::Damaged => None,
        })
    }

    /// What an observer is shown.
    pub fn into_view(self, settings: PoolSettings) -> PoolView {
        let now_ns = now_ns();
        let age_ms = |time_ns: u64| now_ns.saturating_sub(time_ns) / 1_000_000;
        let members: Vec<_> = self.members().map(|(slot, record)| self.member_view(slot, record, age_ms)).collect();
        let (corrupt_slots, unreadable_members) = (self.damaged() as u32, self.unreadable() as u32);
        let round = self.round.whole();
        // A leader that died is none, also while its last round is all there is.
        let leader = round.filter(|_| self.is_led);
        let leader = leader.and_then(|round| members.iter().find(|member| member.id == round.leader));
        PoolView {
            settings,
            free_bytes: round.map(|round| round.free_bytes),
            level: round.map(|round| round.level),
            leader: leader.map(|leader| leader.identity.name.clone()),
            leader_pid: leader.map(|leader| leader.identity.pid),
            round_age_ms: round.map(|round| age_ms(round.time_ns)),
            corrupt_slots,
            unreadable_members,
            members,
        }
    }

    fn member_view(&self, slot: u16, record: &MemberRecord, age_ms: impl Fn(u64) -> u64) -> MemberView {
        let standing = match self.orders.get(&slot) {
            Some(Reading::Whole(orders)) if orders.generation == record.generation => Some(orders.standing),
            _ => None,
        };
        MemberView {
            id: MemberId { slot, generation: record.generation },
            identity: record.identity.clone(),
            report: record.report,
            report_age_ms: age_ms(record.report.time_ns),
            grant_bytes: standing.map(|standing| standing.orders.grant_bytes),
            orders: standing.map(|standing| standing.orders),
            orders_age_ms: standing.map(|standing| age_ms(standing.time_ns)),
        }
    }
}
