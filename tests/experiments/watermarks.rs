//! Three ramps into a pool that is full: one that balloons can meet, one that they cannot, and one that is faster than reclaim.
//! At which lines each level was entered, and what gave memory there.

use cistern_memory::ledger::{Level, PoolSettings, PoolView};
use cistern_memory::policy::watermark::Watermarks;
use cistern_tests::course::{Course, Recorder};
use cistern_tests::paged::MIB;
use cistern_tests::ramps::{self, Ramp};
use cistern_tests::storm::Storm;

use crate::report::Report;
use crate::scenario::Plan;

/// The levels, and the line of ESX's at which each begins, in percent of memory.
const ESX: [(Level, &str); 4] =
    [(Level::Soft, "6 % (high)"), (Level::Hard, "4 % (soft)"), (Level::Low, "2 % (hard)"), (Level::Stop, "1 % (low)")];

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "the lines are ESX's, under its names in brackets: there a state has its line, here a level begins below one; pages that are \
         taken are compressed before any is swapped; sizes are fixed, --scale is of no account",
    );
    let Ramp { storm, course, peak } = ramps::slow();
    let given = storm.at_level(Level::Soft, "balloon_given_bytes") + storm.at_level(Level::High, "balloon_given_bytes");
    report.claim("a slow ramp: soft, and balloons give", given > MIB, format!("{} MiB", given / MIB));
    levels(&storm, &course, "slow", plan, &mut report);
    peak.expect_within(storm.budget_bytes());
    storm.stop();

    let Ramp { storm, course, peak } = ramps::fast(&[]);
    let evicted: u64 = ESX[1..].iter().map(|&(level, _)| storm.at_level(level, "evicted_pages")).sum();
    report.claim("a fast ramp: hard, and the pager gives", evicted > 0, format!("{evicted} pages"));
    levels(&storm, &course, "fast", plan, &mut report);
    peak.expect_within(storm.budget_bytes());
    storm.stop();

    let mut storm = ramps::crowd();
    let (watch, recorder) = (storm.watch(), Recorder::start(&storm.pool()));
    storm.start(96, ramps::NEWCOMER, &ramps::SLOW_RECLAIM);
    storm.members[2].wait_for_verify();
    storm.members[0].running.wait_for_phase("free");
    let course = recorder.finish();
    let sum = |name: &str| [Level::Low, Level::Stop].iter().map(|&level| storm.at_level(level, name)).sum::<u64>();
    report.claim(
        "faster than reclaim: low, and growth waits",
        sum("waits_seen") > 0,
        format!("seen {} times", sum("waits_seen")),
    );
    levels(&storm, &course, "faster than reclaim", plan, &mut report);
    watch.finish().expect_within(storm.budget_bytes());
    storm.stop();
    report
}

/// What the levels came to in a ramp.
fn levels(storm: &Storm, course: &Course, ramp: &str, plan: &Plan, report: &mut Report) {
    let views: Vec<&PoolView> = course.moments.iter().map(|(_, view)| view).collect();
    for (level, published) in ESX {
        let entered = storm.at_level(level, "entered");
        if entered == 0 {
            continue;
        }
        let given = |name: &str| storm.at_level(level, name);
        report.row(
            format!("{ramp}: {level:?} entered, gave"),
            published,
            format!(
                "at {}, {} MiB by balloons, {} pages evicted",
                highest_entry(&views, level).map_or("no look".to_owned(), |percent| format!("{percent:.1} %")),
                given("balloon_given_bytes") / MIB,
                given("evicted_pages")
            ),
        );
    }
    claim_lines(ramp, course, report);
    let file = format!("watermarks-{}.svg", ramp.replace(' ', "-"));
    report.drawn(course.mechanisms(&format!("A ramp: {ramp}")).write_to(&plan.out, &file));
}

/// That levels are where the watermarks have them.
pub fn claim_lines(what: &str, course: &Course, report: &mut Report) {
    let above: Vec<(Level, f64)> = course.moments.iter().filter_map(|(_, view)| above_line(view)).collect();
    let found = format!("{} looks, {above:?}", course.moments.len());
    report.claim(format!("{what}: at no look is more free than the level ends at"), above.is_empty(), found);
}

/// The level and what is free, in percent of the budget, if that is enough for the next better level.
fn above_line(view: &PoolView) -> Option<(Level, f64)> {
    let PoolSettings { budget_bytes, watermarks_millipercent, .. } = view.settings;
    let (level, free_bytes) = (view.level?, view.free_bytes?);
    let better = Level::ALL.into_iter().rev().find(|&better| better < level)?;
    let lines = Watermarks::from_millipercent(watermarks_millipercent).expect("the pool goes by them");
    let ends_at_bytes = lines.entry_bytes(better, budget_bytes) as i64;
    (free_bytes >= ends_at_bytes).then_some((level, free_bytes as f64 * 100.0 / budget_bytes as f64))
}

/// The most that was free when a level was entered from a better one, in percent of the budget; `None` if nobody looked then.
fn highest_entry(views: &[&PoolView], level: Level) -> Option<f64> {
    let entry = |pair: &[&PoolView]| {
        let is_entry = pair[1].level == Some(level) && pair[0].level < Some(level);
        let free = pair[1].free_bytes.filter(|_| is_entry)? as f64;
        Some(free * 100.0 / pair[1].settings.budget_bytes as f64)
    };
    views.windows(2).filter_map(entry).reduce(f64::max)
}
