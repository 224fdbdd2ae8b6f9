//! One VM's part in its pool: it says how it is, leads if nobody else does, and does what it is told.

mod merging;
mod report;
mod turn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::activity::{Estimate, Tracker, WriteSampler};
use crate::balloon::Balloon;
use crate::ledger::{JoinRequest, Leadership, MAXIMUM_BYTES, Membership, PoolView, Report, StandingOrders, now_ns};
use crate::pager::{Limits, Pager, PagerError, PagerUsage};
use crate::policy::brake::ProactiveStep;
use crate::policy::ladder::unmerging_limit_bytes;
use crate::policy::watermark::Level;
use crate::pressure::Pressure;
use crate::ram::PAGE_SIZE;
use crate::sharing::{PoolPlace, SharingHandle};
use crate::userfault::UserfaultSupport;

use super::balloon::BalloonWatch;
use super::cold::Cold;
use super::driver::KsmDriver;
use super::handle::{ManagerHandle, Totals};
use super::leader::{Circumstances, Leader};
use super::own::OwnMemory;
use super::proactive::Proactive;
use super::rest::is_at_rest;
use super::{ManagerConfig, ManagerError, ReclaimMode};
use turn::Turn;

/// How often a member of a pool at rest looks round.
const REST: Duration = Duration::from_secs(1);

/// How often one that may have to give does.
const CALM: Duration = Duration::from_millis(100);

/// How often one that is short of memory, or waits for it, does.
const PRESSED: Duration = Duration::from_millis(20);

/// Orders are older than they may be after three of these: their leader has stopped.
const ORDERS_PERIOD: Duration = Duration::from_secs(1);

/// How often is looked at what changes slowly: the process's own memory, the guest's statistics, the host.
const SLOW: Duration = Duration::from_secs(1);

/// How long a guest that has waited at its grant keeps room free by itself: waiting for an order each time takes longer than
/// many pages do.
const EXCHANGE: Duration = Duration::from_secs(1);

/// The guest, once it is there.
struct Guest {
    pager: Arc<Pager>,
    balloon: Option<Arc<dyn Balloon>>,
    /// What it used at the last look.
    usage: PagerUsage,
    /// What it worked with by then.
    estimate: Option<Estimate>,
}

/// See the top of this file.
pub struct Member {
    config: ManagerConfig,
    /// The pool's folder.
    folder: PathBuf,
    membership: Membership,
    guest: Option<Guest>,
    /// What finds pages that need not be there.
    sharing: Option<Arc<SharingHandle>>,
    ksm: KsmDriver,
    leading: Option<(Leadership, Leader)>,
    tracker: Tracker,
    watch: BalloonWatch,
    /// The orders in force: their round's time, and how far the VM may grow.
    in_force: (u64, u64),
    /// What it keeps to while its orders are too old.
    kept_bytes: Option<u64>,
    /// Limits cannot be put in force: the guest's memory cannot be paged.
    cannot_limit: bool,
    own_memory: OwnMemory,
    own_bytes: u64,
    host_available_bytes: Option<u64>,
    looked: Option<Instant>,
    /// The slow look after which it was said who else is there.
    met: Option<Instant>,
    /// What it needs to load its guest, while it is made room for.
    loading_bytes: Option<u64>,
    /// When the guest was last seen to wait for room for a page it had before.
    waited: Option<Instant>,
    /// The most the balloon may be asked to hold.
    balloon_most_bytes: u64,
    proactive: Proactive,
    cold: Cold,
    handle: Arc<ManagerHandle>,
    /// The last look, and what had been done by then.
    counted: Option<(Instant, Totals)>,
}

