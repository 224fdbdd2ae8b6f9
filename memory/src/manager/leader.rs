//! What the leader of a pool decides in a round: from what its members say to what they are told. Pure.

use std::collections::HashMap;
use std::time::Duration;

use crate::ledger::{Identity, MAXIMUM_BYTES, MemberId, MemberView, Orders, PoolView, Report, Round};
use crate::policy::allocator::{Claim, IdleTax, grants};
use crate::policy::ladder::{Pool, Standing};
use crate::policy::turnover::Turnover;
use crate::policy::watermark::{Level, Watermarks};

use super::rest::is_at_rest;

/// The part of the last watermark that is kept from all growth: room for what cannot wait.
const RESERVE_PART: u64 = 2;

/// What a leader remembers from round to round.
#[derive(Debug, Default)]
pub(super) struct Leader {
    level: Level,
    /// Leave to grow that was given and may still be taken up, by member: when, and how far.
    outstanding: HashMap<MemberId, Vec<(u64, u64)>>,
    /// How fast pages come back to each.
    turnovers: HashMap<MemberId, Turnover>,
}

/// What a round is decided from, besides what the members say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    /// `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// Memory of the host that can be had, if it is known.
    pub host_available_bytes: Option<u64>,
}

impl Leader {
    /// Begins where the last leader has left off.
    pub fn new(view: &PoolView) -> Self {
        let last_orders = |member: &MemberView| {
            let orders = member.orders?;
            Some((member.id, vec![(u64::MAX, orders.grow_to_bytes)]))
        };
        Self {
            level: view.level.unwrap_or_default(),
            outstanding: view.members.iter().filter_map(last_orders).collect(),
            turnovers: HashMap::new(),
        }
    }

    /// One round; `None` while a member cannot be read: what it holds is not known, so nobody is told to take more. It writes
    /// itself anew with its next report.
    pub fn round(&mut self, view: &PoolView, circumstances: &Circumstances) -> Option<Round> {
        (view.unreadable_members == 0).then(|| self.decide(view, circumstances))
    }

    fn decide(&mut self, view: &PoolView, circumstances: &Circumstances) -> Round {
        let settings = &view.settings;
        let now_ns = circumstances.now_ns;
        let used_bytes: u64 = view.members.iter().map(|member| member.report.charge_bytes).sum();
        let mut free_bytes = settings.budget_bytes as i64 - used_bytes as i64;
        if let Some(bytes) = circumstances.host_available_bytes {
            free_bytes = free_bytes.min(bytes as i64);
        }
        let watermarks = Watermarks::from_millipercent(settings.watermarks_millipercent).unwrap_or_default();
        if is_at_rest(view) {
            self.level = Level::High;
            self.turnovers.clear();
            let orders: Vec<_> = view.members.iter().map(|member| (member.id, rest_orders(&member.identity))).collect();
            // Whoever has taken them up, and says so later, may have grown by then.
            self.remember(view, now_ns, &orders);
            return Round { time_ns: now_ns, level: self.level, free_bytes, orders };
        }
        self.level = watermarks.next(self.level, free_bytes, settings.budget_bytes);
        let claims: Vec<Claim> = view.members.iter().map(claim).collect();
        let distributable_bytes = settings.budget_bytes - settings.reserve_bytes();
        let tax = IdleTax::from_percent(settings.idle_tax_percent);
        let grants = grants(distributable_bytes, tax, &claims);
        let standings: Vec<Standing> = view
            .members
            .iter()
            .zip(&claims)
            .zip(&grants)
            .map(|((member, claim), &grant_bytes)| standing(member, claim, grant_bytes, self.committed_bytes(member)))
            .collect();
        let residence_ms = self.residence(view, &standings).map(|residence| residence.as_millis() as u64);
        let pool = Pool {
            level: self.level,
            budget_bytes: settings.budget_bytes,
            free_bytes,
            reserve_bytes: watermarks.line_bytes(Level::Low, settings.budget_bytes) / RESERVE_PART,
            watermarks,
        };
        let orders: Vec<(MemberId, Orders)> = view
            .members
            .iter()
            .zip(grants)
            .zip(pool.orders(&standings))
            .map(|((member, grant_bytes), told)| {
                let orders = Orders {
                    grant_bytes,
                    reclaim_to_bytes: told.reclaim_to_bytes,
                    grow_to_bytes: told.grow_to_bytes.min(MAXIMUM_BYTES),
                    unmerge_to_bytes: told.unmerge_to_bytes.min(MAXIMUM_BYTES),
                    balloon_target_bytes: told.balloon_target_bytes,
                    residence_ms,
                };
                (member.id, orders)
            })
            .collect();
        self.remember(view, now_ns, &orders);
        Round { time_ns: now_ns, level: self.level, free_bytes, orders }
    }

