//! Some guests in a pool of their own, from the first start to the last end.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cistern::guests::PROBE;
use cistern_memory::ledger::{Ledger, Level};
use tempfile::TempDir;

use super::account::Account;
use super::goodput::Window;
use super::options::{Plan, Role};
use super::pool::{self, PoolRecord};
use super::record::{Ending, Record};
use crate::guest_process::merging::Merging;
use crate::guest_process::resident::ResidentPeak;
use crate::guest_process::watch::{Pace, Watch, Watched};
use crate::guest_process::{GuestProcess, Line, Lines, Said};

/// How often is looked at all guests while nothing is measured.
const PACE: Pace = Pace { interval: Duration::from_secs(1), interval_of_stops: 8 };

/// The same while they are measured: guests work for at least 98 % of the time.
const MEASURED_PACE: Pace = Pace { interval_of_stops: 50, ..PACE };

/// The same of guests that work to their end and whose goodput counts: they are measured all the while.
const WORKING_PACE: Pace = Pace { interval_of_stops: 20, ..PACE };

/// How often the ledger is read.
const LEDGER_INTERVAL: Duration = Duration::from_secs(1);

/// Guests that have not filled their memory by then, after the last was started, are measured as they are.
const FILL_PATIENCE: Duration = Duration::from_secs(180);

/// Which guests, and what they may use.
#[derive(Debug, Clone)]
pub struct Cast {
    /// The role of each, by its place in the plan.
    pub roles: Vec<usize>,
    /// The pool's budget.
    pub budget_bytes: u64,
    /// How long they get used to each other.
    pub warmup: Duration,
}

/// What a fleet is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Guests are being started.
    Starting,
    /// All have been started, not all have filled their memory.
    Filling,
    /// They get used to each other.
    WarmingUp,
    /// They are measured.
    Measuring,
    /// What was under way when the measurement ended is waited for.
    Closing,
    /// Each works to its end.
    Working,
    /// All is done.
    Over,
}

/// A guest at work.
struct Guest {
    process: GuestProcess,
    record: Record,
    role: usize,
    started: Instant,
}

/// Running guests. When it is dropped they end, and their files are gone.
pub struct Fleet<'a> {
    // Fields are dropped in this order: nobody is looked at who is waited for, and what guests leave changed is put back
    // before the record of it is gone.
    watch: Watch<Account>,
    guests: Vec<Guest>,
    _merging: Option<Merging>,
    folder: TempDir,
    plan: &'a Plan,
    cast: Cast,
    lines: Receiver<Said>,
    /// Until the last guest has been started: then its end is theirs.
    sender: Option<Lines>,
    start: Instant,
    stage: Stage,
    /// When that began.
    since: Instant,
    /// When the measurement began and ended.
    measured: (Option<Instant>, Option<Instant>),
    pool: PoolRecord,
    resident: ResidentPeak,
    ledger_due: Instant,
}

/// What came of a fleet.
#[derive(Debug)]
pub struct Ended {
    /// The role of each guest.
    pub roles: Vec<usize>,
    /// What each told.
    pub records: Vec<Record>,
    /// When each was measured.
    pub windows: Vec<Window>,
    /// When all were.
    pub window: Window,
    /// When the first was started.
    pub start: Instant,
    /// What was seen of them.
    pub account: Account,
    /// What the ledger told.
    pub pool: PoolRecord,
    /// What they had resident at most.
    pub resident: ResidentPeak,
    /// What they were allowed together.
    pub budget_bytes: u64,
}

impl<'a> Fleet<'a> {
    /// Starts the first guest.
    ///
    /// # Errors
    /// There is no temporary folder, or no process can be started.
    pub fn launch(plan: &'a Plan, cast: Cast) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cistern-density-").tempdir().context("temporary folder")?;
        if plan.kernel.is_none() {
            let kernel = kernel_in(&folder);
            PROBE.write(&kernel).with_context(|| kernel.display().to_string())?;
        }
        let (sender, lines) = channel();
        let now = Instant::now();
        let mut fleet = Self {
            watch: Watch::start(PACE),
            guests: Vec::with_capacity(cast.roles.len()),
            _merging: plan.tunes_ksm.then(|| Merging::of(&pool_in(&folder))),
            folder,
            plan,
            cast,
            lines,
            sender: Some(sender),
            start: now,
            stage: Stage::Starting,
            since: now,
            measured: (None, None),
            pool: PoolRecord::default(),
            resident: ResidentPeak::default(),
            ledger_due: now,
        };
        fleet.start_due()?;
        Ok(fleet)
    }

