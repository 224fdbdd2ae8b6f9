//! What a Linux guest gets done where memory is short, on each of the [ways](Way) to hold more guests than fit, beside what it gets
//! done where it is not.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use anyhow::{Error, Result, anyhow};
use cistern_tests::chart::Chart;
use cistern_tests::guest_usage::GuestUsage;
use cistern_tests::paged::MIB;

use crate::observer::{Course, Look};
use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;
use crate::way::{NotHere, Way};

/// Something measured.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Of what, and its unit.
    pub name: &'static str,
    /// How much.
    pub value: f64,
}

/// What came of a way.
pub struct Outcome {
    /// In the same order for every way.
    pub figures: Vec<Figure>,
    /// How much was compared with what it must be, in words, and how much was wrong.
    pub compared: (String, u64),
    /// What got done a second, over time.
    pub rate: Vec<(f64, f64)>,
    /// What it cost meanwhile.
    pub course: Course,
}

/// What is drawn of a course over time: a file's ending, a title, and the points.
type Drawing = (&'static str, &'static str, fn(&Course) -> Vec<(f64, f64)>);

const DRAWINGS: [Drawing; 7] = [
    ("memory", "MiB of the host that all guests take", |course| course.level(|look| mib(look.taken_bytes))),
    ("host-cpu", "CPU time of all guests' processes and of reclaim (percent of a CPU)", |course| {
        course.rate(|look: &Look| look.cpu.as_secs_f64() * 100.0)
    }),
    ("guest-cpu", "CPU time by the guest's own account (percent)", |course| {
        course.guest_rate(|usage: &GuestUsage| usage.busy_ms as f64 / 10.0)
    }),
    ("host-swap", "MiB a second to and from where the host swaps", |course| {
        course.rate(|look: &Look| mib(look.swapped_bytes))
    }),
    ("guest-memory", "MiB that are available to the guest by its own account", |course| {
        course.guest_level(|usage: &GuestUsage| usage.available_kib as f64 / 1024.0)
    }),
    ("guest-swapped", "MiB in the guest's own swap", |course| {
        course.guest_level(|usage: &GuestUsage| usage.in_swap_kib as f64 / 1024.0)
    }),
    ("guest-swap", "MiB a second to and from the guest's own swap", |course| {
        course.guest_rate(|usage: &GuestUsage| usage.swapped_kib as f64 / 1024.0)
    }),
];

/// Measures all ways, the short version at once because nothing is said there about speed, and compares.
pub fn compare(
    name: &str,
    rate: &str,
    budget_mib: u64,
    difference: &str,
    plan: &Plan,
    measure: impl Fn(Way) -> Result<Outcome> + Sync,
) -> Report {
    let mut report = Report::new(format!("{difference}; {}", plan.reach()));
    let ways = Way::compared(plan);
    let outcomes: Vec<(Way, Result<Outcome>)> = if plan.is_short {
        let measure = &measure;
        thread::scope(|scope| {
            let running: Vec<_> = ways.iter().map(|&way| (way, scope.spawn(move || measure(way)))).collect();
            let end =
                |outcome: thread::ScopedJoinHandle<'_, _>| outcome.join().unwrap_or_else(|panic| Err(said(&*panic)));
            running.into_iter().map(|(way, outcome)| (way, end(outcome))).collect()
        })
    } else {
        // A guest that is killed, say, is what came of its way; the others are told all the same.
        let caught =
            |way| panic::catch_unwind(AssertUnwindSafe(|| measure(way))).unwrap_or_else(|panic| Err(said(&*panic)));
        ways.into_iter().map(|way| (way, caught(way))).collect()
    };
    for (way, outcome) in &outcomes {
        tell(&mut report, *way, outcome, &outcomes);
    }
    let good = || outcomes.iter().filter_map(|(way, outcome)| Some((way, outcome.as_ref().ok()?)));
    if let Some((_, unlimited)) = good().find(|(way, _)| **way == Way::Unlimited) {
        let peak_bytes = unlimited.course.peak_bytes();
        report.claim(
            "guests want more than the budget",
            peak_bytes > budget_mib * plan.scale * MIB,
            format!("{:.0} MiB where they get it, budget {} MiB", mib(peak_bytes), budget_mib * plan.scale),
        );
    }
    if good().next().is_none() {
        return report;
    }
    let mut chart = Chart::new(rate);
    good().for_each(|(way, outcome)| chart.line(&way.to_string(), outcome.rate.clone()));
    report.drawn(chart.write_to(&plan.out, &format!("{name}-rate.svg")));
    for (ending, title, points) in DRAWINGS {
        let mut chart = Chart::new(title);
        for (way, outcome) in good() {
            chart.line(&way.to_string(), points(&outcome.course));
        }
        report.drawn(chart.write_to(&plan.out, &format!("{name}-{ending}.svg")));
    }
    report
}

/// A panic as an error.
fn said(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    anyhow!("{}", text.unwrap_or("it has panicked"))
}

/// Rows and claims of a way: its figures, and beside them how many times as much they are as where memory is not short.
fn tell(report: &mut Report, way: Way, outcome: &Result<Outcome>, all: &[(Way, Result<Outcome>)]) {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) if error.downcast_ref::<NotHere>().is_some() => {
            return report.row(way.to_string(), NOT_PUBLISHED, format!("{error:#}"));
        }
        Err(error) => return report.claim(format!("{way} can be measured"), false, format!("{error:#}")),
    };
    let reference = all.iter().find(|(way, _)| *way == Way::Unlimited).and_then(|(_, outcome)| outcome.as_ref().ok());
    for (at, figure) in outcome.figures.iter().enumerate() {
        let ratio = reference.filter(|_| way != Way::Unlimited).map_or_else(String::new, |reference| {
            format!(" ({:.2} times)", figure.value / reference.figures[at].value)
        });
        let decimals = if figure.value < 100.0 { 1 } else { 0 };
        report.row(format!("{way}: {}", figure.name), NOT_PUBLISHED, format!("{:.decimals$}{ratio}", figure.value));
    }
    report.row(format!("{way}: MiB taken at most"), NOT_PUBLISHED, format!("{:.0}", mib(outcome.course.peak_bytes())));
    let (compared, wrong) = &outcome.compared;
    report.claim(format!("{way}: all is as it was written"), *wrong == 0, format!("{wrong} wrong of {compared}"));
    report.claim(
        format!("{way}: the guest was looked at"),
        outcome.course.guest.len() > 1,
        format!("{} times", outcome.course.guest.len()),
    );
}

/// A rate by a clock that began so many seconds later.
pub fn later(points: Vec<(f64, f64)>, seconds: f64) -> Vec<(f64, f64)> {
    points.into_iter().map(|(at, value)| (at + seconds, value)).collect()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
