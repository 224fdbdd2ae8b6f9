//! Two guests of 256 MiB in 256 MiB, step by step: one takes memory, leaves it, the other comes and takes it, slowly at first,
//! then faster than a balloon gives, and in the end both want more than there is. Told twice: without an idle tax, and with one.

use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::ledger::{Level, MemberView};
use cistern_memory::policy::allocator::{IdleTax, rho};
use cistern_tests::course::{Quantity, Recorder};
use cistern_tests::paged::MIB;
use cistern_tests::pool::{Look, TestPool, claim, in_mib, is_within};
use cistern_tests::process::LIMIT;

use crate::report::Report;
use crate::scenario::Plan;
use crate::watermarks::claim_lines;

/// The guest who was first, and the other.
const A: usize = 0;
const B: usize = 1;

/// Memory of each guest, and of both together.
const SIZE_MIB: u64 = 256;
/// What each wants in the end: more than there is.
const WANTED_MIB: [u64; 2] = [208, 192];

/// What B works with then; A works with all it has.
const LITTLE_MIB: u64 = 16;

/// What A's balloon gives from (d) on during a step, two of which take a quarter of a second: B takes more than that on any host.
const SLOW_BALLOON_KIB: u64 = 256;

/// Steps of a MiB in which B takes what A's balloon gives, and the part of the budget, in percent, that is free before each: a
/// step less is not hard yet.
const SLOW_STEPS: u64 = 28;
const ROOM_PERCENT: u64 = 5;

/// Levels at which more than balloons is used.
const BELOW_SOFT: [Level; 3] = [Level::Hard, Level::Low, Level::Stop];

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "the story names no guest; ours are probes that walk what they use, sampled every second instead of every minute; what they hold \
         compresses, so that what has to leave is compressed before it is swapped; in (d) A's balloon is a slow one, at most 2 MiB a \
         second, however fast this host's would be",
    );
    for tax_percent in [75, 0] {
        Story::begin(plan, tax_percent).tell(plan, &mut report);
    }
    report
}

/// Works with all of that until it is told to go on.
fn active(plan: &Plan, mib: u64) -> String {
    format!("repeat:told,(walk:{},secs=0.2;idle:0.05)", plan.size(mib))
}

fn program_of_a(plan: &Plan) -> String {
    let fill = |mib: u64| format!("fill:{},text=100,seed=1", plan.size(mib));
    let active = |mib: u64| active(plan, mib);
    [
        fill(64),
        active(64),
        fill(128),
        active(192),
        format!("free:{},silent", plan.size(128)),
        active(64),
        format!("balloon:{}K", SLOW_BALLOON_KIB * plan.scale),
        active(64),
        fill(WANTED_MIB[A] - 64),
        active(WANTED_MIB[A]),
        "verify;repeat:told,(idle:1)".to_owned(),
    ]
    .join(";")
}

fn program_of_b(plan: &Plan) -> String {
    let fill = |mib: u64| format!("fill:{},text=100,seed=2", plan.size(mib));
    [
        fill(36),
        // Step by step, whenever there is room for the next.
        format!("repeat:{SLOW_STEPS},(repeat:told,(idle:0.02);{})", fill(1)),
        active(plan, 64),
        fill(64),
        active(plan, 128),
        fill(WANTED_MIB[B] - 128),
        // It works with little of that.
        format!("repeat:told,(walk:{},secs=0.05;idle:0.2)", plan.size(LITTLE_MIB)),
        "verify;repeat:told,(idle:1)".to_owned(),
    ]
    .join(";")
}

struct Story {
    tax_percent: u8,
    scale: u64,
    pool: TestPool,
    recorder: Recorder,
}

impl Story {
    fn begin(plan: &Plan, tax_percent: u8) -> Self {
        let (size, tax) = (plan.size(SIZE_MIB), tax_percent.to_string());
        // What a guest works with is what it touches in a period: a larger one that waits for pages needs a longer one.
        let period = format!("{}s", plan.scale);
        let pool = TestPool::new(&[
            "--memory",
            &size,
            "--cpus",
            "1",
            "--budget",
            &size,
            "--idle-tax",
            &tax,
            "--sample-period",
            &period,
            "--track",
            "--swap",
            "SWAP",
        ]);
        let recorder = Recorder::start(pool.folder());
        Self { tax_percent, scale: plan.scale, pool, recorder }
    }

    /// The row and the claims of a step are about this telling.
    fn step(&self, step: &str) -> String {
        format!("tax {} %, ({step})", self.tax_percent)
    }

    fn mib(&self, bytes: u64) -> u64 {
        bytes / MIB / self.scale
    }

    /// What one costs without its process, and what it works with.
    fn held_and_active(&self, look: &Look) -> String {
        let report = &look.ledger.report;
        format!("{}/{}", self.mib(report.charge_bytes - report.own_bytes), self.mib(report.active_bytes))
    }