    /// Where the pool is.
    pub fn pool(&self) -> PathBuf {
        pool_in(&self.folder)
    }

    /// Whether there is one.
    pub fn is_pooled(&self) -> bool {
        !self.plan.is_unmanaged
    }

    /// The pool's level when it was last read.
    pub fn level(&self) -> Option<Level> {
        self.pool.samples.last()?.level
    }

    /// What it is at.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// How much of its present stage is done, 0 to 1.
    pub fn progress(&self) -> f64 {
        let (all, time) = (self.cast.roles.len() as f64, self.since.elapsed().as_secs_f64());
        let of_guests = |is_done: fn(&Guest, &[Role]) -> bool| {
            self.guests.iter().filter(|guest| is_done(guest, &self.plan.roles)).count() as f64 / all
        };
        let done = match self.stage {
            Stage::Starting => self.guests.len() as f64 / all,
            Stage::Filling => of_guests(has_filled),
            Stage::WarmingUp => time / self.cast.warmup.as_secs_f64(),
            Stage::Measuring => time / self.plan.time.as_secs_f64(),
            Stage::Working => of_guests(|guest, _| guest.record.closed.is_some()),
            Stage::Closing | Stage::Over => 1.0,
        };
        done.clamp(0.0, 1.0)
    }

    /// Goes on for about so long, or to its end.
    ///
    /// # Errors
    /// No process can be started.
    pub fn go_on(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while self.stage != Stage::Over {
            self.start_due()?;
            self.read_ledger();
            self.advance();
            let now = Instant::now();
            if now >= deadline && !time.is_zero() {
                return Ok(());
            }
            let wait = deadline.saturating_duration_since(now).min(self.plan.stagger.max(Duration::from_millis(1)));
            match self.lines.recv_timeout(wait) {
                Ok((index, at, line)) => self.take(index, at, line),
                Err(RecvTimeoutError::Timeout) if time.is_zero() => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.enter(Stage::Over),
            }
        }
        Ok(())
    }

    fn take(&mut self, index: usize, at: Instant, line: Line) {
        let record = &mut self.guests[index].record;
        match line {
            Line::Console(line) => record.take_line(at, &line, self.plan.kernel.is_none()),
            Line::Complaint(line) => record.take_complaint(&line),
            // The last of its two: it says nothing more.
            Line::End => record.closed = Some(at),
        }
    }

    /// Starts who is to have been started by now.
    fn start_due(&mut self) -> Result<()> {
        while let Some(sender) = self.sender.clone() {
            let index = self.guests.len();
            if self.start.elapsed() < self.plan.stagger * index as u32 {
                return Ok(());
            }
            let number = index + 1;
            let socket = self.folder.path().join(format!("{}.sock", pool::name(number)));
            let role = self.cast.roles[index];
            let mut arguments = self.plan.arguments.clone();
            let mut flag = |name: &str, value: OsString| arguments.extend([name.into(), value]);
            flag("--name", pool::name(number).into());
            flag("--api-sock", socket.clone().into());
            flag("--kernel", self.plan.kernel.clone().unwrap_or_else(|| kernel_in(&self.folder)).into());
            let program = self.plan.roles[role].part.of_guest(number);
            let is_probe = self.plan.kernel.is_none();
            flag("--cmdline", if is_probe { format!("probe=\"{program}\"") } else { program }.into());
            if !self.plan.is_unmanaged {
                flag("--pool", self.pool().into());
                flag("--budget", self.cast.budget_bytes.to_string().into());
            }
            let started = Instant::now();
            let process = GuestProcess::start(index, arguments, &sender)?;
            self.watch.add(Watched { pid: process.pid(), socket });
            self.guests.push(Guest { process, record: Record::default(), role, started });
            if self.guests.len() == self.cast.roles.len() {
                self.sender = None;
            }
            // Where a start takes longer than it may, the next is late already.
            self.read_ledger();
        }
        Ok(())
    }

