//! The division: known answers, and what must hold for any members.

use proptest::prelude::*;

use super::MIB;
use crate::policy::allocator::{Claim, IdleTax, grants, rho};

fn tax(percent: u8) -> IdleTax {
    percent.try_into().unwrap()
}

/// A claim of the given shares and MiB, nothing promised.
fn claim(shares: u64, active_mib: f64, most_mib: u64) -> Claim {
    Claim { shares, reservation_bytes: 0, most_bytes: most_mib * MIB, active_bytes: (active_mib * MIB as f64) as u64 }
}

/// Grants in MiB, rounded to a tenth.
fn grants_mib(distributable_mib: u64, percent: u8, claims: &[Claim]) -> Vec<f64> {
    let grants = grants(distributable_mib * MIB, tax(percent), claims);
    grants.iter().map(|&bytes| (bytes as f64 / MIB as f64 * 10.0).round() / 10.0).collect()
}

#[test]
fn active_memory_is_divided_by_shares_at_any_tax() {
    let claims = [claim(1, 256.0, 256), claim(2, 256.0, 256), claim(4, 256.0, 256)];
    for percent in [0, 25, 75, 99] {
        assert_eq!(grants_mib(384, percent, &claims), [54.9, 109.7, 219.4]);
    }
}

#[test]
fn idle_memory_is_taxed() {
    let claims = [claim(1, 20.0, 256), claim(1, 240.0, 256)];
    assert_eq!(grants_mib(358, 75, &claims), [102.0, 256.0], "ESX figure 7");
    assert_eq!(grants_mib(358, 0, &claims), [179.0, 179.0], "without a tax shares alone divide");
    let small = [claim(1, 1.5, 4), claim(1, 3.5, 4)];
    assert_eq!(grants_mib(4, 0, &small), [2.0, 2.0]);
    assert_eq!(grants_mib(4, 75, &small), [1.7, 2.3]);
    // The check of a running pool: both have touched 240.
    assert_eq!(grants_mib(360, 75, &[claim(1, 0.0, 240), claim(1, 240.0, 240)]), [120.0, 240.0]);
    assert_eq!(grants_mib(360, 0, &[claim(1, 0.0, 240), claim(1, 240.0, 240)]), [180.0, 180.0]);
}

/// The tax makes idle memory dear, not free to take: half of the idle guest's 64 would have let the other have all of its
/// 240, which fit beside the idle one's 20.
#[test]
fn some_idle_memory_outbids_active_memory() {
    assert_eq!(grants_mib(260, 75, &[claim(1, 20.0, 256), claim(1, 240.0, 256)]), [64.0, 196.0]);
    assert_eq!(grants_mib(260, 99, &[claim(1, 20.0, 256), claim(1, 240.0, 256)]), [22.2, 237.8]);
    assert_eq!(grants_mib(260, 75, &[claim(8, 20.0, 256), claim(1, 240.0, 256)]), [178.3, 81.7]);
}

#[test]
fn rho_is_shares_for_each_mib() {
    let half = claim(40_960, 2048.0, 4096);
    assert_eq!(rho(&claim(40_960, 4096.0, 4096), 4096 * MIB, tax(75)), 10.0);
    assert_eq!(rho(&half, 4096 * MIB, tax(75)), 4.0);
    assert_eq!(rho(&half, 4096 * MIB, tax(0)), 10.0);
    assert_eq!(rho(&half, 2048 * MIB, tax(75)), 20.0);
    assert_eq!(rho(&half, 0, tax(75)), f64::INFINITY);
    assert_eq!(rho(&claim(0, 1.0, 1), 0, tax(75)), 0.0);
}

#[test]
fn reservations_and_limits_are_kept() {
    let reserved = Claim { reservation_bytes: 200 * MIB, ..claim(1, 0.0, 256) };
    assert_eq!(grants_mib(300, 75, &[reserved, claim(1, 256.0, 256)]), [200.0, 100.0]);
    assert_eq!(grants_mib(300, 75, &[claim(1, 256.0, 80), claim(1, 0.0, 256)]), [80.0, 220.0]);
    let untouched = Claim { most_bytes: 50 * MIB, ..reserved };
    assert_eq!(grants_mib(300, 75, &[untouched, claim(1, 0.0, 256)]), [50.0, 250.0], "what is untouched is not held");
    assert_eq!(grants_mib(300, 75, &[reserved, reserved]), [200.0, 200.0], "a promise is kept beyond the budget");
}

#[test]
fn members_without_shares_have_what_nobody_else_can_use() {
    assert_eq!(grants_mib(100, 75, &[claim(0, 80.0, 80), claim(1, 1.0, 90)]), [10.0, 90.0]);
    assert_eq!(grants_mib(100, 75, &[claim(0, 80.0, 80), claim(0, 80.0, 30)]), [70.0, 30.0]);
    let reserved = Claim { reservation_bytes: 40 * MIB, ..claim(0, 80.0, 80) };
    assert_eq!(grants_mib(100, 75, &[reserved, claim(1, 1.0, 90)]), [40.0, 60.0]);
    assert!(grants(100, tax(75), &[]).is_empty());
    assert_eq!(grants_mib(100, 75, &[claim(0, 0.0, 0), claim(3, 9.0, 0)]), [0.0, 0.0]);
}