    fn wait(&mut self, what: &str, wanted: impl FnMut(&[Look]) -> bool) -> Vec<Look> {
        self.pool.wait_until_steady(what, wanted)
    }

    /// Waits until one has taken so many MiB, and works with as many, to within a fifth.
    fn wait_for_activity(&mut self, guest: usize, mib: u64) -> Vec<Look> {
        let expected_bytes = mib * MIB * self.scale;
        self.wait("the activity", |looks| {
            let report = &looks[guest].ledger.report;
            report.touched_bytes >= expected_bytes && is_within(20, report.active_bytes, expected_bytes)
        })
    }

    fn tell(mut self, plan: &Plan, report: &mut Report) {
        self.one_alone(plan, report);
        self.the_other_comes(plan, report);
        self.faster_than_a_balloon(report);
        self.more_than_there_is(report);
        for guest in [A, B] {
            self.pool.vms[guest].tell();
        }
        for vm in &mut self.pool.vms {
            vm.wait_for_verifies(1);
        }
        let course = self.recorder.finish();
        let title = format!("Two tanks, tax {} %", self.tax_percent);
        let active: Quantity = ("works with", |member| member.report.active_bytes);
        let granted: Quantity = ("granted", |member| member.grant_bytes.unwrap_or(0));
        let chart = course.members(&title, &[active, granted]);
        report.drawn(chart.write_to(&plan.out, &format!("two-tanks-{}.svg", self.tax_percent)));
        let given: Quantity = ("balloon gave", |member| member.report.balloon_given_bytes);
        let compressed: Quantity = ("compressed", |member| member.report.compressed_bytes);
        let swapped: Quantity = ("swapped", |member| member.report.swapped_bytes);
        let chart = course.members(&format!("{title}: what is away"), &[given, compressed, swapped]);
        report.drawn(chart.write_to(&plan.out, &format!("two-tanks-{}-away.svg", self.tax_percent)));
        claim_lines(&format!("tax {} %", self.tax_percent), &course, report);
        // Fails if a page was bad.
        self.pool.stop();
    }

