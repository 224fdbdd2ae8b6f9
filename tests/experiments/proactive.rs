//! Cold pages leave a guest although nobody is short, slowly, and those in use stay: Google's far memory and Meta's TMO.

use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;
use cistern_tests::chart::Chart;
use cistern_tests::cycles::{returned_pages, stored_pages};
use cistern_tests::paged::{MIB, counter};
use cistern_tests::pool::TestPool;
use cistern_tests::process::LIMIT;

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;
use crate::walks::working;

/// What the guest has, fills and works with.
const SIZE_MIB: u64 = 128;
const FILL_MIB: u64 = 96;
const WORK_MIB: u64 = 16;

/// At most a hundredth of the guest is taken in a step of 6 s.
const STEP: Duration = Duration::from_secs(6);
const STEP_PARTS: u64 = 100;

/// How long the full version looks, and of how much the short one waits to see gone, in percent of the guest.
const WATCHED: Duration = Duration::from_secs(300);
const ENOUGH_PERCENT: u64 = 2;

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(250);

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "Google and Meta report fleets, days and real services; ours is one guest for minutes, five sixths of what it holds cold by \
         design, sampled every second",
    );
    let (size, fill, work) = (plan.size(SIZE_MIB), plan.size(FILL_MIB), plan.size(WORK_MIB));
    let mut pool =
        TestPool::new(&["--budget", "64G", "--reclaim", "proactive", "--sample-period", "1s", "--cpus", "1"]);
    let program = format!("fill:{fill},text=100,seed=1;{}", working(&format!("walk:{work},secs=1,write=30")));
    pool.start(&program, &["--memory", &size]);
    pool.vms[0].running.wait_for_phase("fill");
    let size_pages = SIZE_MIB * plan.scale * MIB / PAGE_SIZE;
    let (started, mut lines) = (Instant::now(), [const { Vec::new() }; 3]);
    let memory = loop {
        let memory = pool.vms[0].memory();
        let (passed, stored) = (started.elapsed(), stored_pages(&memory));
        let values = [stored, returned_pages(&memory), counter(&memory, "pages.resident")];
        for (line, pages) in lines.iter_mut().zip(values) {
            line.push((passed.as_secs_f64(), (pages * PAGE_SIZE) as f64 / MIB as f64));
        }
        let is_over = if plan.is_short { stored * 100 >= size_pages * ENOUGH_PERCENT } else { passed >= WATCHED };
        if is_over {
            break memory;
        }
        assert!(passed < LIMIT, "{stored} pages have left in {passed:?}: {memory}");
        thread::sleep(INTERVAL);
    };
    let (passed, stored, returned) = (started.elapsed(), stored_pages(&memory), returned_pages(&memory));
    let fill_pages = FILL_MIB * plan.scale * MIB / PAGE_SIZE;
    let held_bytes = counter(&memory, "compressed.held_bytes");
    let saved_bytes = (stored - returned.min(stored)) * PAGE_SIZE;
    let percent = |pages: u64| pages as f64 * 100.0 / fill_pages as f64;
    report.row(
        format!("cold pages away after {:.0} s, of what the guest holds", passed.as_secs_f64()),
        "32 % cold after 120 s (Google)",
        format!("{:.1} %", percent(stored)),
    );
    report.row(
        "memory saved, of what the guest holds",
        "20-32 % (TMO)",
        format!("{:.1} %", percent(saved_bytes.saturating_sub(held_bytes) / PAGE_SIZE)),
    );
    let work_pages = (WORK_MIB * plan.scale * MIB / PAGE_SIZE) as f64;
    let promotion_percent = returned as f64 * 100.0 / work_pages / (passed.as_secs_f64() / 60.0);
    report.row(
        "pages that come back, of the working set a minute",
        "<= 0.2 % (Google)",
        format!("{promotion_percent:.2} %"),
    );
    report.row("pages taken in a step of 6 s, of the guest", NOT_PUBLISHED, "at most 1 %");

    let steps = passed.as_secs().div_ceil(STEP.as_secs()) + 1;
    let most_pages = steps * size_pages / STEP_PARTS;
    report.claim(
        "they leave slowly",
        stored > 0 && stored <= most_pages,
        format!("{stored} of at most {most_pages} pages"),
    );
    report.claim("what is in use stays", returned * 20 <= stored, format!("{returned} pages came back"));
    let is_high = memory["pool"]["level"] == "high" && counter(&memory["pool"]["levels"][1], "entered") == 0;
    report.claim("nobody was short", is_high, &memory["pool"]["level"]);
    pool.vms[0].tell();
    pool.vms[0].wait_for_verifies(1);
    let after = returned_pages(&pool.vms[0].memory());
    report.claim("they had left indeed, and came back as they were", after > returned, format!("{after} pages"));

    let mut chart = Chart::new("Cold pages leave (MiB)");
    for (name, line) in ["left", "came back", "resident"].into_iter().zip(lines) {
        chart.line(name, line);
    }
    report.drawn(chart.write_to(&plan.out, "proactive.svg"));
    pool.stop();
    report
}
