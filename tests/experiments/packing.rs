//! How many guests a budget holds at nearly all of their goodput: ours beside what Linux has, with the same guests and the same
//! memory, the kernel's own for zram and zswap counted in.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cistern_tests::baseline::reach::Reach;
use cistern_tests::baseline::reclaimer::Work;
use cistern_tests::baseline::{Baseline, Compressor, Swap};
use cistern_tests::chart::Chart;
use cistern_tests::cpu_time;
use cistern_tests::paged::{MIB, folder_on_disk};
use cistern_tests::process::{binary, children};
use cistern_tests::samples::private_bytes;
use serde_json::Value;

use crate::confines::Confines;
use crate::density::Density;
use crate::mix::{self, Mix};
use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;
use crate::verdict::{self, Score};
use crate::way::{NotHere, Setting, Way};

/// What all guests may take together.
const BUDGET_MIB: u64 = 512;

/// Of the short version: guests that fill more than there is, all of which end well.
const FEW: u64 = 4;
const FEW_BUDGET_MIB: u64 = 96;

/// Room in the kernel's swap, in budgets: more than guests fill that keep any of their goodput, as our own file has no end either.
/// The few of the short version fill less than two, and have a nested host's small disk.
const SWAP_BUDGETS: u64 = 16;
const SWAP_BUDGETS_SHORT: u64 = 4;

/// How often what is taken is drawn.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long guests get used to each other, and are measured. Ours takes half a minute to find which guests idle, as long again to
/// give others what they had, and a minute more until what was compressed meanwhile lies in the file. In a minute an idle guest
/// touches memory thirty times: two of those may be late.
const TIMES: [&str; 4] = ["--warmup", "150", "--secs", "60"];

/// How often the best are measured: the median counts.
const TURNS: usize = 3;

/// Of Linux's ways those that the other mixes are measured beside, unless others are asked for: what is used most, what packs the
/// usual mix best of those that compress, and what packs it best where a disk is fast.
const USED_MOST: [&str; 3] = ["zram", "zswap-20-lzo+ksm", "file"];

/// Of the usual mix ours is to pack so many times as many guests as the best other way.
const ASKED: f64 = 1.5;

/// Packing that reaches less than this of the best other way is said to.
const BEHIND: f64 = 0.9;

/// What came of a number of guests, or of the search for it.
struct Packed {
    way: Way,
    guests: u64,
    guests_ok: u64,
    bad_pages: u64,
    verified_pages: u64,
    /// Of the guest that keeps least, and the median; `None` where they end by themselves.
    goodput: Option<Goodput>,
    /// By the account of who keeps them within the budget; `None` where that is our own manager alone.
    work: Option<Work>,
    /// CPU time of whoever reclaims from outside.
    reclaim_cpu_percent: f64,
    peak_bytes: u64,
    /// CPU time that the machine below kept from them while they were measured.
    stolen_percent: f64,
    /// What memory and CPU time went into, in words; `None` where no manager says it.
    spent: Option<String>,
    /// What each number that was tried came to, in words.
    tried: String,
    /// What was taken, in MiB, over time, in seconds.
    course: Vec<(f64, f64)>,
}

/// What guests get done, in percent of what they do alone.
struct Goodput {
    worst_percent: f64,
    median_percent: f64,
}

impl Packed {
    /// `None` where guests are so few that they end by themselves, and nothing is told by them.
    fn score(&self, plan: &Plan) -> Option<Score> {
        match plan.guests {
            _ if plan.is_short => None,
            Some(_) => self.goodput.as_ref().map(|goodput| Score::WorstPercent(goodput.worst_percent)),
            None => Some(Score::Guests(self.guests)),
        }
    }
}

impl Goodput {
    /// Of all guests of a report, or of one of its trials.
    fn of(found: &Value) -> Option<Self> {
        let percent = |name: &str| found["goodput"][name].as_f64();
        Some(Self { worst_percent: percent("worst_percent")?, median_percent: percent("median_percent")? })
    }
}