    /// Waits until the members' own accounts leave enough of the budget, B's made after it has last grown.
    fn wait_for_room(&mut self) {
        let grown = Instant::now();
        while grown.elapsed() < LIMIT {
            let view = self.pool.view();
            let is_new = |member: &MemberView| u128::from(member.report_age_ms) < grown.elapsed().as_millis();
            let charged_bytes: u64 = view.members.iter().map(|member| member.report.charge_bytes).sum();
            let budget_bytes = view.settings.budget_bytes;
            let has_room = charged_bytes <= budget_bytes * (100 - ROOM_PERCENT) / 100;
            if view.members.len() == 2 && view.members.iter().all(is_new) && has_room {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("no room for B in time: {:?}", self.pool.view());
    }

    fn one_alone(&mut self, plan: &Plan, report: &mut Report) {
        self.recorder.mark("a");
        self.pool.start(&program_of_a(plan), &[]);
        let first = self.wait_for_activity(A, 64);
        self.pool.vms[A].tell();
        let second = self.wait_for_activity(A, 192);
        let found = [&first, &second].map(|looks| self.held_and_active(&looks[A])).join(", then ");
        report.row(format!("{} A holds/uses, MiB", self.step("a")), "64/64, then 192/192", found.clone());
        report.reached(format!("{} A works with all it takes", self.step("a")), found);

        self.recorder.mark("b");
        self.pool.vms[A].tell();
        let after = self.wait_for_activity(A, 64);
        report.row(format!("{} A holds/uses, MiB", self.step("b")), "192/64", self.held_and_active(&after[A]));
        let (before_bytes, after_bytes) = (second[A].cost_bytes, after[A].cost_bytes);
        report.claim(
            format!("{} what was freed silently still costs the host", self.step("b")),
            is_within(3, after_bytes, before_bytes),
            format!("{} MiB before, {} after", self.mib(before_bytes), self.mib(after_bytes)),
        );
        let entered = self.pool.at_levels(&Level::ALL[1..], "entered");
        report.claim(
            format!("{} nothing was short so far", self.step("b")),
            entered == 0,
            format!("lower levels entered {entered} times"),
        );
    }

    fn the_other_comes(&mut self, plan: &Plan, report: &mut Report) {
        self.recorder.mark("c");
        self.pool.start(&program_of_b(plan), &[]);
        for _ in 0..SLOW_STEPS {
            self.pool.vms[B].running.wait_for_phase("fill");
            self.wait_for_room();
            self.pool.vms[B].tell();
        }
        let looks = self.wait_for_activity(B, 64);
        let given = |look: &Look| look.ledger.report.balloon_given_bytes;
        report.row(
            format!("{} A, B hold/use, MiB", self.step("c")),
            "A gives free pages, B 64/64",
            format!("A {}, B {}", self.held_and_active(&looks[A]), self.held_and_active(&looks[B])),
        );
        let soft = self.pool.at_levels(&[Level::Soft], "entered");
        let below = self.pool.at_levels(&BELOW_SOFT, "entered");
        report.claim(
            format!("{} soft is reached, and nothing below", self.step("c")),
            soft > 0 && below == 0,
            format!("soft {soft} times, below {below}"),
        );
        report.claim(
            format!("{} A's balloon gives, B's does not", self.step("c")),
            given(&looks[A]) > 8 * MIB * self.scale && given(&looks[B]) == 0,
            format!("{} and {} MiB", self.mib(given(&looks[A])), self.mib(given(&looks[B]))),
        );
        let taken = ["evicted_pages", "written_pages"].map(|what| self.pool.at_levels(&Level::ALL, what));
        report.claim(
            format!("{} no page is taken from a guest, none is swapped", self.step("c")),
            taken == [0, 0],
            format!("{} evicted, {} written", taken[0], taken[1]),
        );
        let rhos = [A, B].map(|guest| rho_of(&looks[guest], self.tax_percent));
        report.claim(
            format!("{} A's rho is the lower", self.step("c")),
            rhos[A] < rhos[B],
            format!("{:.1} and {:.1} shares a MiB", rhos[A], rhos[B]),
        );
        // An estimate may be more than there is.
        let uses_bytes = |look: &Look| look.ledger.report.active_bytes.min(look.ledger.report.touched_bytes);
        report.claim(
            format!("{} shares play no part: both are granted what they use", self.step("c")),
            looks.iter().all(|look| look.grant_bytes() >= uses_bytes(look)),
            in_mib(&looks),
        );
    }

    fn faster_than_a_balloon(&mut self, report: &mut Report) {
        self.recorder.mark("d");
        let a = &mut self.pool.vms[A];
        a.tell();
        a.running.catch_up();
        // It looks whether it is told after each round, which has a walk: by the third its balloon is slow.
        for _ in 0..3 {
            a.running.wait_for_phase("walk");
        }
        self.pool.vms[B].tell();
        let looks = self.wait_for_activity(B, 128);
        let below = self.pool.at_levels(&BELOW_SOFT, "entered");
        report.row(
            format!("{} B holds/uses, MiB; levels below soft", self.step("d")),
            "hard",
            format!("B {}, entered {below} times", self.held_and_active(&looks[B])),
        );
        report.claim(
            format!("{} B grows faster than A's balloon gives: hard", self.step("d")),
            below > 0,
            format!("levels below soft entered {below} times"),
        );
        let evicted = self.pool.at_levels(&BELOW_SOFT, "evicted_pages");
        let ballooned_mib = self.mib(looks[A].ledger.report.ballooned_bytes);
        report.claim(
            format!("{} what the balloon does not give is taken as pages", self.step("d")),
            evicted > 0,
            format!("{evicted} evicted, the balloon holds {ballooned_mib} MiB"),
        );
    }

    fn more_than_there_is(&mut self, report: &mut Report) {
        self.recorder.mark("e");
        let tax_percent = self.tax_percent;
        self.pool.vms[A].tell();
        self.pool.vms[B].tell();
        let (wanted_bytes, half_bytes) =
            (WANTED_MIB.map(|mib| mib * MIB * self.scale), SIZE_MIB * MIB * self.scale * 94 / 100 / 2);
        let looks = self.wait("division of what is there", |looks| {
            let has_all = |guest: usize| looks[guest].ledger.report.touched_bytes >= wanted_bytes[guest];
            let is_divided = if tax_percent == 0 {
                looks.iter().all(|look| is_within(7, look.cost_bytes, half_bytes))
            } else {
                2 * looks[A].cost_bytes > 3 * looks[B].cost_bytes
            };
            has_all(A) && has_all(B) && looks.iter().all(|look| look.is_settled(12)) && is_divided
        });
        let published = if tax_percent == 0 { "equal halves" } else { "by activity: A more" };
        let costs = [A, B].map(|guest| self.mib(looks[guest].cost_bytes));
        let found = format!("A {}, B {}", costs[A], costs[B]);
        report.row(format!("{} A, B cost, MiB", self.step("e")), published, found.clone());
        report.reached(format!("{} what is there is divided: {published}", self.step("e")), found);
        let away = [A, B].map(|guest| {
            let member = &looks[guest].ledger.report;
            [member.resident_bytes, member.compressed_bytes, member.swapped_bytes]
        });
        report.claim(
            format!("{} each has memory, and memory that is away, compressed or swapped", self.step("e")),
            away.iter().all(|&[resident, compressed, swapped]| resident > 0 && compressed + swapped > 0),
            away.map(|bytes| bytes.map(|bytes| self.mib(bytes).to_string()).join(" + ") + " MiB").join(", "),
        );
    }
}

/// Of a member as it says of itself; the lowest gives first.
fn rho_of(look: &Look, tax_percent: u8) -> f64 {
    let (member, tax) = (&look.ledger, IdleTax::from_percent(tax_percent));
    rho(&claim(member), member.report.charge_bytes, tax)
}