impl Member {
    /// Joins a pool. The VM may not grow before [`Member::wait_for_room`] unless the pool is at rest.
    ///
    /// # Errors
    /// [`ManagerError::Ledger`]; [`ManagerError::Pager`] when guest memory cannot be paged and must be: in a pool that is not
    /// at rest, or becomes so by this VM, and where the guest is sampled in any.
    pub fn join(pool: &Path, request: &JoinRequest, config: ManagerConfig) -> Result<Self, ManagerError> {
        let membership = crate::ledger::Ledger::join(pool, request)?;
        let is_at_rest = is_at_rest(&membership.members()?);
        if !is_at_rest || config.samples_at_rest() {
            UserfaultSupport::probe().map_err(PagerError::from)?;
        }
        let grow_to_bytes = if is_at_rest { MAXIMUM_BYTES } else { 0 };
        Ok(Self {
            tracker: Tracker::new(config.tracker),
            ksm: KsmDriver::new(config.ksm_tuner),
            config,
            folder: pool.to_owned(),
            membership,
            guest: None,
            sharing: None,
            leading: None,
            watch: BalloonWatch::default(),
            in_force: (0, grow_to_bytes),
            kept_bytes: None,
            cannot_limit: false,
            own_memory: OwnMemory::default(),
            own_bytes: 0,
            host_available_bytes: None,
            looked: None,
            met: None,
            loading_bytes: None,
            waited: None,
            balloon_most_bytes: 0,
            proactive: Proactive::default(),
            cold: Cold::default(),
            handle: Arc::default(),
            counted: None,
        })
    }

    /// How others see and control this member.
    pub fn handle(&self) -> Arc<ManagerHandle> {
        Arc::clone(&self.handle)
    }

    /// Where it may merge pages.
    pub fn place(&self) -> PoolPlace {
        PoolPlace { folder: self.folder.clone(), id: self.membership.id() }
    }

    /// Lets it use what finds pages that need not be there.
    pub fn share(&mut self, sharing: Arc<SharingHandle>) {
        self.sharing = Some(sharing);
    }

    /// Waits until this process may hold so much more, for what it takes to load a guest. In a pool that is not at rest one member
    /// at a time is made room for, in turns. `on_wait` is told now and then what the pool looks like; it returns false to
    /// give up.
    ///
    /// # Errors
    /// [`ManagerError::Ledger`]; [`ManagerError::NoRoom`] when `on_wait` gave up.
    pub fn wait_for_room(
        &mut self,
        bytes: u64,
        mut on_wait: impl FnMut(&PoolView) -> bool,
    ) -> Result<(), ManagerError> {
        let (mut view, mut viewed) = (self.membership.members()?, Instant::now());
        let mut turn = Turn::default();
        loop {
            let now = Instant::now();
            let is_promised = self.own_bytes.saturating_add(bytes) <= self.membership.identity().reservation_bytes;
            let enters = is_promised || turn.has_come(&self.membership, &view, self.in_force.1, now);
            self.loading_bytes = enters.then_some(bytes);
            let report = self.report(now)?;
            self.own_bytes = report.own_bytes;
            self.membership.publish(&report)?;
            let leads = self.leads();
            // Reads what all have said: many that wait would keep those busy that make room for them.
            if leads || now.duration_since(viewed) >= CALM {
                (view, viewed) = (self.membership.members()?, now);
            }
            if leads {
                self.lead(&view)?;
            }
            if let Some(standing) = self.membership.orders() {
                self.in_force = (standing.time_ns, turn.taken_bytes(&standing, enters, report.own_bytes));
            }
            if self.in_force.1 >= report.own_bytes.saturating_add(bytes) {
                self.loading_bytes = None;
                // It is silent while it loads, and its turn is over: this must be known.
                let report = self.report(now)?;
                self.membership.publish(&report)?;
                return Ok(());
            }
            if !on_wait(&view) {
                return Err(ManagerError::NoRoom { bytes });
            }
            let is_pressed = enters || (leads && view.members.iter().any(|member| member.report.wants_growth));
            std::thread::sleep(if is_pressed { PRESSED } else { CALM });
        }
    }

    /// The guest is loaded, and about to run: from here on its pages are this member's business. What it writes is watched
    /// only where the user asks for samples at all times.
    ///
    /// # Errors
    /// [`ManagerError::Pager`] when the pool wants the VM armed and it cannot be.
    pub fn take_charge(
        &mut self,
        pager: Arc<Pager>,
        balloon: Option<Arc<dyn Balloon>>,
        writes: Option<WriteSampler>,
    ) -> Result<(), ManagerError> {
        if let Some(writes) = writes.filter(|_| self.config.track) {
            self.tracker.watch_writes(writes);
        }
        // The last look was before the guest was loaded.
        self.own_memory = OwnMemory::default();
        self.own_bytes = self.own_memory.bytes(Some(&pager), 0, Instant::now()).map_err(ManagerError::Proc)?;
        self.guest = Some(Guest { usage: pager.usage(), estimate: None, pager, balloon });
        let grow_to_bytes = Some(self.in_force.1);
        self.keep_to(Limits { grow_to_bytes, unmerge_to_bytes: grow_to_bytes, reclaim_to_bytes: None, is_firm: true })
    }