    /// How long a page stays in the RAM of that member, of those that are granted less than they could use, where it stays the
    /// shortest.
    fn residence(&mut self, view: &PoolView, standings: &[Standing]) -> Option<Duration> {
        let mut turnovers = HashMap::with_capacity(view.members.len());
        for MemberView { id, report, .. } in &view.members {
            let mut turnover = self.turnovers.remove(id).unwrap_or_default();
            turnover.take(report.time_ns, report.refaulted_bytes);
            turnovers.insert(*id, turnover);
        }
        self.turnovers = turnovers;
        let squeezed = view.members.iter().zip(standings).filter(|(_, member)| member.grant_bytes < member.most_bytes);
        let residences = squeezed.map(|(member, _)| self.turnovers[&member.id].residence(member.report.resident_bytes));
        residences.min().filter(|residence| *residence < Duration::MAX)
    }

    /// What a member may take before it has seen another order: what it says it may, and whatever it was told since.
    fn committed_bytes(&self, member: &MemberView) -> u64 {
        let Report { charge_bytes, grow_to_bytes, .. } = member.report;
        let most_bytes = most_bytes(&member.identity, &member.report);
        let told_bytes = self.outstanding.get(&member.id).into_iter().flatten().map(|&(_, bytes)| bytes);
        // A member that has not said anything has not started.
        let said_bytes = if member.report.time_ns == 0 { 0 } else { grow_to_bytes };
        charge_bytes.max(told_bytes.max().unwrap_or(0).max(said_bytes).min(most_bytes))
    }

    fn remember(&mut self, view: &PoolView, now_ns: u64, orders: &[(MemberId, Orders)]) {
        let mut outstanding: HashMap<MemberId, Vec<(u64, u64)>> = HashMap::with_capacity(orders.len());
        for (member, &(id, orders)) in view.members.iter().zip(orders) {
            let mut told = self.outstanding.remove(&id).unwrap_or_default();
            // What came before the orders in force is not taken up any more. Of what a former leader told there is no time:
            // it is over once the member has orders of this one's.
            let in_force_ns = member.report.orders_time_ns;
            let is_mine = told.iter().any(|&(time_ns, _)| time_ns == in_force_ns);
            told.retain(|&(time_ns, _)| if time_ns == u64::MAX { !is_mine } else { time_ns > in_force_ns });
            // One entry for those who do not listen, however long.
            if told.len() >= 64 {
                let most = told.drain(..).max_by_key(|&(_, bytes)| bytes);
                told.extend(most);
            }
            told.push((now_ns, orders.grow_to_bytes));
            outstanding.insert(id, told);
        }
        self.outstanding = outstanding;
    }
}

/// For a member of a pool at rest: no limits.
fn rest_orders(identity: &Identity) -> Orders {
    Orders {
        grant_bytes: identity.size_bytes.min(identity.limit_bytes),
        reclaim_to_bytes: None,
        grow_to_bytes: MAXIMUM_BYTES,
        unmerge_to_bytes: MAXIMUM_BYTES,
        balloon_target_bytes: 0,
        residence_ms: None,
    }
}

/// The most a member can ever cost.
fn most_bytes(identity: &Identity, report: &Report) -> u64 {
    identity.size_bytes.min(identity.limit_bytes).saturating_add(report.own_bytes)
}

fn claim(member: &MemberView) -> Claim {
    let Report { own_bytes, touched_bytes, active_bytes, .. } = member.report;
    Claim {
        shares: member.identity.shares,
        reservation_bytes: member.identity.reservation_bytes,
        most_bytes: touched_bytes.saturating_add(own_bytes).min(most_bytes(&member.identity, &member.report)),
        active_bytes: active_bytes.saturating_add(own_bytes),
    }
}

