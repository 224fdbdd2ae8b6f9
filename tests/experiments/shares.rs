//! Three guests with shares 1:2:4 that all use more than there is: memory is divided by shares.

use cistern_tests::course::{Quantity, Recorder};
use cistern_tests::paged::MIB;
use cistern_tests::pool::{Look, TestPool, in_mib, is_within};

use crate::report::Report;
use crate::scenario::Plan;
use crate::walks::working;

/// Shares of each guest, and of all.
const SHARES: [u64; 3] = [1, 2, 4];
const ALL_SHARES: u64 = 7;

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "ESX publishes the rule and no measurement of it: its column is the rule worked out; there is no tax, as one would take guests \
         that wait for pages for idle; what a guest costs has its process in it here",
    );
    // By hand in design.md: 384 MiB divided are 54.9, 109.7 and 219.4.
    let (size_mib, budget_mib) = if plan.is_short { (128, 168) } else { (256, 409) };
    let (size, budget, fill) = (plan.size(size_mib), plan.size(budget_mib), plan.size(size_mib - 16));
    let mut pool = TestPool::new(&[
        "--memory",
        &size,
        "--cpus",
        "1",
        "--budget",
        &budget,
        // How much a guest can touch in a period depends on the host: nobody is to be taken for idle.
        "--idle-tax",
        "0",
        "--swap",
        "SWAP",
    ]);
    let recorder = Recorder::start(pool.folder());
    for (seed, shares) in SHARES.into_iter().enumerate() {
        let program = format!("fill:{fill},text=100,seed={seed};{}", working(&format!("walk:{fill},secs=0.5")));
        pool.start(&program, &["--shares", &(1000 * shares).to_string()]);
    }
    let divided_bytes = budget_mib * plan.scale * MIB * 94 / 100;
    let is_part =
        |percent: u64, bytes: u64, shares: u64| is_within(percent, bytes, divided_bytes * shares / ALL_SHARES);
    let looks = pool.wait_until_steady("parts by shares", |looks| {
        let is_by_shares = |(look, shares): (&Look, u64)| {
            is_part(5, look.grant_bytes(), shares) && is_part(10, look.cost_bytes, shares)
        };
        looks.iter().zip(SHARES).all(is_by_shares)
    });
    for (look, shares) in looks.iter().zip(SHARES) {
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        report.row(
            format!("{shares} of {ALL_SHARES} shares: granted, costs, MiB"),
            format!("{:.1}", mib(divided_bytes * shares / ALL_SHARES)),
            format!("{:.1}, {:.1}", mib(look.grant_bytes()), mib(look.cost_bytes)),
        );
    }
    report.reached("memory is as shares are", in_mib(&looks));
    pool.vms.iter_mut().for_each(|vm| vm.tell());
    pool.vms.iter_mut().for_each(|vm| vm.wait_for_verifies(1));
    let granted: Quantity = ("granted", |member| member.grant_bytes.unwrap_or(0));
    report.drawn(recorder.finish().members("Shares 1:2:4", &[granted]).write_to(&plan.out, "shares.svg"));
    pool.stop();
    report
}
