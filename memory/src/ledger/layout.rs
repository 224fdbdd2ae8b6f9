//! Where each record lies, and its values in order.

use super::codec::{Decoder, Encoder, Record};
use super::record::{
    Identity, MAXIMUM_BYTES, MAXIMUM_NAME_BYTES, MAXIMUM_SHARES, MemberId, Orders, Report, StandingOrders,
};
use super::settings::PoolSettings;
use crate::policy::ladder::BalloonHealth;
use crate::policy::watermark::Level;

/// The most members a pool can have.
pub const MAXIMUM_MEMBERS: u16 = 256;

/// The head's place. No record crosses a page, so that nobody who is killed leaves half a record.
pub(super) const HEAD_BYTES: u64 = 4096;

/// Where the pool's settings lie in it, behind the preamble.
pub(super) const SETTINGS_OFFSET: u64 = 64;

/// Where the round lies. The orders follow it.
pub(super) const ROUND_OFFSET: u64 = HEAD_BYTES;

/// Where the members begin: the page behind the orders. The area that grows is last, so that a small pool is a small
/// file.
pub(super) const MEMBERS_OFFSET: u64 =
    (orders_offset(MAXIMUM_MEMBERS - 1) + OrdersRecord::BYTES as u64).next_multiple_of(4096);

/// The longest a ledger can be.
pub(super) const LEDGER_BYTES: u64 = member_offset(MAXIMUM_MEMBERS);

/// Where the orders for a slot lie.
pub(super) const fn orders_offset(slot: u16) -> u64 {
    ROUND_OFFSET + RoundRecord::BYTES as u64 + slot as u64 * OrdersRecord::BYTES as u64
}

/// Where a slot lies.
pub(super) const fn member_offset(slot: u16) -> u64 {
    MEMBERS_OFFSET + slot as u64 * MemberRecord::BYTES as u64
}

fn checked<T>(value: T, sound: bool) -> Option<T> {
    sound.then_some(value)
}

impl Record for PoolSettings {
    const BYTES: usize = 64;

    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.u64(self.budget_bytes);
        encoder.u8(self.idle_tax_percent);
        self.watermarks_millipercent.iter().for_each(|mark| encoder.u32(*mark));
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Self> {
        let settings = Self {
            budget_bytes: decoder.u64()?,
            idle_tax_percent: decoder.u8()?,
            watermarks_millipercent: [decoder.u32()?, decoder.u32()?, decoder.u32()?, decoder.u32()?],
        };
        checked(settings, settings.fault().is_none())
    }
}

/// The last round, without its orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoundRecord {
    pub time_ns: u64,
    pub level: Level,
    pub free_bytes: i64,
    pub leader: MemberId,
    pub leader_pid: u32,
}

impl Record for RoundRecord {
    const BYTES: usize = 128;

    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.u64(self.time_ns);
        encoder.u8(self.level as u8);
        encoder.i64(self.free_bytes);
        encoder.u16(self.leader.slot);
        encoder.u64(self.leader.generation);
        encoder.u32(self.leader_pid);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Self> {
        let record = Self {
            time_ns: decoder.u64()?,
            level: Level::from_number(decoder.u8()?)?,
            free_bytes: decoder.i64()?,
            leader: MemberId { slot: decoder.u16()?, generation: decoder.u64()? },
            leader_pid: decoder.u32()?,
        };
        checked(record, record.free_bytes.unsigned_abs() <= MAXIMUM_BYTES && record.leader.slot < MAXIMUM_MEMBERS)
    }
}

/// Orders for whoever has a slot in this generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OrdersRecord {
    pub generation: u64,
    pub standing: StandingOrders,
}

impl Record for OrdersRecord {
    const BYTES: usize = 128;