fn standing(member: &MemberView, claim: &Claim, grant_bytes: u64, committed_bytes: u64) -> Standing {
    let report = &member.report;
    Standing {
        grant_bytes,
        most_bytes: claim.most_bytes,
        charge_bytes: report.charge_bytes,
        committed_bytes,
        reservation_bytes: member.identity.reservation_bytes,
        size_bytes: member.identity.size_bytes,
        ballooned_bytes: report.ballooned_bytes,
        balloon_most_bytes: report.balloon_most_bytes,
        guest_free_bytes: report.guest_free_bytes,
        balloon: report.balloon,
        wants_growth: report.wants_growth,
        owed_bytes: report.owed_bytes,
        has_backing: report.can_reclaim,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ledger::{BalloonHealth, PoolSettings};

    const MIB: u64 = 1 << 20;

    /// A guest of 256 MiB that has touched 240 and holds `charge_mib`, 3 of them the process's own.
    pub fn member(slot: u16, charge_mib: u64, active_mib: u64) -> MemberView {
        MemberView {
            id: MemberId { slot, generation: 1 },
            identity: Identity {
                name: format!("vm{slot}"),
                pid: 100 + u32::from(slot),
                start_ticks: 1,
                size_bytes: 256 * MIB,
                reservation_bytes: 0,
                limit_bytes: 256 * MIB,
                shares: 2560,
            },
            report: Report {
                time_ns: 1,
                charge_bytes: charge_mib * MIB,
                own_bytes: 3 * MIB,
                touched_bytes: 240 * MIB,
                active_bytes: active_mib * MIB,
                balloon: BalloonHealth::Absent,
                can_reclaim: true,
                grow_to_bytes: charge_mib * MIB,
                ..Report::default()
            },
            report_age_ms: 0,
            grant_bytes: None,
            orders: None,
            orders_age_ms: None,
        }
    }

    pub fn pool(budget_mib: u64, idle_tax_percent: u8, members: Vec<MemberView>) -> PoolView {
        PoolView {
            settings: PoolSettings {
                budget_bytes: budget_mib * MIB,
                idle_tax_percent,
                watermarks_millipercent: [6000, 4000, 2000, 1000],
            },
            free_bytes: None,
            level: None,
            leader: None,
            leader_pid: None,
            round_age_ms: None,
            corrupt_slots: 0,
            unreadable_members: 0,
            members,
        }
    }

    fn at(now_ns: u64) -> Circumstances {
        Circumstances { now_ns, host_available_bytes: None }
    }

    fn decide(leader: &mut Leader, view: &PoolView, now_ns: u64) -> Round {
        leader.round(view, &at(now_ns)).expect("all members can be read")
    }

    #[test]
    fn guests_that_fit_are_not_limited() {
        let view = pool(512, 75, vec![member(0, 250, 240), member(1, 250, 0)]);
        let round = decide(&mut Leader::new(&view), &view, 5);
        assert_eq!((round.level, round.free_bytes), (Level::High, 12 * MIB as i64));
        assert!(round.orders.iter().all(|(_, orders)| orders.grow_to_bytes == MAXIMUM_BYTES));
        assert!(round.orders.iter().all(|(_, orders)| orders.reclaim_to_bytes.is_none()));
    }

    #[test]
    fn idle_memory_is_taxed() {
        let grants_mib = |tax| {
            let view = pool(383, tax, vec![member(0, 180, 0), member(1, 180, 240)]);
            let round = decide(&mut Leader::new(&view), &view, 5);
            round.orders.iter().map(|(_, orders)| orders.grant_bytes.div_ceil(MIB)).collect::<Vec<_>>()
        };
        assert_eq!(grants_mib(0), [181, 181]);
        // All that the active one has touched, and the rest to the idle one.
        assert_eq!(grants_mib(75), [118, 243]);
    }

    #[test]
    fn all_are_told_how_long_pages_stay_where_memory_lacks() {
        let mut view = pool(383, 0, vec![member(0, 180, 0), member(1, 180, 240)]);
        let mut leader = Leader::new(&view);
        let mut told = |view: &mut PoolView, mib_a_second: u64| {
            let rounds = (1..=60).map(|second| {
                let report = &mut view.members[1].report;
                (report.time_ns, report.resident_bytes) = (report.time_ns + 1_000_000_000, 180 * MIB);
                report.refaulted_bytes += mib_a_second * MIB;
                decide(&mut leader, view, second)
            });
            let last = rounds.last().expect("there were some");
            last.orders.iter().map(|(_, orders)| orders.residence_ms).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut view, 0), [None; 2]);
        let residences = told(&mut view, 18);
        assert!(
            residences.iter().all(|residence| residence.is_some_and(|ms| ms.abs_diff(10_000) < 100)),
            "{residences:?}"
        );
    }

    #[test]
    fn what_one_was_told_it_may_take_is_not_given_to_another() {
        let mut view = pool(383, 0, vec![member(0, 20, 20), member(1, 100, 100)]);
        view.members[1].report.wants_growth = true;
        let id = view.members[0].id;
        let mut leader = Leader::new(&view);
        leader.outstanding.insert(id, vec![(5, 200 * MIB)]);
        for now_ns in 6..9 {
            let round = decide(&mut leader, &view, now_ns);
            assert!(round.orders[1].1.grow_to_bytes <= 183 * MIB, "{round:?}");
        }
        assert_eq!(leader.outstanding[&id].iter().map(|&(time_ns, _)| time_ns).collect::<Vec<_>>(), [5, 6, 7, 8]);
        // Once it says that it keeps to what it was told later, the other gets the difference.
        view.members[0].report.orders_time_ns = 8;
        decide(&mut leader, &view, 9);
        let round = decide(&mut leader, &view, 10);
        assert!(round.orders[1].1.grow_to_bytes > 183 * MIB, "{round:?}");
    }

    /// Round by round: one waits with all it was granted, the other is granted far more than it has, and is told so.
    #[test]
    fn what_is_granted_to_one_at_rest_is_lent_to_one_that_waits() {
        // M is 272.
        let mut view = pool(290, 0, vec![member(0, 20, 20), member(1, 100, 240)]);
        view.members[1].report.wants_growth = true;
        let mut leader = Leader::new(&view);
        for now_ns in 10..60 {
            let round = decide(&mut leader, &view, now_ns);
            for (member, (_, orders)) in view.members.iter_mut().zip(&round.orders) {
                member.report.orders_time_ns = now_ns;
                member.report.grow_to_bytes = orders.grow_to_bytes;
            }
            assert!(round.orders[0].1.grant_bytes > 130 * MIB, "{round:?}");
            view.members[1].report.charge_bytes = round.orders[1].1.grow_to_bytes.min(243 * MIB);
        }
        assert_eq!(view.members[1].report.charge_bytes, 243 * MIB, "all it has");
        // Once the other grows it gets its grant back.
        view.members[0].report.wants_growth = true;
        view.members[1].report.wants_growth = false;
        for now_ns in 60..160 {
            let round = decide(&mut leader, &view, now_ns);
            for (member, (_, orders)) in view.members.iter_mut().zip(&round.orders) {
                member.report.orders_time_ns = now_ns;
                member.report.grow_to_bytes = orders.grow_to_bytes;
            }
            view.members[0].report.charge_bytes = round.orders[0].1.grow_to_bytes.min(243 * MIB);
            let kept_bytes = round.orders[1].1.reclaim_to_bytes.unwrap_or(u64::MAX);
            view.members[1].report.charge_bytes = view.members[1].report.charge_bytes.min(kept_bytes);
        }
        assert!(view.members[0].report.charge_bytes >= 130 * MIB, "{view:?}");
    }

    #[test]
    fn a_new_leader_reckons_with_the_last_ones_orders() {
        let mut view = pool(383, 0, vec![member(0, 20, 20), member(1, 100, 100)]);
        view.members[1].report.wants_growth = true;
        view.members[0].orders = Some(Orders { grow_to_bytes: 200 * MIB, ..rest_orders(&view.members[0].identity) });
        view.level = Some(Level::Soft);
        let mut leader = Leader::new(&view);
        let round = decide(&mut leader, &view, 5);
        assert!(round.orders[1].1.grow_to_bytes <= 183 * MIB, "{round:?}");
        // They are over when it has one of these.
        view.members[0].report.orders_time_ns = 5;
        view.members[0].report.grow_to_bytes = round.orders[0].1.grow_to_bytes;
        decide(&mut leader, &view, 6);
        let round = decide(&mut leader, &view, 7);
        assert!(round.orders[1].1.grow_to_bytes > 183 * MIB, "{round:?}");
    }

    #[test]
    fn a_member_that_cannot_be_read_stops_decisions() {
        let view = PoolView { unreadable_members: 1, ..pool(383, 0, vec![member(0, 20, 20)]) };
        assert_eq!(Leader::new(&view).round(&view, &at(5)), None);
    }

    #[test]
    fn a_host_that_is_short_is_short_whatever_the_budget() {
        let view = pool(383, 0, vec![member(0, 20, 20), member(1, 100, 100)]);
        let circumstances = Circumstances { host_available_bytes: Some(5 * MIB), ..at(5) };
        let round = Leader::new(&view).round(&view, &circumstances).expect("a round");
        assert_eq!((round.level, round.free_bytes), (Level::Low, 5 * MIB as i64));
    }
}
