//! What the leader of a pool drives KSM with.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::KsmError;
use super::folder::{KsmFolder, Setting};
use super::gathering::Gathering;
use super::host::KsmHost;
use super::ksmd::Ksmd;
use super::process::KsmProcess;
use super::regulator::{Look, Pace, Regulator};
use super::wheel::{PutBack, Wheel, put_back_left_behind};

/// How often the pace is looked at; steps in between do nothing.
const PERIOD: Duration = Duration::from_secs(1);

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunerConfig {
    /// CPU time for ksmd while there is something new to merge, in percent of a core, 1 to 100.
    pub cpu_percent: u8,
    /// Whether pages of different NUMA nodes are to be merged; `None` leaves that as it is.
    pub across_nodes: Option<bool>,
}

impl Default for TunerConfig {
    fn default() -> Self {
        Self { cpu_percent: 10, across_nodes: None }
    }
}

/// Drives KSM for a pool, until it is dropped: then what it found is put back.
///
/// That includes merge_across_nodes only if nothing is merged by then: drop it when guest memory is gone. What cannot be put
/// back stays recorded in the pool's folder, for the next leader.
#[derive(Debug)]
pub struct Tuner {
    wheel: Wheel,
    ksmd: Option<Ksmd>,
    gathering: Gathering,
    regulator: Regulator,
    started: Instant,
    last: Option<(Instant, Look)>,
    state: TunerState,
}

/// What a tuner does.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TunerState {
    /// It drives: something waited once, and nobody else has taken over.
    pub drives: bool,
    /// There is something new to merge.
    pub is_busy: bool,
    /// The pace it wants; `None` until something waited.
    pub pace: Option<Pace>,
    /// Pages that waited at the last look, but for those that had only begun to.
    pub waiting_pages: u64,
    /// What ksmd takes for a page, in ns.
    pub cost_ns: u64,
    /// CPU time ksmd has had since the tuner was made, in ns; `None` where it cannot be seen.
    pub cpu_ns: Option<u64>,
    /// ksmd's share of a core between the last two looks, in percent.
    pub cpu_percent: Option<f64>,
    /// Settings that somebody else has changed since; they are let be.
    pub lost: Vec<Setting>,
}

impl Tuner {
    /// Becomes the one that drives KSM, for the pool in this folder. Takes over what an earlier leader of the pool has left
    /// changed: a ksmd that it drove rests from the first step. Changes nothing itself but merge_across_nodes, if that was
    /// asked for.
    ///
    /// # Errors
    /// [`KsmError::Taken`] while another pool drives; [`KsmError::Absent`]; [`KsmError::Merged`]; the files cannot be
    /// written, which only root may; the record of an earlier leader cannot be read.
    pub fn new(pool_folder: &Path, config: TunerConfig) -> Result<Self, KsmError> {
        let mut wheel = Wheel::take(KsmFolder::default(), pool_folder)?;
        if let Some(across) = config.across_nodes {
            wheel.set_across_nodes(across)?;
        }
        let regulator = Regulator::new(config.cpu_percent);
        Ok(Self {
            regulator: if wheel.has_driven() { regulator.taking_over() } else { regulator },
            wheel,
            ksmd: Ksmd::find(),
            gathering: Gathering::default(),
            started: Instant::now(),
            last: None,
            state: TunerState::default(),
        })
    }

    /// Puts back what an earlier leader of the pool in this folder has left changed, without driving. `None` if nothing is,
    /// and then nothing is touched.
    ///
    /// # Errors
    /// [`KsmError::Taken`] while another pool drives: try again later. As for [`Tuner::new`].
    pub fn restore_left_behind(pool_folder: &Path) -> Result<Option<PutBack>, KsmError> {
        put_back_left_behind(KsmFolder::default(), pool_folder)
    }

    /// Adjusts ksmd to what waits: pages that the members of the pool have advised and that are not merged, in all. Which of
    /// them ksmd has judged already need not be known; only what is added to them is new. Starts ksmd, if it does not run,
    /// once anything waits and no more comes. At most once a second; a call sooner does nothing.
    ///
    /// Returns settings that were found changed by somebody else, each once. If they concern how ksmd runs, this tuner
    /// leaves that alone from now on.
    ///
    /// # Errors
    /// The files cannot be read or written; [`KsmError::Unmerging`].
    pub fn step(&mut self, now: Instant, waiting_pages: u64) -> Result<Vec<Setting>, KsmError> {
        if self.last.is_some_and(|(time, _)| now.saturating_duration_since(time) < PERIOD) {
            return Ok(Vec::new());
        }
        let host = KsmHost::read()?;
        let time = now.saturating_duration_since(self.started);
        let look = Look {
            time,
            waiting_pages: self.gathering.look(time, waiting_pages),
            merged_pages: host.merged_pages(),
            full_scans: host.full_scans,
            pages_scanned: host.pages_scanned,
            cpu_time: self.ksmd.as_ref().and_then(Ksmd::cpu_time),
        };
        self.regulator = self.regulator.next(&look);
        self.note(&look);
        self.last = Some((now, look));
        let Some(pace) = self.regulator.pace() else { return Ok(Vec::new()) };
        let driven = self.wheel.drive(pace);
        self.state.drives = driven.is_ok() && !self.wheel.is_let_go();
        let lost = self.wheel.lost()[self.state.lost.len()..].to_vec();
        self.state.lost.extend(&lost);
        driven.map(|()| lost)
    }

    /// What it does.
    pub fn state(&self) -> &TunerState {
        &self.state
    }

    fn note(&mut self, look: &Look) {
        let state = &mut self.state;
        (state.is_busy, state.pace) = (self.regulator.is_busy(), self.regulator.pace());
        state.waiting_pages = look.waiting_pages;
        state.cost_ns = self.regulator.cost().as_nanos() as u64;
        let Some((_, last)) = self.last else { return };
        let used = look.cpu_time.zip(last.cpu_time).map(|(now, before)| now.saturating_sub(before));
        state.cpu_ns = used.map(|used| state.cpu_ns.unwrap_or(0) + used.as_nanos() as u64);
        let passed = look.time.saturating_sub(last.time);
        state.cpu_percent = used.map(|used| 100.0 * used.as_secs_f64() / passed.as_secs_f64());
    }
}

/// KSM in the statistics of a VM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KsmState {
    /// What it says of the host; `None` without KSM.
    pub host: Option<KsmHost>,
    /// What it says of this process.
    pub process: KsmProcess,
    /// What this process does as the one that drives it.
    pub tuner: Option<TunerState>,
}

impl KsmState {
    /// As it is now, with the state of the tuner, where there is one. What cannot be read is left out.
    pub fn read(tuner: Option<&TunerState>) -> Self {
        Self { host: KsmHost::read().ok(), process: KsmProcess::read().unwrap_or_default(), tuner: tuner.cloned() }
    }
}

#[cfg(test)]
mod tests;
