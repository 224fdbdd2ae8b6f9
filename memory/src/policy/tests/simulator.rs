//! A pool of synthetic guests that does what it is told, round by round.
//!
//! Within a round guests are at their worst: all of them first grow as far as they want and may, and only then do balloons
//! and pagers give.

use crate::policy::allocator::{Claim, IdleTax, grants};
use crate::policy::ladder::{BalloonHealth, Orders, Pool, Standing};
use crate::policy::watermark::{Level, Watermarks};
use crate::ram::PAGE_SIZE;

/// Numbers that look random (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..=most`.
    pub fn up_to(&mut self, most: u64) -> u64 {
        self.next() % (most + 1)
    }

    pub fn once_in(&mut self, times: u64) -> bool {
        self.up_to(times - 1) == 0
    }
}

/// What a guest's balloon is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balloon {
    /// It takes what is resident.
    Prompt,
    /// It takes what was never touched, which helps nobody, so it is counted as stalled once that is seen.
    Useless,
    /// There is none.
    Absent,
}

#[derive(Debug, Clone)]
pub struct Guest {
    pub shares: u64,
    pub reservation_bytes: u64,
    pub size_bytes: u64,
    /// What it has touched; it never touches less.
    pub touched_bytes: u64,
    pub active_bytes: u64,
    /// What it would hold if it could, as far as its balloon lets it.
    pub demand_bytes: u64,
    pub charge_bytes: u64,
    pub ballooned_bytes: u64,
    pub balloon: Balloon,
    pub has_backing: bool,
    pub waits: bool,
    /// Rounds in a row in which it waited and nothing came of it.
    pub starved_rounds: u32,
    /// What the pager has taken.
    pub evicted_bytes: u64,
}

impl Guest {
    /// One of ordinary shares that has touched and wants all of its memory, and holds so much.
    pub fn new(size_bytes: u64, charge_bytes: u64) -> Self {
        Self {
            shares: 10,
            reservation_bytes: 0,
            size_bytes,
            touched_bytes: size_bytes,
            active_bytes: size_bytes,
            demand_bytes: size_bytes,
            charge_bytes,
            ballooned_bytes: 0,
            balloon: Balloon::Prompt,
            has_backing: true,
            waits: false,
            starved_rounds: 0,
            evicted_bytes: 0,
        }
    }

    pub fn claim(&self) -> Claim {
        Claim {
            shares: self.shares,
            reservation_bytes: self.reservation_bytes,
            most_bytes: self.touched_bytes.min(self.size_bytes),
            active_bytes: self.active_bytes,
        }
    }

    fn standing(&self, grant_bytes: u64) -> Standing {
        Standing {
            grant_bytes,
            most_bytes: self.claim().most_bytes,
            charge_bytes: self.charge_bytes,
            committed_bytes: self.charge_bytes,
            reservation_bytes: self.reservation_bytes,
            size_bytes: self.size_bytes,
            ballooned_bytes: self.ballooned_bytes,
            balloon_most_bytes: self.size_bytes / 100 * 65,
            guest_free_bytes: None,
            balloon: match self.balloon {
                Balloon::Prompt => BalloonHealth::Working,
                Balloon::Useless if self.ballooned_bytes == 0 => BalloonHealth::Working,
                Balloon::Useless => BalloonHealth::Stalled,
                Balloon::Absent => BalloonHealth::Absent,
            },
            owed_bytes: 0,
            wants_growth: self.waits,
            has_backing: self.has_backing,
        }
    }

    fn grow(&mut self, orders: &Orders) {
        let wanted_bytes = self.demand_bytes.min(self.size_bytes - self.ballooned_bytes);
        let grown_bytes = wanted_bytes.min(orders.grow_to_bytes).max(self.charge_bytes);
        self.waits = wanted_bytes >= grown_bytes + PAGE_SIZE;
        let exchanges = orders.reclaim_to_bytes.is_some_and(|bytes| bytes <= orders.grow_to_bytes);
        let starves = self.waits && !exchanges && grown_bytes < self.charge_bytes + PAGE_SIZE;
        self.starved_rounds = if starves { self.starved_rounds + 1 } else { 0 };
        self.charge_bytes = grown_bytes;
        self.touched_bytes = self.touched_bytes.max(grown_bytes);
    }

