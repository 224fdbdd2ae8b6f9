//! The leader's part in KSM: it drives ksmd for the pool where it may, and puts back what a leader that was killed has left.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::sharing::ksm::{KsmError, Tuner, TunerConfig, TunerState};

/// How long to wait after something failed: another pool drives, or the files cannot be written.
const RETRY: Duration = Duration::from_secs(10);

/// See the top of this file.
#[derive(Debug)]
pub(super) struct KsmDriver {
    /// `None`: it may not.
    config: Option<TunerConfig>,
    tuner: Option<Tuner>,
    /// What was left behind is put back.
    is_clean: bool,
    failed: Option<Instant>,
}

impl KsmDriver {
    pub fn new(config: Option<TunerConfig>) -> Self {
        Self { config, tuner: None, is_clean: false, failed: None }
    }

    /// To be called in each round by whoever leads. `waiting_pages` is how many pages of the whole pool the kernel was told to
    /// merge and has not.
    ///
    /// # Errors
    /// [`KsmError`], not sooner than ten seconds after the last.
    pub fn step(&mut self, pool: &Path, now: Instant, waiting_pages: u64) -> Result<(), KsmError> {
        if self.failed.is_some_and(|failed| now.duration_since(failed) < RETRY) {
            return Ok(());
        }
        self.try_step(pool, now, waiting_pages).inspect_err(|_| self.failed = Some(now))
    }

    fn try_step(&mut self, pool: &Path, now: Instant, waiting_pages: u64) -> Result<(), KsmError> {
        let Some(config) = self.config else {
            if !self.is_clean {
                let put_back = Tuner::restore_left_behind(pool)?;
                // What cannot be put back is tried again.
                match put_back.and_then(|mut put_back| put_back.failures.pop()) {
                    Some(failure) => return Err(failure),
                    None => self.is_clean = true,
                }
            }
            return Ok(());
        };
        let tuner = match &mut self.tuner {
            Some(tuner) => tuner,
            None => self.tuner.insert(Tuner::new(pool, config)?),
        };
        tuner.step(now, waiting_pages).map(drop)
    }

    /// What is driven, while it is.
    pub fn state(&self) -> Option<&TunerState> {
        self.tuner.as_ref().map(Tuner::state)
    }
}