#[test]
fn an_idle_tax_is_a_percentage_below_100() {
    assert_eq!("75".parse(), Ok(IdleTax::default()));
    assert_eq!(tax(0).to_string(), "0");
    for text in ["100", "-1", "7.5", "75%", ""] {
        let error = text.parse::<IdleTax>().unwrap_err();
        assert_eq!(error.to_string(), format!("idle tax '{text}': not a whole number of percent from 0 to 99"));
    }
    assert_eq!(serde_json::to_string(&IdleTax::default()).unwrap(), "75");
    assert!(serde_json::from_str::<IdleTax>("100").is_err());
}

/// Sizes from nothing over the usual to the largest there are.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..5000u64, (0..1u64 << 16).prop_map(|mib| mib * MIB), any::<u64>()]
}

fn claims<S: Strategy<Value = u64>>(sizes: fn() -> S) -> impl Strategy<Value = Vec<Claim>> {
    let shares = prop_oneof![Just(0), 1..1000u64, any::<u64>()];
    let members =
        (shares, sizes(), sizes(), sizes()).prop_map(|(shares, reservation_bytes, most_bytes, active_bytes)| Claim {
            shares,
            reservation_bytes: reservation_bytes / 4,
            most_bytes,
            active_bytes,
        });
    proptest::collection::vec(members, 0..12)
}

/// Members as a pool has them: up to 64 GiB and ordinary shares.
fn usual_claims() -> impl Strategy<Value = Vec<Claim>> {
    claims(|| (0..1u64 << 16).prop_map(|mib| mib * MIB)).prop_map(|mut claims| {
        claims.iter_mut().for_each(|claim| claim.shares = claim.shares % 1000 + 1);
        claims
    })
}

fn sum(bytes: impl Iterator<Item = u64>) -> u128 {
    bytes.map(u128::from).sum()
}

proptest! {
    #[test]
    fn all_there_is_is_divided_and_promises_are_kept(budget_bytes in size(), percent in 0..100u8, claims in claims(size)) {
        let grants = grants(budget_bytes, tax(percent), &claims);
        for (claim, &grant) in claims.iter().zip(&grants) {
            prop_assert!(grant <= claim.most_bytes);
            prop_assert!(grant >= claim.reservation_bytes.min(claim.most_bytes));
        }
        let promised = sum(claims.iter().map(|claim| claim.reservation_bytes.min(claim.most_bytes)));
        let useful = sum(claims.iter().map(|claim| claim.most_bytes));
        prop_assert_eq!(sum(grants.iter().copied()), useful.min(promised.max(u128::from(budget_bytes))));
    }

    /// Nobody who could give pays less than somebody who could take.
    #[test]
    fn the_lowest_rho_has_given_first(budget_mib in 0..1u64 << 18, percent in 0..100u8, claims in usual_claims()) {
        let grants = grants(budget_mib * MIB, tax(percent), &claims);
        let price = |index: usize| rho(&claims[index], grants[index], tax(percent));
        let slack_bytes = 64;
        for giver in (0..claims.len()).filter(|&i| grants[i] > claims[i].reservation_bytes.min(claims[i].most_bytes) + slack_bytes) {
            for taker in (0..claims.len()).filter(|&i| grants[i] + slack_bytes < claims[i].most_bytes) {
                prop_assert!(
                    price(giver) >= price(taker) * (1.0 - 1e-4),
                    "{giver} pays {} and holds {}, {taker} {} and {}", price(giver), grants[giver], price(taker), grants[taker]
                );
            }
        }
    }

    #[test]
    fn more_shares_are_never_less_memory(
        budget_mib in 0..1u64 << 18, percent in 0..100u8, claims in usual_claims(), chosen: proptest::sample::Index, more in 1..1000u64,
    ) {
        prop_assume!(!claims.is_empty());
        let chosen = chosen.index(claims.len());
        let before = grants(budget_mib * MIB, tax(percent), &claims);
        let mut richer = claims.clone();
        richer[chosen].shares += more;
        let after = grants(budget_mib * MIB, tax(percent), &richer);
        prop_assert!(after[chosen] + 64 >= before[chosen], "{} after {}", after[chosen], before[chosen]);
    }

    /// A guest that has come to hold its grant and touches nothing more is granted the same again.
    #[test]
    fn a_division_that_was_reached_stays(budget_mib in 0..1u64 << 18, percent in 0..100u8, claims in usual_claims()) {
        let once = grants(budget_mib * MIB, tax(percent), &claims);
        prop_assert_eq!(&grants(budget_mib * MIB, tax(percent), &claims), &once);
        let reached: Vec<Claim> =
            claims.iter().zip(&once).map(|(claim, &grant)| Claim { most_bytes: grant, ..*claim }).collect();
        let promised = sum(claims.iter().map(|claim| claim.reservation_bytes.min(claim.most_bytes)));
        if promised <= u128::from(budget_mib * MIB) {
            prop_assert_eq!(grants(budget_mib * MIB, tax(percent), &reached), once);
        }
    }
}