    fn encode(&self, encoder: &mut Encoder<'_>) {
        let Self { generation, standing } = self;
        encoder.u64(*generation);
        encoder.u64(standing.time_ns);
        encoder.u32(standing.leader_pid);
        encoder.u8(standing.level as u8);
        encoder.i64(standing.free_bytes);
        encoder.u64(standing.orders.grant_bytes);
        encoder.option(standing.orders.reclaim_to_bytes);
        encoder.u64(standing.orders.grow_to_bytes);
        encoder.u64(standing.orders.unmerge_to_bytes);
        encoder.u64(standing.orders.balloon_target_bytes);
        encoder.option(standing.orders.residence_ms);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Self> {
        let generation = decoder.u64()?;
        let standing = StandingOrders {
            time_ns: decoder.u64()?,
            leader_pid: decoder.u32()?,
            level: Level::from_number(decoder.u8()?)?,
            free_bytes: decoder.i64()?,
            orders: Orders {
                grant_bytes: decoder.u64()?,
                reclaim_to_bytes: decoder.option()?,
                grow_to_bytes: decoder.u64()?,
                unmerge_to_bytes: decoder.u64()?,
                balloon_target_bytes: decoder.u64()?,
                residence_ms: decoder.option()?,
            },
        };
        let sound =
            standing.orders == standing.orders.in_range() && standing.free_bytes.unsigned_abs() <= MAXIMUM_BYTES;
        checked(Self { generation, standing }, sound)
    }
}

/// One member: who it is and what it last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberRecord {
    pub generation: u64,
    pub identity: Identity,
    pub report: Report,
}

impl Record for MemberRecord {
    const BYTES: usize = 512;

    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.u64(self.generation);
        encode_identity(&self.identity, encoder);
        encode_report(&self.report, encoder);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Self> {
        let record =
            Self { generation: decoder.u64()?, identity: decode_identity(decoder)?, report: decode_report(decoder)? };
        let Self { identity, report, .. } = &record;
        let sound = identity.fault().is_none() && *report == report.in_range(identity.size_bytes);
        checked(record, sound)
    }
}

fn encode_identity(identity: &Identity, encoder: &mut Encoder<'_>) {
    encoder.text(&identity.name, MAXIMUM_NAME_BYTES);
    encoder.u32(identity.pid);
    encoder.u64(identity.start_ticks);
    encoder.u64(identity.size_bytes);
    encoder.u64(identity.reservation_bytes);
    encoder.u64(identity.limit_bytes);
    encoder.u64(identity.shares);
}

fn decode_identity(decoder: &mut Decoder<'_>) -> Option<Identity> {
    Some(Identity {
        name: decoder.text(MAXIMUM_NAME_BYTES)?,
        pid: decoder.u32()?,
        start_ticks: decoder.u64()?,
        size_bytes: decoder.u64()?,
        reservation_bytes: decoder.u64()?,
        limit_bytes: decoder.u64()?,
        shares: decoder.u64()?,
    })
}

fn encode_report(report: &Report, encoder: &mut Encoder<'_>) {
    encoder.u64(report.time_ns);
    encoder.u64(report.charge_bytes);
    encoder.u64(report.own_bytes);
    encoder.u64(report.touched_bytes);
    encoder.u64(report.active_bytes);
    encoder.option(report.active_fast_bytes);
    encoder.option(report.active_slow_bytes);
    encoder.u64(report.resident_bytes);
    encoder.u64(report.shared_bytes);
    encoder.u64(report.merged_bytes);
    encoder.u64(report.mergeable_bytes);
    encoder.u64(report.compressed_bytes);
    encoder.u64(report.swapped_bytes);
    encoder.u64(report.zero_bytes);
    encoder.u64(report.ballooned_bytes);
    encoder.u64(report.balloon_target_bytes);
    encoder.u64(report.balloon_most_bytes);
    encoder.u64(report.balloon_given_bytes);
    encoder.u64(report.reported_bytes);
    encoder.option(report.guest_free_bytes);
    encoder.u8(report.balloon as u8);
    encoder.bool(report.wants_growth);
    encoder.bool(report.can_reclaim);
    encoder.u64(report.owed_bytes);
    encoder.u64(report.grow_to_bytes);
    encoder.u64(report.orders_time_ns);
    encoder.u64(report.refaults);
    encoder.u64(report.refaulted_bytes);
    encoder.u64(report.stall_ns);
    encoder.u64(report.evicted_pages);
    encoder.u64(report.over_limit_pages);
    encoder.u32(report.flags);
}

