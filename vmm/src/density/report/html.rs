//! The report as a page that needs nothing else.

use std::fmt::Write;

use super::chart::{Chart, Scale, escape};
use super::{Moment, Report, table};
use crate::stats::latency::time;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;\
background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}pre{background:#f5f5f2;padding:1rem;\
overflow-x:auto;font-size:13px}svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg .title{font-size:14px;\
font-weight:600}svg .grid{stroke:#000;stroke-opacity:.12}table{border-collapse:collapse}td,th{padding:.2rem .8rem;\
text-align:right;border-bottom:1px solid #ddd}";

const MIB: f64 = (1 << 20) as f64;

/// The page.
pub fn render(report: &Report) -> String {
    let verdict = &report.verdict;
    let title = format!(
        "{} guests of {} in {}",
        verdict.guests,
        super::mebibytes(report.memory_bytes),
        super::mebibytes(verdict.budget_bytes)
    );
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' \
         content='width=device-width'><title>{title}</title><style>{STYLE}</style></head><body>\n\
         <h1>cistern density: {title}</h1>\n"
    );
    // Writing to a string does not fail.
    let host = &report.host;
    let _ = writeln!(
        page,
        "<p>{}, {} CPUs, {}, Linux {}, load {}. Flags: <code>{}</code></p>",
        host.date,
        host.cpus,
        super::mebibytes(host.memory_bytes),
        escape(&host.kernel),
        escape(&host.load),
        escape(&report.flags.join(" "))
    );
    for kind in &verdict.kinds {
        let _ = writeln!(page, "<p>{} guests: <code>{}</code></p>", kind.guests, escape(&kind.program));
    }
    let _ = writeln!(page, "<pre>{}</pre>", escape(&table::render(report)));
    page += "<h2>Memory</h2>\n";
    page += &memory(report).svg(|value| format!("{value:.0} MiB"));
    page += "<h2>Goodput and latency</h2>\n";
    page += &goodput(report).svg(|value| format!("{value:.0} %"));
    page += &latency(report).svg(|value| time(value as u64));
    page + "</body></html>\n"
}

/// Guest memory by where it is, over time, and what it takes of the host.
fn memory(report: &Report) -> Chart {
    let mut chart = Chart::new("Guest memory by where it is, and host memory", "seconds", Scale::Linear);
    let points = |bytes: fn(&Moment) -> u64| {
        report.moments.iter().map(|moment| (moment.seconds, bytes(moment) as f64 / MIB)).collect::<Vec<_>>()
    };
    chart.area("in guest memory", "#1f77b4", points(|moment| moment.bytes.resident));
    chart.area("shared", "#17becf", points(|moment| moment.bytes.shared));
    chart.area("zero", "#bcbd22", points(|moment| moment.bytes.zero));
    chart.area("compressed", "#2ca02c", points(|moment| moment.bytes.compressed));
    chart.area("swapped", "#8c564b", points(|moment| moment.bytes.swapped));
    chart.area("ballooned", "#9467bd", points(|moment| moment.bytes.ballooned));
    chart.line("host memory (PSS)", "#d62728", points(|moment| moment.host_bytes));
    let resident = report.pool.iter().map(|moment| (moment.seconds, moment.resident_bytes as f64 / MIB)).collect();
    chart.line("resident (RSS)", "#ff7f0e", resident);
    let end = report.moments.last().map_or(1.0, |moment| moment.seconds);
    let budget = report.verdict.budget_bytes as f64 / MIB;
    chart.line("budget", "#000000", vec![(0.0, budget), (end, budget)]);
    chart
}

/// Points over the number of guests, from few to many, beginning with one that is alone.
fn over_guests(report: &Report, alone: Option<f64>, value: impl Fn(&super::Trial) -> Option<f64>) -> Vec<(f64, f64)> {
    let mut points: Vec<_> =
        report.trials.iter().filter_map(|trial| Some((trial.guests as f64, value(trial)?))).collect();
    // A guest that is alone is the measure of all others.
    if !points.is_empty() && points.iter().all(|point| point.0 > 1.0) {
        points.extend(alone.map(|value| (1.0, value)));
    }
    points.sort_by(|one, other| one.0.total_cmp(&other.0));
    points
}

fn goodput(report: &Report) -> Chart {
    let mut chart = Chart::new("Goodput, in percent of a guest alone", "guests", Scale::Linear);
    let points =
        |value: fn(&super::Goodput) -> f64| over_guests(report, Some(100.0), |trial| trial.goodput.as_ref().map(value));
    chart.line("median", "#1f77b4", points(|goodput| goodput.median_percent));
    chart.line("worst", "#d62728", points(|goodput| goodput.worst_percent));
    let most = report.trials.iter().map(|trial| trial.guests).max().unwrap_or(1) as f64;
    let required = report.required_goodput_percent;
    chart.line("required", "#000000", vec![(0.0, required), (most, required)]);
    chart
}

fn latency(report: &Report) -> Chart {
    let mut chart = Chart::new("Time of a touch", "guests", Scale::Logarithmic);
    let mut line = |name: &str, colour, of: fn(&super::Latency) -> u64| {
        // Of several kinds the slowest.
        let alone = report.verdict.kinds.iter().filter_map(|kind| Some(of(&kind.alone?.latency_ns?) as f64));
        let alone = alone.reduce(f64::max);
        let points = over_guests(report, alone, |trial| trial.latency_ns.as_ref().map(|latency| of(latency) as f64));
        chart.line(name, colour, points);
    };
    line("half within", "#1f77b4", |latency| latency.p50);
    line("99 % within", "#d62728", |latency| latency.p99);
    chart
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let page = render(&report());
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        assert_eq!(page.matches("<svg").count(), 3);
        for word in ["http:", "https:", "<script", "<link", "@import", "url("] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("fill:16M;&lt;&amp;&gt;"), "programs are text");
        assert!(page.contains("<polygon") && page.contains("budget") && page.contains("--swap=/var/tmp"));
    }

    #[test]
    fn points_go_from_few_guests_to_many() {
        let mut report = report();
        report.trials.reverse();
        let worst = |trial: &super::super::Trial| trial.goodput.map(|goodput| goodput.worst_percent);
        assert_eq!(over_guests(&report, Some(100.0), worst), [(1.0, 100.0), (2.0, 96.1), (4.0, 96.1)]);
        report.trials[0].guests = 1;
        assert_eq!(over_guests(&report, Some(100.0), worst), [(1.0, 96.1), (2.0, 96.1)]);
    }
}