/// All ways, each once; the best of Linux's and the best of ours as often as it takes for a median.
pub fn run(plan: &Plan) -> Report {
    let mut bench = Bench::new(plan);
    let ours = bench.settings().iter().copied().map(Way::Ours);
    let ways = ours.chain(bench.grid().into_iter().map(Way::Linux)).collect();
    let ways = bench.apart(plan.wanted(ways));
    let packed: Vec<_> = ways.into_iter().filter_map(|way| bench.measure(&mix::USUAL, way)).collect();
    bench.compare(&packed);
    bench.show_what_fits(&mix::USUAL);
    bench.report.row("UKSM", NOT_PUBLISHED, "absent: a patch that follows Linux at a distance");
    bench.report.row("zcache", NOT_PUBLISHED, "absent: taken out of Linux 3.11 in favour of zswap");
    bench.finish("packing.svg")
}

/// Other mixes of guests: ours beside what is used most.
pub fn run_mixes(plan: &Plan) -> Report {
    let mut bench = Bench::new(plan);
    let (others, used_most) = if plan.is_short { (1, 1) } else { (mix::OTHERS.len(), USED_MOST.len()) };
    let linux = if plan.ways.is_empty() {
        USED_MOST[..used_most].iter().map(|name| name.parse().expect("it is one of the grid")).collect()
    } else {
        bench.grid()
    };
    let linux = linux.into_iter().map(Way::Linux);
    let ways = bench.settings().iter().copied().map(Way::Ours).chain(linux).collect();
    let ways = bench.apart(plan.wanted(ways));
    let is_wanted = |mix: &&Mix| plan.mixes.is_empty() || plan.mixes.iter().any(|name| name == mix.name);
    let others = if plan.mixes.is_empty() { others } else { mix::OTHERS.len() };
    for mix in mix::OTHERS[..others].iter().filter(is_wanted) {
        let packed: Vec<_> = ways.iter().filter_map(|&way| bench.measure(mix, way)).collect();
        bench.show_what_fits(mix);
        let measured = scores(plan, &packed);
        let (Some(ours), Some(theirs)) = (verdict::best(&measured, true), verdict::best(&measured, false)) else {
            continue;
        };
        let name = format!("{}: the better of ours by the better of these", mix.name);
        bench.report.row(name, NOT_PUBLISHED, beside(&packed, ours, theirs));
    }
    bench.finish("packing-mixes.svg")
}

/// What is measured with, and what it has come to.
struct Bench<'a> {
    plan: &'a Plan,
    report: Report,
    chart: Chart,
    /// What the last way came to, of which mix, and whether it was ours: the next such is looked for around it.
    last: Option<(&'static str, bool, u64)>,
}

impl<'a> Bench<'a> {
    fn new(plan: &'a Plan) -> Self {
        let report = Report::new(format!("nobody has published ours; {}", plan.reach()));
        Self { plan, report, chart: Chart::new("MiB of the host that all guests take together"), last: None }
    }

    fn finish(mut self, drawing: &str) -> Report {
        self.report.drawn(self.chart.write_to(&self.plan.out, drawing));
        self.report
    }

