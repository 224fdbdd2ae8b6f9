//! `cistern density`: how many guests a budget holds. Starts guests, each a `cistern run` of its own, in one pool, measures
//! what they get done against what one of them does alone, and says where their memory went and what that cost.

mod account;
mod advice;
mod fleet;
mod goodput;
mod latency;
mod mix;
mod options;
mod pool;
mod record;
mod report;
mod screen;
mod search;
mod stolen;
mod verdict;
mod workload;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cistern::host::Host;
use cistern::limits;
use cistern::outcome::STATUS_ERROR;
use cistern::signals::{Signals, restore_terminal_on_fatal_signals};
use cistern_memory::UserfaultSupport;
use cistern_memory::ledger::MAXIMUM_MEMBERS;

use fleet::{Cast, Ended, Fleet};
use goodput::Alone;
use mix::interleave;
pub use options::Density;
use options::{Count, Plan};
use report::{Report, Trial};
use screen::Screen;
use search::Search;
use verdict::{Verdict, Yardstick};

/// Room beside a guest that is alone: nothing is short of memory then.
const ALONE_ROOM_BYTES: u64 = 64 << 20;

/// The longest that a probe which is alone gets used to that: it has nobody to share with.
const ALONE_WARMUP: Duration = Duration::from_secs(5);

/// How often a number of guests is tried at most.
const ATTEMPTS: u32 = 2;

/// Whoever runs it has stopped it.
struct Stopped;

/// Runs it; the status is 0 when every guest ended well, no page was bad, and any number of guests passed where the largest was
/// looked for, else 1. Stopped by a signal it is 0, as `run` has it, if no page was bad until then.
pub fn run(density: Density) -> Result<u8> {
    let (out, json): (Option<PathBuf>, bool) = (density.out.clone(), density.json);
    let plan = Plan::new(density)?;
    // What all guests would fail for is said once.
    Host::open()?;
    if !plan.is_unmanaged {
        UserfaultSupport::probe()?;
    }
    // Known before, and not after an hour.
    if let Some(folder) = &out {
        fs::create_dir_all(folder).with_context(|| format!("--out {}", folder.display()))?;
    }
    // Two pipes a guest.
    limits::raise_open_files().context("limit of open files")?;
    let signals = Signals::block().context("signals")?;
    restore_terminal_on_fatal_signals().context("signals")?;
    let mut bench = Bench { plan: &plan, signals, screen: Screen::new(json), bad_pages: 0, has_crashed: false };
    let Some(report) = bench.run()? else {
        let bad = match bench.bad_pages {
            0 => String::new(),
            pages => format!(", and {pages} pages were bad"),
        };
        let _ = writeln!(io::stderr(), "cistern: density: stopped before its end: there is no report{bad}");
        return Ok(if bench.bad_pages > 0 { STATUS_ERROR } else { 0 });
    };
    if let Some(folder) = out {
        report.write(&folder)?;
    }
    // Whoever closed stdout does not want to read it.
    let text = if json { report.json() } else { report::table::render(&report) };
    let _ = io::stdout().write_all(text.as_bytes());
    let is_good = report.verdict.is_good() && bench.bad_pages == 0 && !bench.has_crashed;
    Ok(if is_good && (report.has_passed || !report.is_max) { 0 } else { STATUS_ERROR })
}

/// What all fleets have in common.
struct Bench<'a> {
    plan: &'a Plan,
    signals: Signals,
    screen: Screen,
    /// Of all fleets, those too that were stopped.
    bad_pages: u64,
    /// A guest of any fleet has.
    has_crashed: bool,
}

