//! Two guests with equal shares, one of which idles: what each has without an idle memory tax, and with one of 75 %.

use cistern_tests::course::{Quantity, Recorder};
use cistern_tests::paged::MIB;
use cistern_tests::pool::{Look, TestPool, in_mib, is_within};

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;
use crate::walks::{Rates, working};

/// Whoever works, and whoever idles.
const WORKS: usize = 0;
const IDLES: usize = 1;

/// Of ESX: what is divided, and what the two have of it by tax, in MiB; the second by its closed form.
const ESX_MIB: [(u8, &str); 2] = [(0, "179/179"), (75, "256/102")];
const ESX_FASTER: &str = "> 30 %";

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "the guests are probes: one walks at random through all it has filled, the other does nothing at all. What is not resident is \
         compressed here: a touch that has to wait for it takes as long as hundreds of others, so speed depends far more on memory \
         than that of ESX's guest did",
    );
    let rates = ESX_MIB.map(|(tax_percent, published)| divide(plan, tax_percent, published, &mut report));
    let faster_percent = (rates[1] / rates[0] - 1.0) * 100.0;
    report.row("tax 75 % against 0: the one at work is faster by", ESX_FASTER, format!("{faster_percent:.0} %"));
    report
}

/// Runs both until memory is divided; touches a second of the one at work from then on.
fn divide(plan: &Plan, tax_percent: u8, published: &str, report: &mut Report) -> f64 {
    // Less the first watermark, 383 MiB are 360: ESX divided 358 between two of 256.
    let (size_mib, budget_mib) = if plan.is_short { (128, 191) } else { (256, 383) };
    let fill = plan.size(size_mib - 16);
    let (size, budget, tax) = (plan.size(size_mib), plan.size(budget_mib), tax_percent.to_string());
    let mut pool = TestPool::new(&[
        "--memory",
        &size,
        "--cpus",
        "1",
        "--budget",
        &budget,
        "--idle-tax",
        &tax,
        "--sample-period",
        "1s",
        "--swap",
        "SWAP",
    ]);
    let recorder = Recorder::start(pool.folder());
    pool.start(&format!("fill:{fill},text=100,seed=1;{}", working(&format!("walk:{fill},secs=0.5"))), &[]);
    pool.start(&format!("fill:{fill},text=100,seed=2;{}", working("idle:0.5")), &[]);
    let half_bytes = budget_mib * plan.scale * MIB * 94 / 100 / 2;
    let looks = pool.wait_until_steady("division", |looks| {
        let is_divided = if tax_percent == 0 {
            looks.iter().all(|look| is_within(7, look.cost_bytes, half_bytes))
        } else {
            2 * looks[WORKS].cost_bytes > 3 * looks[IDLES].cost_bytes
        };
        is_divided && looks.iter().all(|look| look.is_settled(12))
    });
    let rate = Rates::of(&mut pool.vms[WORKS].running, if plan.is_short { 4 } else { 40 }).median;
    report.row(format!("tax {tax_percent} %: works/idles, MiB"), published, costs(&looks));
    report.row(
        format!("tax {tax_percent} %: touches a second of the one at work"),
        NOT_PUBLISHED,
        format!("{rate:.0}"),
    );
    let what = if tax_percent == 0 { "both have the same" } else { "who works has half as much again, or more" };
    report.reached(format!("tax {tax_percent} %: {what}"), in_mib(&looks));
    pool.vms.iter_mut().for_each(|vm| vm.tell());
    pool.vms.iter_mut().for_each(|vm| vm.wait_for_verifies(1));
    let works_with: Quantity = ("works with", |member| member.report.active_bytes);
    let granted: Quantity = ("granted", |member| member.grant_bytes.unwrap_or(0));
    let chart = recorder.finish().members(&format!("Idle tax {tax_percent} %"), &[works_with, granted]);
    report.drawn(chart.write_to(&plan.out, &format!("idle-tax-{tax_percent}.svg")));
    pool.stop();
    rate
}

fn costs(looks: &[Look]) -> String {
    looks.iter().map(|look| (look.cost_bytes / MIB).to_string()).collect::<Vec<_>>().join("/")
}