    /// Of ours, those that are measured.
    fn settings(&self) -> &'static [Setting] {
        if self.plan.is_short && self.plan.ways.is_empty() { &Setting::ALL[..1] } else { &Setting::ALL }
    }

    /// Of Linux's, those that are measured: what fits without overcommit is known. Of the short version one, or one of each kind where
    /// the limit is under test.
    fn grid(&self) -> Vec<Baseline> {
        let (is_limited, is_full) = (self.is_limited(), !self.plan.is_short || !self.plan.ways.is_empty());
        let is_wanted = |baseline: &Baseline| match baseline.swap {
            Swap::Nothing => baseline.merges && is_full,
            _ if is_full => true,
            Swap::Zram => !baseline.merges || is_limited,
            Swap::File | Swap::Zswap { max_pool_percent: 20, compressor: Compressor::Lz4 } => is_limited,
            _ => false,
        };
        Baseline::grid().into_iter().filter(is_wanted).collect()
    }

    /// How many guests have their memory to themselves.
    fn show_what_fits(&mut self, mix: &Mix) {
        let fit = budget_bytes(self.plan) / (mix.memory_mib * self.plan.scale * MIB);
        self.report.row(named(mix, "no overcommit"), NOT_PUBLISHED, format!("{fit} guests, by their size"));
    }

    /// Those that are not set up as one before them: zswap's part is a whole percent of the host.
    fn apart(&mut self, ways: Vec<Way>) -> Vec<Way> {
        let mut apart: Vec<Way> = Vec::new();
        for way in ways {
            match apart.iter().find(|other| other.is_set_up_as(way, budget_bytes(self.plan))) {
                Some(other) => {
                    self.report.row(way.to_string(), NOT_PUBLISHED, format!("set up as {other} on this host"))
                }
                None => apart.push(way),
            }
        }
        apart
    }

    fn is_limited(&self) -> bool {
        matches!(self.plan.reach(), Reach::Guests(_))
    }

    /// Measures a way once and reports it. `None` where it cannot be had on this host.
    fn measure(&mut self, mix: &Mix, way: Way) -> Option<Packed> {
        let name = named(mix, &way.to_string());
        match pack(self.plan, mix, way, self.near(mix, way)) {
            Ok(mut packed) => {
                self.last = Some((mix.name, way.is_ours(), packed.guests));
                // The table comes hours later.
                eprintln!("{name}: {} guests ({})", packed.guests, packed.tried);
                self.show(mix, &name, &packed);
                self.chart.line(&name, std::mem::take(&mut packed.course));
                Some(packed)
            }
            Err(error) if way.is_ours() => {
                self.report.claim(format!("{name} can be measured"), false, format!("{error:#}"));
                None
            }
            // Of Linux's ways also what comes of them is told: that not one guest fits, say.
            Err(error) => {
                self.report.row(name, NOT_PUBLISHED, format!("{error:#}"));
                None
            }
        }
    }

    /// What the search for a way's number begins with.
    fn near(&self, mix: &Mix, way: Way) -> u64 {
        match self.last {
            Some((of, is_ours, guests)) if (of, is_ours) == (mix.name, way.is_ours()) => guests,
            _ if way.is_ours() => mix.near,
            // Those that compress came to three quarters of ours, and more; a file on a fast disk to a little more than ours.
            _ => mix.near * 3 / 4,
        }
    }

    fn show(&mut self, mix: &Mix, name: &str, packed: &Packed) {
        let Packed { way, guests, guests_ok, bad_pages, verified_pages, work, peak_bytes, spent, .. } = packed;
        let Work { paged_out_bytes, limit_hits, killed, .. } = work.unwrap_or_default();
        let mut found =
            format!("{guests} guests, at most {} MiB of {}", peak_bytes / MIB, budget_bytes(self.plan) / MIB);
        if let Some(Goodput { worst_percent, median_percent }) = packed.goodput {
            found += &format!(
                ", worst goodput {worst_percent:.0} %, median {median_percent:.0} %, {:.0} % of a CPU stolen",
                packed.stolen_percent
            );
        }
        if let Some(spent) = spent.as_ref().filter(|_| !self.plan.is_short) {
            found += &format!(", {spent}");
        }
        if !way.is_ours() && !self.plan.is_short {
            found += &format!(", reclaim {:.0} % of a CPU", packed.reclaim_cpu_percent);
        }
        if self.is_limited() {
            found += &format!(", limit met {limit_hits} times, {} MiB swapped, {killed} killed", paged_out_bytes / MIB);
        }
        if let Some(most) = way.zswap_most(budget_bytes(self.plan)) {
            found += &format!(", zswap at most {} MiB ({} % of the host)", most.bytes / MIB, most.host_percent);
        }
        self.report.row(name, NOT_PUBLISHED, found);
        // Those that never end compare what they touch, and nobody counts it.
        let looked_at =
            if self.plan.is_short { format!("{verified_pages} verified") } else { "all touched".to_owned() };
        let is_whole =
            *bad_pages == 0 && (!self.plan.is_short || *verified_pages == guests * mix.filled_pages(self.plan));
        self.report.claim(
            format!("{name}: no page is bad"),
            is_whole && (paged_out_bytes > 0 || !way.swaps() || self.plan.guests.is_some()),
            format!("{bad_pages} of {looked_at}"),
        );
        // Whoever looks for the most that fit starts too many, and who is told how many may.
        if self.plan.is_short || way.is_ours() {
            self.report.claim(
                format!("{name}: all guests end well"),
                guests_ok == guests && killed == 0,
                format!("{guests_ok} of {guests}, {killed} killed"),
            );
        }
    }

    /// Says what KSM adds to zswap, and puts the best of ours and of the others beside each other: where the most is looked for,
    /// the medians of measuring them again.
    fn compare(&mut self, packed: &[Packed]) {
        let measured = scores(self.plan, packed);
        for (name, verdict) in verdict::of_merging(&measured) {
            self.report.row(name, NOT_PUBLISHED, verdict);
        }
        let (Some(ours), Some(theirs)) = (verdict::best(&measured, true), verdict::best(&measured, false)) else {
            return;
        };
        let (Score::Guests(our_guests), Score::Guests(their_guests)) = (ours.1, theirs.1) else {
            let found = beside(packed, ours, theirs);
            return self.report.row("the best of ours by the best of these", NOT_PUBLISHED, found);
        };
        let mut both = [(ours.0, vec![our_guests]), (theirs.0, vec![their_guests])];
        for _ in 1..TURNS {
            for (way, guests) in &mut both {
                guests.extend(self.measure(&mix::USUAL, *way).map(|packed| packed.guests));
            }
        }
        let way = ours.0;
        let is_complete = both.iter().all(|(_, guests)| guests.len() == TURNS);
        let [(ours, all_ours), (theirs, all_theirs)] =
            both.map(|(way, guests)| (verdict::median(guests.clone()), format!("{guests:?}, {way}")));
        let ratio = ours as f64 / theirs.max(1) as f64;
        let verdict = match ratio >= ASKED {
            _ if !is_complete => "not known, as some turns failed",
            true => "reached",
            false => "not reached",
        };
        let behind = if is_complete { behind(packed, way, Some(ratio)) } else { String::new() };
        let found = format!("{ratio:.2} ({ASKED} {verdict}): {ours} of {all_ours} by {theirs} of {all_theirs}{behind}");
        self.report.row("the best of ours by the best of these, medians", NOT_PUBLISHED, found);
    }
}

