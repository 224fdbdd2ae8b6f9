//! Many small guests at once, each of which fills half of what it has, and what they take of the host by every account there is.

use std::process::Command;
use std::time::Duration;

use cistern_memory::PAGE_SIZE;
use cistern_tests::chart::Chart;
use cistern_tests::memory_group::MemoryGroup;
use cistern_tests::paged::{MIB, folder_on_disk};
use cistern_tests::process::binary;
use serde_json::Value;

use crate::density::Density;
use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;

const GUESTS: u64 = 100;
const GUESTS_SHORT: u64 = 8;
const MEMORY_MIB: u64 = 32;
const FILLED_MIB: u64 = 16;

/// Of what they fill, zero pages, which may have gone back to the host as if they had never been touched.
const ZERO_PERCENT: u64 = 15;

/// The pool's, which does not count what the kernel has for its guests.
const BUDGET_MIB: u64 = 920;
const BUDGET_MIB_SHORT: u64 = 80;

/// What all of it may come to.
const MOST_MIB: u64 = 1024;
const MOST_MIB_SHORT: u64 = 96;

/// Long enough for the last to fill its memory before the first is done.
const IDLE_S: u64 = 20;

const INTERVAL: Duration = Duration::from_millis(100);

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "nobody has published the like. Guests are probes that idle for 20 s when they have filled their memory; the memory controller \
         counts what the kernel has for them, too, and no files",
    );
    let (guests, budget_mib, most_mib) = match plan.is_short {
        true => (GUESTS_SHORT, BUDGET_MIB_SHORT, MOST_MIB_SHORT),
        false => (GUESTS, BUDGET_MIB, MOST_MIB),
    };
    let folder = folder_on_disk();
    let group = MemoryGroup::new("many-small");
    let mut command = group.as_ref().map_or_else(|| Command::new(binary()), |group| group.command(binary()));
    let filled = plan.size(FILLED_MIB);
    let program = format!("fill:{filled},zero={ZERO_PERCENT},dup=20,text=45,random=20,seed={{n}};idle:{IDLE_S};verify");
    command.args(["density", "--json", "--guests", &guests.to_string(), "--memory", &plan.size(MEMORY_MIB)]);
    command.args(["--budget", &plan.size(budget_mib), "--probe", &program, "--swap"]).arg(folder.path());
    let mut course = Vec::new();
    let found = Density::start(&mut command).and_then(|density| {
        density.watch(INTERVAL, |seconds| {
            let charged = group.as_ref().and_then(MemoryGroup::charged);
            course.extend(charged.map(|charged| (seconds, charged.bytes())));
        })
    });
    let found = found.unwrap_or_else(|error| panic!("density failed: {error:#}"));
    tell(&mut report, plan, guests, most_mib, &found, course.iter().map(|(_, bytes)| *bytes).max());

    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let moments = found["moments"].as_array().into_iter().flatten();
    let moment = |moment: &Value| Some((moment["seconds"].as_f64()?, mib(moment["host_bytes"].as_u64()?)));
    let mut chart = Chart::new("MiB of the host that all guests take together");
    chart.line("proportional set size", moments.filter_map(moment).collect());
    if !course.is_empty() {
        chart.line("memory controller", course.into_iter().map(|(at, bytes)| (at, mib(bytes))).collect());
    }
    report.drawn(chart.write_to(&plan.out, "many-small.svg"));
    report
}

fn tell(report: &mut Report, plan: &Plan, guests: u64, most_mib: u64, found: &Value, charged_bytes: Option<u64>) {
    let number = |name: &str| found[name].as_u64().unwrap_or_default();
    let in_mib = |bytes: u64| format!("{} MiB", bytes / MIB);
    let [taken_bytes, resident_bytes] = ["peak_host_bytes", "peak_resident_bytes"].map(number);
    report.row("proportional set size at most", NOT_PUBLISHED, in_mib(taken_bytes));
    report.row("resident at most", NOT_PUBLISHED, in_mib(resident_bytes));
    let charged = charged_bytes.map_or_else(|| "not told here".to_owned(), in_mib);
    report.row("memory controller at most, all of the kernel's own included", NOT_PUBLISHED, charged);
    let filled_bytes = guests * FILLED_MIB * plan.scale * MIB;
    report.row("what they filled", NOT_PUBLISHED, in_mib(filled_bytes));
    report.claim(
        format!("{guests} guests of {} end well", plan.size(MEMORY_MIB)),
        number("guests_ok") == guests,
        format!("{} of them", number("guests_ok")),
    );
    let held_bytes = held_at_once_bytes(found, guests);
    report.claim(
        "all are there at once, and hold what they fill, zero pages apart",
        held_bytes >= filled_bytes / 100 * (100 - ZERO_PERCENT),
        format!("{} of {}", in_mib(held_bytes), in_mib(filled_bytes)),
    );
    let all_pages = filled_bytes / PAGE_SIZE;
    report.claim(
        "each has all its pages",
        number("bad_pages") == 0 && number("verified_pages") == all_pages,
        format!("{} bad of {}", number("bad_pages"), number("verified_pages")),
    );
    let most_bytes = taken_bytes.max(resident_bytes).max(charged_bytes.unwrap_or_default());
    report.claim(
        format!("by every account they are within {} of the host", plan.size(most_mib)),
        most_bytes <= most_mib * plan.scale * MIB,
        in_mib(most_bytes),
    );
}

/// The most that guests held while so many were there, wherever it was.
fn held_at_once_bytes(found: &Value, guests: u64) -> u64 {
    let of_all = found["moments"].as_array().into_iter().flatten().filter(|moment| moment["guests"] == guests);
    let held = |moment: &Value| {
        let places = ["resident", "shared", "zero", "compressed", "swapped"];
        places.map(|place| moment["bytes"][place].as_u64().unwrap_or_default()).iter().sum()
    };
    of_all.map(held).max().unwrap_or_default()
}
