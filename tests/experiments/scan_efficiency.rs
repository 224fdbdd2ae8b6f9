//! Memory saved for a second of CPU time, by ksmd after our advice and by ksmd alone, until nine tenths of all duplicates are
//! merged.

use cistern_tests::chart::Chart;
use cistern_tests::duplicates::{Layout, Spread};
use cistern_tests::ksm::Ksm;
use cistern_tests::merge_race::{self, PACES, Race};
use cistern_tests::process::binary;

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;

/// What UKSM came to, of what plain scanning did for the same CPU time (FAST 2018).
const UKSM: &str = "12.6 times (static), 5 (dynamic)";

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "UKSM is a scanner in the kernel and compares itself with KSM at its settings of then; ours is advice to the ksmd of today, \
         compared with it at its best pace of those tried. The bound is where the duplicates are: a tenth of the regions of 2 MiB \
         here, half of them, or a tenth of every region, where there is nothing to gain",
    );
    // Built before others have to wait.
    binary();
    let _ksm = Ksm::hold();
    let (spreads, fill_mib, paces, scan_cpu_percent): (&[Spread], _, &[(u32, u32)], _) = if plan.is_short {
        (&[Spread::Tenth], 128, &PACES[1..2], 5)
    } else {
        (&[Spread::Tenth, Spread::Half, Spread::Even], 512, &PACES, 1)
    };
    let mut chart = Chart::over("MiB saved for a second of CPU time", "(tenth, half, even)");
    let [mut ours, mut alone] = [Vec::new(), Vec::new()];
    for (at, &spread) in spreads.iter().enumerate() {
        let layout = Layout { spread, fill_mib: fill_mib * plan.scale };
        let race = merge_race::run(&merge_race::Plan { layout, paces, scan_cpu_percent, watches_rest: false });
        let Race { rates, advised_pages } = race;
        report.row(
            format!("{}: saved a CPU-second, of ksmd alone", spread.name()),
            if spread == Spread::Tenth { UKSM } else { NOT_PUBLISHED },
            format!("{:.1} times ({:.0} and {:.0} MiB)", rates[0] / rates[1], rates[0], rates[1]),
        );
        report.reached(
            format!("{}: nine tenths are merged, by both", spread.name()),
            format!("{} of {} pages were advised", advised_pages[0], advised_pages[1]),
        );
        if spread == Spread::Tenth {
            report.claim(
                "where duplicates are in a tenth of memory, less than half is advised",
                advised_pages[0] > 0 && 2 * advised_pages[0] < advised_pages[1],
                advised_pages[0],
            );
        }
        ours.push((at as f64, rates[0]));
        alone.push((at as f64, rates[1]));
    }
    chart.line("after our advice", ours);
    chart.line("ksmd alone", alone);
    report.drawn(chart.write_to(&plan.out, "scan-efficiency.svg"));
    report
}