    fn give(&mut self, orders: &Orders, inflate_bytes: u64, evict_bytes: u64) {
        if self.balloon != Balloon::Absent {
            let target_bytes = orders.balloon_target_bytes;
            let inflated_bytes = target_bytes.saturating_sub(self.ballooned_bytes).min(inflate_bytes);
            let kept_bytes = match self.balloon {
                Balloon::Prompt => self.charge_bytes.saturating_sub(inflated_bytes),
                _ => self.charge_bytes,
            };
            self.ballooned_bytes = target_bytes.min(self.ballooned_bytes + inflated_bytes);
            self.charge_bytes = kept_bytes.min(self.size_bytes - self.ballooned_bytes);
        }
        let over_bytes = self.charge_bytes.saturating_sub(orders.reclaim_to_bytes.unwrap_or(u64::MAX));
        let evicted_bytes = over_bytes.min(evict_bytes);
        self.charge_bytes -= evicted_bytes;
        self.evicted_bytes += evicted_bytes;
    }
}

#[derive(Debug, Clone)]
pub struct Simulator {
    pub budget_bytes: u64,
    pub reserve_bytes: u64,
    /// What a balloon takes in a round.
    pub inflate_bytes: u64,
    /// What a pager evicts in a round.
    pub evict_bytes: u64,
    pub tax: IdleTax,
    pub level: Level,
    pub guests: Vec<Guest>,
}

impl Simulator {
    pub fn new(budget_bytes: u64, guests: Vec<Guest>) -> Self {
        Self {
            budget_bytes,
            reserve_bytes: 0,
            inflate_bytes: u64::MAX,
            evict_bytes: budget_bytes / 8,
            tax: IdleTax::default(),
            level: Level::High,
            guests,
        }
    }

    pub fn held_bytes(&self) -> u64 {
        self.guests.iter().map(|guest| guest.charge_bytes).sum()
    }

    pub fn grants(&self) -> Vec<u64> {
        let distributable_bytes = self.budget_bytes - Watermarks::default().line_bytes(Level::High, self.budget_bytes);
        grants(distributable_bytes, self.tax, &self.guests.iter().map(Guest::claim).collect::<Vec<_>>())
    }

    /// Decides, lets the guests do their worst, and checks that the budget was kept meanwhile.
    pub fn round(&mut self) {
        let watermarks = Watermarks::default();
        let free_bytes = self.budget_bytes as i64 - self.held_bytes() as i64;
        self.level = watermarks.next(self.level, free_bytes, self.budget_bytes);
        let standings: Vec<Standing> =
            self.guests.iter().zip(self.grants()).map(|(guest, grant)| guest.standing(grant)).collect();
        let pool = Pool {
            level: self.level,
            budget_bytes: self.budget_bytes,
            free_bytes,
            reserve_bytes: self.reserve_bytes,
            watermarks,
        };
        let orders = pool.orders(&standings);
        let allowed_bytes = self.held_bytes().max(self.budget_bytes - self.reserve_bytes);
        self.guests.iter_mut().zip(&orders).for_each(|(guest, orders)| guest.grow(orders));
        assert!(self.held_bytes() <= allowed_bytes, "{} held of {allowed_bytes}", self.held_bytes());
        for (guest, orders) in self.guests.iter_mut().zip(&orders) {
            guest.give(orders, self.inflate_bytes, self.evict_bytes);
        }
    }

    /// The charge furthest from its grant, as a part of the budget.
    pub fn furthest(&self) -> f64 {
        let distances = self.guests.iter().zip(self.grants()).map(|(guest, grant)| guest.charge_bytes.abs_diff(grant));
        distances.max().unwrap_or(0) as f64 / self.budget_bytes as f64
    }
}