    /// One look round. Returns how long to rest.
    ///
    /// # Errors
    /// [`ManagerError`]: the limits of before stay in force.
    pub fn step(&mut self, now: Instant) -> Result<Duration, ManagerError> {
        let report = self.report(now)?;
        self.membership.publish(&report)?;
        self.meet_others()?;
        let mut pause = CALM;
        if self.leads() {
            let view = self.membership.members()?;
            self.lead(&view)?;
            self.drive_ksm(&view, now);
            if view.members.iter().any(|member| member.report.wants_growth) {
                pause = PRESSED;
            }
        }
        let Some(standing) = self.membership.orders() else { return Ok(pause.min(PRESSED)) };
        self.count(now, &standing, &report);
        let is_at_rest = standing.orders.grow_to_bytes >= MAXIMUM_BYTES;
        self.follow(&standing, &report, now)?;
        if let Some(sharing) = &self.sharing {
            sharing.set_wanted(!is_at_rest && self.config.reclaim != ReclaimMode::Off);
        }
        self.take_cold(&report, now)?;
        if let Some(Guest { pager, .. }) = &self.guest {
            if self.config.samples_at_rest() || !is_at_rest {
                self.tracker.step(pager, now)?;
            } else {
                self.tracker.rest(pager);
            }
        }
        if report.wants_growth || standing.level > Level::High {
            pause = PRESSED;
        } else if is_at_rest {
            pause = REST;
        }
        Ok(pause)
    }

    /// A look round has failed. Returns how long to rest.
    pub(super) fn note_failure(&mut self) -> Duration {
        self.handle.update(|statistics| statistics.failures += 1);
        CALM
    }

    fn count(&mut self, now: Instant, standing: &StandingOrders, report: &Report) {
        let totals = Totals {
            evicted_pages: report.evicted_pages,
            written_pages: self.guest.as_ref().map_or(0, |guest| guest.usage.written_pages),
            balloon_given_bytes: report.balloon_given_bytes,
        };
        let (looked, before) = self.counted.replace((now, totals)).unwrap_or((now, totals));
        self.handle.update(|statistics| {
            statistics.count(standing.level, now.duration_since(looked), before, totals, report.wants_growth);
            statistics.leads = self.leading.is_some();
            statistics.grant_bytes = standing.orders.grant_bytes;
            statistics.grow_to_bytes = standing.orders.grow_to_bytes;
            statistics.reclaim_to_bytes = standing.orders.reclaim_to_bytes;
            statistics.charge_bytes = report.charge_bytes;
            statistics.own_bytes = report.own_bytes;
            statistics.active = self.guest.as_ref().and_then(|guest| guest.estimate);
            statistics.sample_periods = self.tracker.periods();
            statistics.balloon = report.balloon;
            statistics.manual_balloon_bytes = self.handle.manual_balloon_bytes();
            statistics.balloon_given_bytes = report.balloon_given_bytes;
            statistics.balloon_cost_bytes = self.watch.cost_bytes();
        });
    }

    /// Whether this member decides for all: it does if nobody else did.
    fn leads(&mut self) -> bool {
        if self.leading.is_some() {
            return true;
        }
        let Some(leadership) = self.membership.try_lead() else { return false };
        match self.membership.members() {
            Ok(view) => {
                self.leading = Some((leadership, Leader::new(&view)));
                true
            }
            Err(_) => false,
        }
    }

    /// Decides for all.
    fn lead(&mut self, view: &PoolView) -> Result<(), ManagerError> {
        let circumstances = Circumstances { now_ns: now_ns(), host_available_bytes: self.host_available_bytes };
        if let Some((leadership, leader)) = &mut self.leading
            && let Some(round) = leader.round(view, &circumstances)
        {
            leadership.publish(&round)?;
            self.handle.update(|statistics| statistics.rounds_led += 1);
        }
        Ok(())
    }