/// What each has come to, of those that tell.
fn scores(plan: &Plan, packed: &[Packed]) -> Vec<(Way, Score)> {
    packed.iter().filter_map(|packed| Some((packed.way, packed.score(plan)?))).collect()
}

/// The best of ours by the best of the others.
fn beside(packed: &[Packed], ours: (Way, Score), theirs: (Way, Score)) -> String {
    let times = ours.1.times(theirs.1);
    let (words, behind) = (verdict::in_words(times), behind(packed, ours.0, times));
    format!("{words} ({} by {}: {} by {}){behind}", ours.0, theirs.0, ours.1, theirs.1)
}

/// What a way of ours took, where it comes to less than nearly all of the best other one.
fn behind(packed: &[Packed], way: Way, times: Option<f64>) -> String {
    let spent = packed.iter().find(|packed| packed.way == way).and_then(|packed| packed.spent.as_ref());
    match spent.filter(|_| times.is_some_and(|times| times < BEHIND)) {
        Some(spent) => format!(": behind, and this is what its first run took: {spent}"),
        None => String::new(),
    }
}

/// As reports name what is of a mix.
fn named(mix: &Mix, what: &str) -> String {
    if mix.name == mix::USUAL.name { what.to_owned() } else { format!("{}: {what}", mix.name) }
}

fn budget_bytes(plan: &Plan) -> u64 {
    (if plan.is_short { FEW_BUDGET_MIB } else { BUDGET_MIB }) * plan.scale * MIB
}

/// How many `cistern density` is to start, or to look for near a number.
fn guests(plan: &Plan, near: u64) -> String {
    match plan.guests {
        Some(guests) => guests.to_string(),
        None if plan.is_short => FEW.to_string(),
        None => format!("max:{near}"),
    }
}

