//! How a pool's memory is divided: by shares, with a tax on idle memory (Waldspurger, OSDI 2002, section 5).
//!
//! A member with `S` shares that holds `P`, of which it uses the active part `A`, pays
//! `rho = S / (P (f + k (1 - f)))` with `f = min(1, A / P)` and `k = 1 / (1 - tax)`; the lowest rho gives first. Where
//! nobody can give to another any more, all have the same `1 / rho = lambda`. Solved for what is held, that is
//! `P = lambda S` up to the active memory and `tax A + (1 - tax) lambda S` beyond it, clamped to what the member is
//! promised and can use. All of it together grows with lambda in straight pieces, so the lambda at which it is what
//! there is to divide is found exactly between two corners.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What one member brings to the division.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its weight. A member without shares is given what nobody else can use.
    pub shares: u64,
    /// What it is promised. Of it, the grant holds only what the member can use.
    pub reservation_bytes: u64,
    /// The most it can use: the lower of its limit and what its guest has touched. What its balloon or reclaim took from
    /// the guest counts as touched, else it could never come back.
    pub most_bytes: u64,
    /// What its guest has used lately. More than it holds or can use is no harm.
    pub active_bytes: u64,
}

/// How much dearer idle memory is than active memory, in percent: at 0 they cost the same, and shares alone divide; at
/// 75, idle memory costs four times as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct IdleTax {
    percent: u8,
}

/// Why a value is no idle tax.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("idle tax '{text}': not a whole number of percent from 0 to 99")]
pub struct IdleTaxError {
    text: String,
}

impl IdleTax {
    /// A tax; more than 99 percent is 99.
    pub fn from_percent(percent: u8) -> Self {
        Self { percent: percent.min(99) }
    }

    /// The tax in percent.
    pub fn percent(self) -> u8 {
        self.percent
    }

    /// What is left of idle memory after the tax, `1 - tax`: more than 0.
    fn untaxed(self) -> f64 {
        1.0 - f64::from(self.percent) / 100.0
    }
}

impl Default for IdleTax {
    fn default() -> Self {
        Self { percent: 75 }
    }
}

impl TryFrom<u8> for IdleTax {
    type Error = IdleTaxError;

    fn try_from(percent: u8) -> Result<Self, IdleTaxError> {
        if percent < 100 { Ok(Self { percent }) } else { Err(IdleTaxError { text: percent.to_string() }) }
    }
}

impl From<IdleTax> for u8 {
    fn from(tax: IdleTax) -> Self {
        tax.percent
    }
}

impl FromStr for IdleTax {
    type Err = IdleTaxError;

    fn from_str(text: &str) -> Result<Self, IdleTaxError> {
        let percent = text.parse::<u8>().map_err(|_| IdleTaxError { text: text.into() })?;
        Self::try_from(percent)
    }
}

impl fmt::Display for IdleTax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.percent.fmt(f)
    }
}

/// What holding so much costs: active memory once, idle memory more.
fn price(active_bytes: f64, held_bytes: f64, untaxed: f64) -> f64 {
    active_bytes.min(held_bytes) + (held_bytes - active_bytes).max(0.0) / untaxed
}

/// The price a member pays for what it holds, in shares for each MiB, idle ones counted with their tax. The member with
/// the lowest gives first. Infinite for one that has shares and holds nothing.
pub fn rho(claim: &Claim, held_bytes: u64, tax: IdleTax) -> f64 {
    const MIB: f64 = (1 << 20) as f64;
    if claim.shares == 0 {
        return 0.0;
    }
    claim.shares as f64 * MIB / price(claim.active_bytes as f64, held_bytes as f64, tax.untaxed())
}

/// What each member may hold, in the order of the claims. The sum is what there is to divide or what the members can
/// use, whichever is less; it is more than the former only where the reservations alone are.
pub fn grants(distributable_bytes: u64, tax: IdleTax, claims: &[Claim]) -> Vec<u64> {
    let mut grants: Vec<u64> = claims.iter().map(|claim| claim.reservation_bytes.min(claim.most_bytes)).collect();
    // First those with shares; those without divide evenly what is left.
    for with_shares in [true, false] {
        let filled: Vec<usize> = (0..claims.len()).filter(|&index| (claims[index].shares > 0) == with_shares).collect();
        let curves: Vec<Curve> = filled.iter().map(|&index| Curve::new(&claims[index], grants[index], tax)).collect();
        let rest = i128::from(distributable_bytes) - sum(&grants);
        let floors: i128 = filled.iter().map(|&index| i128::from(grants[index])).sum();
        if rest > 0 {
            for (&index, bytes) in filled.iter().zip(fill((rest + floors) as f64, &curves)) {
                grants[index] = (bytes as u64).clamp(grants[index], claims[index].most_bytes);
            }
        }
    }
    settle(distributable_bytes, claims, &mut grants);
    grants
}

fn sum(bytes: &[u64]) -> i128 {
    bytes.iter().map(|&bytes| i128::from(bytes)).sum()
}

/// What a member holds as lambda grows. In bytes.
struct Curve {
    shares: f64,
    floor: f64,
    ceiling: f64,
    active: f64,
    untaxed: f64,
}

impl Curve {
    fn new(claim: &Claim, floor_bytes: u64, tax: IdleTax) -> Self {
        Self {
            shares: claim.shares.max(1) as f64,
            floor: floor_bytes as f64,
            ceiling: claim.most_bytes as f64,
            active: claim.active_bytes as f64,
            untaxed: tax.untaxed(),
        }
    }

    fn at(&self, lambda: f64) -> f64 {
        let untaxed_bytes = lambda * self.shares;
        let idle = (untaxed_bytes - self.active).max(0.0);
        (untaxed_bytes.min(self.active) + self.untaxed * idle).clamp(self.floor, self.ceiling)
    }

    /// Where the slope changes.
    fn corners(&self) -> [f64; 3] {
        [self.floor, self.active, self.ceiling].map(|held| price(self.active, held, self.untaxed) / self.shares)
    }
}

/// What each holds at the lambda at which all of them hold `total` together, or all they can.
fn fill(total: f64, curves: &[Curve]) -> Vec<f64> {
    let at = |lambda: f64| curves.iter().map(move |curve| curve.at(lambda));
    let mut corners: Vec<f64> = curves.iter().flat_map(Curve::corners).collect();
    corners.sort_by(f64::total_cmp);
    let above = corners.partition_point(|&lambda| at(lambda).sum::<f64>() <= total);
    let low = if above == 0 { 0.0 } else { corners[above - 1] };
    let Some(&high) = corners.get(above) else { return at(low).collect() };
    let (held_low, held_high) = (at(low).sum::<f64>(), at(high).sum::<f64>());
    let part = ((total - held_low) / (held_high - held_low)).max(0.0);
    at(low).zip(at(high)).map(|(low, high)| low + (high - low) * part).collect()
}

/// Makes the sum exact: floating point leaves a few bytes over, and with sizes near 2^64 it may give a few too many.
fn settle(distributable_bytes: u64, claims: &[Claim], grants: &mut [u64]) {
    let mut rest = i128::from(distributable_bytes) - sum(grants);
    for (claim, grant) in claims.iter().zip(grants) {
        let floor_bytes = claim.reservation_bytes.min(claim.most_bytes);
        let room = rest.clamp(-i128::from(*grant - floor_bytes), i128::from(claim.most_bytes - *grant));
        *grant = (i128::from(*grant) + room) as u64;
        rest -= room;
    }
}
