//! What identical guests share, and what that saves, by how many there are.

use cistern_tests::chart::Chart;
use cistern_tests::figure4::{ESX, Kind, Point, measure};

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;

/// How many guests ESX's published figures are of.
const ESX_GUESTS: usize = 10;

/// What is shared of probes, at least, where there are two or more: of at most 67.
const ENOUGH_PERCENT: f64 = 62.0;

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "ESX ran Linux guests at work; ours are probes a fifth of whose memory is zero and 47 % equal, and, in the full version, Linux \
         guests with half of their load equal. Percent of what the guests had touched; sizes are fixed, --scale brings ten Linux guests",
    );
    let mut chart = Chart::over("Identical guests (percent of what they have touched)", "guests");
    let (counts, enough): (&[usize], _) =
        if plan.is_short { (&[2, 4], Some(ENOUGH_PERCENT)) } else { (&[1, 2, 5, 10], None) };
    let probes = measure(Kind::Probes, counts, enough, |point| row("probes", point, &mut report));
    draw("probes", &probes, &mut chart);
    report.claim(
        "the more guests, the more is reclaimed",
        probes.windows(2).all(|pair| pair[0].reclaimed_percent < pair[1].reclaimed_percent),
        probes.iter().map(|point| format!("{:.1} %", point.reclaimed_percent)).collect::<Vec<_>>().join(", "),
    );
    if !plan.is_short {
        // On few CPUs that interpret guest kernels, more of them do not come to work while others do.
        let counts = if plan.scale > 1 { counts } else { &counts[..3] };
        let linux = measure(Kind::Linux, counts, enough, |point| row("Linux", point, &mut report));
        draw("Linux", &linux, &mut chart);
    }
    if !counts_esx(&probes) {
        let published = format!("{} %, {} %", ESX[0], ESX[1]);
        report.row(format!("{ESX_GUESTS} guests: shared, reclaimed"), published, "in the full version");
    }
    report.drawn(chart.write_to(&plan.out, "tps-scaling.svg"));
    report
}

fn counts_esx(points: &[Point]) -> bool {
    points.iter().any(|point| point.guests == ESX_GUESTS)
}

fn row(kind: &str, point: &Point, report: &mut Report) {
    let published = match point.guests {
        ESX_GUESTS => format!("{} %, {} %", ESX[0], ESX[1]),
        _ => NOT_PUBLISHED.to_owned(),
    };
    let what = format!("{} {kind}: shared, reclaimed", point.guests);
    report.row(what, published, format!("{:.1} %, {:.1} %", point.shared_percent(), point.reclaimed_percent));
}

fn draw(kind: &str, points: &[Point], chart: &mut Chart) {
    let line = |of: fn(&Point) -> f64| points.iter().map(|point| (point.guests as f64, of(point))).collect();
    chart.line(&format!("{kind} shared"), line(Point::shared_percent));
    chart.line(&format!("{kind} reclaimed"), line(|point| point.reclaimed_percent));
}