fn decode_report(decoder: &mut Decoder<'_>) -> Option<Report> {
    Some(Report {
        time_ns: decoder.u64()?,
        charge_bytes: decoder.u64()?,
        own_bytes: decoder.u64()?,
        touched_bytes: decoder.u64()?,
        active_bytes: decoder.u64()?,
        active_fast_bytes: decoder.option()?,
        active_slow_bytes: decoder.option()?,
        resident_bytes: decoder.u64()?,
        shared_bytes: decoder.u64()?,
        merged_bytes: decoder.u64()?,
        mergeable_bytes: decoder.u64()?,
        compressed_bytes: decoder.u64()?,
        swapped_bytes: decoder.u64()?,
        zero_bytes: decoder.u64()?,
        ballooned_bytes: decoder.u64()?,
        balloon_target_bytes: decoder.u64()?,
        balloon_most_bytes: decoder.u64()?,
        balloon_given_bytes: decoder.u64()?,
        reported_bytes: decoder.u64()?,
        guest_free_bytes: decoder.option()?,
        balloon: BalloonHealth::from_number(decoder.u8()?)?,
        wants_growth: decoder.bool()?,
        can_reclaim: decoder.bool()?,
        owed_bytes: decoder.u64()?,
        grow_to_bytes: decoder.u64()?,
        orders_time_ns: decoder.u64()?,
        refaults: decoder.u64()?,
        refaulted_bytes: decoder.u64()?,
        stall_ns: decoder.u64()?,
        evicted_pages: decoder.u64()?,
        over_limit_pages: decoder.u64()?,
        flags: decoder.u32()?,
    })
}

impl Identity {
    /// What is wrong with it, if anything is.
    pub(super) fn fault(&self) -> Option<&'static str> {
        if self.name.len() > MAXIMUM_NAME_BYTES || !super::codec::is_printable(&self.name) {
            return Some("a VM's name is 1 to 64 bytes of printable characters without spaces");
        }
        if !(1..=MAXIMUM_BYTES).contains(&self.size_bytes) {
            return Some("a VM's size is above 0 and at most 4 PiB");
        }
        if self.limit_bytes > MAXIMUM_BYTES || self.reservation_bytes > self.limit_bytes {
            return Some("a reservation is at most the limit, and that at most 4 PiB");
        }
        if !(1..=MAXIMUM_SHARES).contains(&self.shares) {
            return Some("shares are 1 to 2^40");
        }
        None
    }
}

impl Report {
    /// The nearest report whose every value a guest of this size can have. Numbers are taken one after the other while
    /// the guest runs: a sum may be off by what was in motion.
    pub(super) fn in_range(&self, size_bytes: u64) -> Self {
        let part = |bytes: u64| bytes.min(size_bytes);
        Self {
            charge_bytes: self.charge_bytes.min(MAXIMUM_BYTES),
            own_bytes: self.own_bytes.min(MAXIMUM_BYTES),
            owed_bytes: self.owed_bytes.min(MAXIMUM_BYTES),
            grow_to_bytes: self.grow_to_bytes.min(MAXIMUM_BYTES),
            touched_bytes: part(self.touched_bytes),
            active_bytes: part(self.active_bytes),
            active_fast_bytes: self.active_fast_bytes.map(part),
            active_slow_bytes: self.active_slow_bytes.map(part),
            resident_bytes: part(self.resident_bytes),
            shared_bytes: part(self.shared_bytes),
            merged_bytes: part(self.merged_bytes),
            mergeable_bytes: part(self.mergeable_bytes),
            compressed_bytes: self.compressed_bytes.min(MAXIMUM_BYTES),
            swapped_bytes: part(self.swapped_bytes),
            zero_bytes: part(self.zero_bytes),
            ballooned_bytes: part(self.ballooned_bytes),
            balloon_target_bytes: part(self.balloon_target_bytes),
            balloon_most_bytes: part(self.balloon_most_bytes),
            guest_free_bytes: self.guest_free_bytes.map(part),
            ..*self
        }
    }
}

impl Orders {
    /// The nearest orders that can be carried out.
    pub(super) fn in_range(&self) -> Self {
        let bounded = |bytes: u64| bytes.min(MAXIMUM_BYTES);
        Self {
            grant_bytes: bounded(self.grant_bytes),
            reclaim_to_bytes: self.reclaim_to_bytes.map(bounded),
            grow_to_bytes: bounded(self.grow_to_bytes),
            unmerge_to_bytes: bounded(self.unmerge_to_bytes),
            balloon_target_bytes: bounded(self.balloon_target_bytes),
            residence_ms: self.residence_ms.map(bounded),
        }
    }
}