impl Bench<'_> {
    /// All that is to be done: the report, `None` when it was stopped.
    fn run(&mut self) -> Result<Option<Report>> {
        let Ok(yardsticks) = self.measure_alone()? else { return Ok(None) };
        let found = match self.plan.count {
            Count::Number(guests) => self.try_number(guests, &yardsticks)?.map(|tried| (tried, Vec::new())),
            Count::Max { near } => self.find_most(near, &yardsticks)?,
        };
        let Ok(((ended, verdict), mut trials)) = found else { return Ok(None) };
        if trials.is_empty() {
            trials.push(Trial::of(&verdict, self.plan.goodput));
        }
        Ok(Some(Report::of(self.plan, &ended, verdict, trials)))
    }

    /// What a guest of each kind does alone; `None` for a kind of whose work nothing can be told.
    fn measure_alone(&mut self) -> Result<Result<Vec<Option<Yardstick>>, Stopped>> {
        let plan = self.plan;
        let mut yardsticks = vec![None; plan.roles.len()];
        for (index, role) in plan.roles.iter().enumerate() {
            // Of a kernel of the user's it is not known beforehand.
            if !role.workload.is_measured() && plan.kernel.is_none() {
                continue;
            }
            let room_bytes = plan.memory.bytes + plan.memory.bytes / 4 + ALONE_ROOM_BYTES;
            // A kernel of the user's may still be booting then.
            let warmup = if plan.kernel.is_none() { plan.warmup.min(ALONE_WARMUP) } else { plan.warmup };
            let cast = Cast { roles: vec![index], budget_bytes: room_bytes, warmup };
            let title = format!("a guest alone, kind {} of {}", index + 1, plan.roles.len());
            let Ok(ended) = self.work(cast, &title)? else { return Ok(Err(Stopped)) };
            if let Some(failure) = &ended.records[0].failure {
                anyhow::bail!("density: the first guest, alone with all the memory it wants: {failure}");
            }
            let (phases, window) = (&ended.records[0].phases, &ended.windows[0]);
            let alone = Alone::of(phases, window, role.workload.touch_interval);
            yardsticks[index] = Some(Yardstick { alone, latency: verdict::latency(&ended, |_| true) });
        }
        Ok(Ok(yardsticks))
    }

    /// So many guests.
    fn try_number(
        &mut self,
        guests: usize,
        yardsticks: &[Option<Yardstick>],
    ) -> Result<Result<(Ended, Verdict), Stopped>> {
        let plan = self.plan;
        let weights: Vec<_> = plan.roles.iter().map(|role| role.part.weight).collect();
        let cast = Cast { roles: interleave(&weights, guests), budget_bytes: plan.budget.bytes, warmup: plan.warmup };
        let programs: Vec<_> = plan.roles.iter().map(|role| role.part.program.clone()).collect();
        let ended = self.work(cast, &format!("{guests} guests"))?;
        Ok(ended.map(|ended| {
            let verdict = Verdict::of(&ended, &programs, yardsticks, plan.memory.bytes);
            self.has_crashed |= verdict.has_crashed;
            (ended, verdict)
        }))
    }

    /// So many guests, and once more where that was disturbed.
    fn try_fairly(
        &mut self,
        guests: usize,
        yardsticks: &[Option<Yardstick>],
    ) -> Result<Result<(Ended, Verdict, Trial), Stopped>> {
        let mut attempts = 0;
        loop {
            let Ok((ended, verdict)) = self.try_number(guests, yardsticks)? else { return Ok(Err(Stopped)) };
            attempts += 1;
            let trial = Trial { attempts, ..Trial::of(&verdict, self.plan.goodput) };
            self.screen.tell(&trial);
            if attempts == ATTEMPTS || !trial.is_disturbed() {
                return Ok(Ok((ended, verdict, trial)));
            }
        }
    }

    /// The most guests that keep their goodput, or the fewest where not even those do, and all that were tried.
    #[expect(clippy::type_complexity)]
    fn find_most(
        &mut self,
        near: Option<usize>,
        yardsticks: &[Option<Yardstick>],
    ) -> Result<Result<((Ended, Verdict), Vec<Trial>), Stopped>> {
        let plan = self.plan;
        if !yardsticks.iter().flatten().all(|yardstick| yardstick.alone.is_known()) {
            anyhow::bail!("density: a guest alone has told of no walk: there is no goodput to keep");
        }
        // So many fit without any overcommit.
        let fit = (plan.budget.bytes / plan.memory.bytes) as usize;
        let most = MAXIMUM_MEMBERS.into();
        let mut search = near.map_or(Search::new(fit, most), |number| Search::near(number, most));
        let (mut last, mut best, mut trials) = (None, None, Vec::new());
        while let Some(guests) = search.next() {
            let Ok((ended, verdict, trial)) = self.try_fairly(guests, yardsticks)? else { return Ok(Err(Stopped)) };
            search.take(guests, trial.has_passed);
            *(if trial.has_passed { &mut best } else { &mut last }) = Some((ended, verdict));
            trials.push(trial);
        }
        // What passed last is the largest that did; where nothing did, what failed last is the smallest.
        let found = best.or(last).expect("a search tries something");
        Ok(Ok((found, trials)))
    }

    /// A fleet from its start to its end.
    fn work(&mut self, cast: Cast, title: &str) -> Result<Result<Ended, Stopped>> {
        let mut fleet = Fleet::launch(self.plan, cast)?;
        let is_whole = self.screen.show(&mut fleet, title, &self.signals)?;
        let ended = fleet.end()?;
        self.bad_pages += ended.records.iter().map(|record| record.bad_pages).sum::<u64>();
        Ok(if is_whole { Ok(ended) } else { Err(Stopped) })
    }
}