    /// Reads what can be read without stopping anybody, if it is time.
    fn read_ledger(&mut self) {
        let now = Instant::now();
        self.resident.sample(now, self.guests.iter().map(|guest| guest.process.pid()));
        if now < self.ledger_due {
            return;
        }
        self.ledger_due = now + LEDGER_INTERVAL;
        // There is none before the first guest has joined.
        let pool = Ledger::read(&self.pool()).ok();
        let is_measured = matches!(self.stage, Stage::Measuring | Stage::Working);
        self.pool.take(now, pool.as_ref(), self.resident.last_bytes(), is_measured);
    }

    fn enter(&mut self, stage: Stage) {
        self.since = Instant::now();
        self.watch.set_pace(match stage {
            Stage::Measuring => MEASURED_PACE,
            Stage::Working if self.plan.roles.iter().any(|role| role.workload.is_measured()) => WORKING_PACE,
            _ => PACE,
        });
        if stage == Stage::Measuring {
            self.measured.0 = Some(self.since);
        }
        if self.stage == Stage::Measuring {
            self.measured.1 = Some(self.since);
        }
        self.stage = stage;
    }

    /// Enters the next stage if it is time.
    fn advance(&mut self) {
        let time = self.since.elapsed();
        let all =
            |is_done: fn(&Guest, &[Role]) -> bool| self.guests.iter().all(|guest| is_done(guest, &self.plan.roles));
        let next = match self.stage {
            Stage::Starting if self.sender.is_none() => {
                Some(if self.plan.is_timed() { Stage::Filling } else { Stage::Working })
            }
            Stage::Filling if all(has_filled) || time > FILL_PATIENCE => Some(Stage::WarmingUp),
            Stage::WarmingUp if time >= self.cast.warmup => Some(Stage::Measuring),
            Stage::Measuring if time >= self.plan.time => Some(Stage::Closing),
            Stage::Closing if self.is_measured_to_the_end() || time >= self.plan.time => Some(Stage::Over),
            _ => None,
        };
        if let Some(next) = next {
            self.enter(next);
        }
    }

    /// Whether every guest that walks has told of a walk since the measurement ended.
    fn is_measured_to_the_end(&self) -> bool {
        self.guests.iter().all(|guest| {
            let has_told = || guest.record.phases.last().is_some_and(|phase| phase.at >= self.since);
            !self.plan.roles[guest.role].workload.walks || guest.record.closed.is_some() || has_told()
        })
    }

    /// Waits for guests that have ended, and ends the others.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn end(mut self) -> Result<Ended> {
        let account = self.watch.finish();
        // All at once: each takes a while to end.
        self.guests.iter_mut().filter(|guest| guest.record.closed.is_none()).for_each(|guest| guest.process.kill());
        let now = Instant::now();
        for guest in &mut self.guests {
            let status = guest.process.wait()?;
            // Who was about to end has a status of its own.
            let is_ours = guest.record.closed.is_none() && status.signal() == Some(libc::SIGKILL);
            guest.record.end(if is_ours { Ending::Stopped } else { Ending::Status(status.code()) });
        }
        let window = Window { start: self.measured.0.unwrap_or(self.start), end: self.measured.1.unwrap_or(now) };
        let window_of = |guest: &Guest| match self.measured {
            (Some(_), _) => window,
            _ => {
                Window { start: guest.record.booted.unwrap_or(guest.started), end: guest.record.closed.unwrap_or(now) }
            }
        };
        let windows = self.guests.iter().map(window_of).collect();
        Ok(Ended {
            roles: self.cast.roles.clone(),
            records: self.guests.iter_mut().map(|guest| std::mem::take(&mut guest.record)).collect(),
            windows,
            window,
            start: self.start,
            account,
            pool: std::mem::take(&mut self.pool),
            resident: self.resident,
            budget_bytes: self.cast.budget_bytes,
        })
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        self.watch.finish();
        // All at once: each takes a while to end.
        self.guests.iter_mut().for_each(|guest| guest.process.kill());
    }
}

/// Whether a guest's memory is what it will be, or it will be nothing any more.
fn has_filled(guest: &Guest, roles: &[Role]) -> bool {
    guest.record.closed.is_some() || guest.record.fills >= roles[guest.role].workload.fills
}

fn pool_in(folder: &TempDir) -> PathBuf {
    folder.path().join("pool")
}

fn kernel_in(folder: &TempDir) -> PathBuf {
    folder.path().join("probe")
}