/// As many guests as keep their goodput, which may be `near` so many, or those that are asked for.
fn pack(plan: &Plan, mix: &Mix, way: Way, near: u64) -> Result<Packed> {
    let (budget_bytes, folder) = (budget_bytes(plan), folder_on_disk());
    let swap_bytes = budget_bytes * if plan.is_short { SWAP_BUDGETS_SHORT } else { SWAP_BUDGETS };
    let confines = Confines::prepare(plan.reach(), way, budget_bytes, swap_bytes, folder.path());
    let mut confines = confines.context(NotHere)?;
    let mut command = Command::new(binary());
    command.args(["density", "--json", "--memory", &plan.size(mix.memory_mib)]);
    command.args(["--budget", &confines.pool_bytes().to_string()]);
    command.args(["--guests", &guests(plan, near)]);
    command.args(flags(way, folder.path())).args(mix.programs(plan)).env("TMPDIR", folder.path());
    command.args(if plan.is_short { &[][..] } else { &TIMES[..] });
    confines.enter(&mut command)?;
    let (started, density, mut course) = (Instant::now(), Density::start(&mut command)?, Vec::new());
    let pid = density.pid();
    confines.watch(move || children(pid));
    let found = density.watch(INTERVAL, |seconds| {
        let private_bytes = || children(pid).into_iter().filter_map(private_bytes).sum();
        let taken_bytes = confines.taken_bytes().unwrap_or_else(private_bytes);
        course.push((seconds, taken_bytes as f64 / MIB as f64));
    });
    let reclaim_cpu_percent = cpu_time::of_reclaimer().div_duration_f64(started.elapsed()) * 100.0;
    let work = confines.finish()?;
    let found = found?;
    ensure!(found["is_max"] != true || found["has_passed"] == true, "not even one guest keeps its goodput");
    packed(way, &found, work, reclaim_cpu_percent, course).with_context(|| format!("density said {found}"))
}

fn packed(
    way: Way,
    found: &Value,
    work: Option<Work>,
    reclaim_cpu_percent: f64,
    course: Vec<(f64, f64)>,
) -> Option<Packed> {
    let number = |name: &str| found[name].as_u64();
    Some(Packed {
        way,
        guests: number("guests")?,
        guests_ok: number("guests_ok")?,
        // Of those numbers too that were too many.
        bad_pages: found["trials"].as_array()?.iter().map(|trial| trial["bad_pages"].as_u64()).sum::<Option<_>>()?,
        verified_pages: number("verified_pages")?,
        goodput: Goodput::of(found),
        peak_bytes: work.map_or(number("peak_host_bytes")?, |work| work.peak_bytes),
        stolen_percent: stolen_percent(found),
        work,
        reclaim_cpu_percent,
        spent: if way.is_ours() { spent(found) } else { None },
        tried: found["trials"].as_array()?.iter().map(tried).collect::<Vec<_>>().join("; "),
        course,
    })
}

/// A number that was tried, the worst goodput of its guests, and what the machine below kept from them.
fn tried(trial: &Value) -> String {
    let worst = Goodput::of(trial).map_or("unknown".to_owned(), |goodput| format!("{:.0} %", goodput.worst_percent));
    let stolen_percent = stolen_percent(trial);
    let attempts = if trial["attempts"] == 1 { "" } else { ", the second time" };
    format!("{}: {worst}, {stolen_percent:.0} % of a CPU stolen{attempts}", trial["guests"])
}

/// Of a report, or of one of its trials.
fn stolen_percent(of: &Value) -> f64 {
    of["cpu"]["stolen_percent"].as_f64().unwrap_or_default()
}

/// What all of them took last, and which time it cost while they were measured.
fn spent(found: &Value) -> Option<String> {
    // With all of them: as they end the others have room.
    let last = found["moments"].as_array()?.iter().rfind(|moment| moment["guests"] == found["guests"])?;
    let mib = |value: &Value| Some(value.as_u64()? / MIB);
    let (all, resident) = (mib(&last["host_bytes"])?, mib(&last["bytes"]["resident"])?);
    let compressed = mib(&last["compressed_held_bytes"])?;
    let [guests, managers] =
        ["guests_percent", "managers_percent"].map(|name| found["cpu"][name].as_f64().unwrap_or_default());
    Some(format!(
        "{resident} MiB of guests' pages, {compressed} of compressed ones, {} the rest; guests {guests:.0} % of a CPU, \
         managers {managers:.0} %",
        all.saturating_sub(resident + compressed)
    ))
}

fn flags(way: Way, folder: &Path) -> Vec<String> {
    let swap = format!("--swap={}", folder.display());
    let words = match way {
        Way::Ours(setting) => [&[swap.as_str()], setting.flags()].concat(),
        Way::Linux(Baseline { merges: true, .. }) => vec!["--unmanaged", "--mergeable"],
        Way::Linux(_) | Way::Unlimited => vec!["--unmanaged"],
    };
    words.into_iter().map(str::to_owned).collect()
}