    /// Does what the leader wants.
    fn follow(&mut self, standing: &StandingOrders, report: &Report, now: Instant) -> Result<(), ManagerError> {
        let orders = standing.orders;
        if standing.is_stale(now_ns(), ORDERS_PERIOD) {
            // The leader has stopped. Nobody knows what others take: this VM does not grow, and changes pages with itself. What
            // it had at first counts: it has less while it changes pages, and would lose them all if that counted again.
            self.handle.update(|statistics| statistics.stale_orders += 1);
            let kept_bytes = *self.kept_bytes.get_or_insert(report.charge_bytes.min(self.in_force.1));
            self.in_force.1 = kept_bytes;
            return self.keep_to(Limits {
                grow_to_bytes: Some(kept_bytes),
                unmerge_to_bytes: Some(0),
                reclaim_to_bytes: Some(kept_bytes),
                is_firm: true,
            });
        }
        self.kept_bytes = None;
        let is_at_grant = orders.grow_to_bytes >= orders.grant_bytes;
        let waited_lately = self.waited.is_some_and(|waited| now.duration_since(waited) < EXCHANGE);
        let exchange_bytes = (is_at_grant && waited_lately).then_some(orders.grow_to_bytes);
        let kept = self.keep_to(Limits {
            grow_to_bytes: Some(orders.grow_to_bytes),
            unmerge_to_bytes: Some(orders.unmerge_to_bytes),
            reclaim_to_bytes: orders.reclaim_to_bytes.or(exchange_bytes),
            is_firm: true,
        });
        // A guest that cannot be limited goes on as it was told before it had to be, and its pool reckons with that.
        self.cannot_limit = kept.is_err();
        if kept.is_ok() {
            self.in_force = (standing.time_ns, orders.grow_to_bytes);
        }
        if let Some(Guest { pager, .. }) = &self.guest {
            pager.set_pool_residence(orders.residence_ms.map(Duration::from_millis));
        }
        if let Some(Guest { balloon: Some(balloon), .. }) = &self.guest {
            let wanted_bytes = orders.balloon_target_bytes.min(self.balloon_most_bytes) / PAGE_SIZE * PAGE_SIZE;
            balloon.set_target_bytes(self.handle.manual_balloon_bytes().unwrap_or(wanted_bytes));
        }
        kept
    }

    /// Takes what is cold although nobody needs the room.
    fn take_cold(&mut self, report: &Report, now: Instant) -> Result<(), ManagerError> {
        let Some(Guest { pager, usage, estimate: Some(estimate), .. }) = &self.guest else { return Ok(()) };
        if self.config.reclaim != ReclaimMode::Proactive {
            return Ok(());
        }
        let working_set_bytes = estimate.active_bytes + report.own_bytes;
        match self.proactive.step(now, usage, Pressure::read, report.charge_bytes, working_set_bytes) {
            Some(ProactiveStep::Reclaim(bytes)) => self.cold.step(pager, bytes)?,
            Some(ProactiveStep::BackOff(_)) => self.cold.forget(),
            None => {}
        }
        Ok(())
    }

    /// Puts limits on what the whole process costs in force, and the member's own limit beside them.
    fn keep_to(&self, limits: Limits) -> Result<(), ManagerError> {
        let Some(Guest { pager, .. }) = &self.guest else { return Ok(()) };
        let identity = self.membership.identity();
        let own_limit = (identity.limit_bytes < identity.size_bytes).then_some(identity.limit_bytes);
        let reclaims = self.config.reclaim != ReclaimMode::Off;
        let of_guest = |bytes: Option<u64>| {
            bytes.filter(|&bytes| bytes < MAXIMUM_BYTES).map(|bytes| bytes.saturating_sub(self.own_bytes))
        };
        let least = |left: Option<u64>, right: Option<u64>| left.into_iter().chain(right).min();
        pager.set_limits(Limits {
            grow_to_bytes: least(of_guest(limits.grow_to_bytes), own_limit),
            unmerge_to_bytes: least(
                of_guest(limits.unmerge_to_bytes),
                own_limit.map(|bytes| unmerging_limit_bytes(bytes, reclaims)),
            ),
            reclaim_to_bytes: least(of_guest(limits.reclaim_to_bytes), own_limit).filter(|_| reclaims),
            is_firm: limits.is_firm,
        })?;
        Ok(())
    }
}
