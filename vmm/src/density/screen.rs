//! What is seen while it goes on: the pool live on a terminal, lines elsewhere, nothing where only JSON is wanted.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use cistern::signals::Signals;
use cistern::terminal::is_foreground_terminal;
use cistern_memory::ledger::{Ledger, PoolView};

use super::fleet::{Fleet, Stage};
use super::report::{Trial, mebibytes};
use crate::top;

/// How often the picture changes.
const FRAME: Duration = Duration::from_millis(250);

/// How often a stage that lasts is worth a line.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Cells of the bar.
const BAR_CELLS: usize = 20;

/// How long the first guest may take to make the pool before it is shown in lines.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// Where it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// On a terminal.
    Live,
    /// In lines on stdout.
    Lines,
    /// Nowhere.
    Silent,
}

impl Screen {
    /// For whoever reads stdout.
    pub fn new(is_silent: bool) -> Self {
        match io::stdout().is_terminal() && is_foreground_terminal(io::stdin().as_fd()) {
            _ if is_silent => Self::Silent,
            true => Self::Live,
            false => Self::Lines,
        }
    }

    /// Shows a fleet until all is done; false when the user stopped it.
    pub fn show(self, fleet: &mut Fleet, title: &str, signals: &Signals) -> Result<bool> {
        if self == Self::Live
            && let Some(pool) = wait_for_pool(fleet, signals)?
        {
            return live(fleet, title, pool, signals);
        }
        let (mut told, mut due) = (None, Instant::now());
        while fleet.stage() != Stage::Over {
            if signals.take() {
                return Ok(false);
            }
            fleet.go_on(FRAME)?;
            if self != Self::Silent && (told != Some(fleet.stage()) || Instant::now() >= due) {
                (told, due) = (Some(fleet.stage()), Instant::now() + LINE_INTERVAL);
                let level = fleet.level().map_or(String::new(), |level| format!(", level {level}"));
                print(&format!("{}{level}\n", caption(title, fleet.stage(), fleet.progress())));
            }
        }
        Ok(true)
    }

    /// Says how a number of guests did.
    pub fn tell(self, trial: &Trial) {
        if self == Self::Silent {
            return;
        }
        let worst = trial.goodput.map_or("-".to_owned(), |goodput| format!("{:.1} %", goodput.worst_percent));
        let verdict = trial.shortfall().unwrap_or_else(|| "enough".to_owned());
        let host = mebibytes(trial.peak_host_bytes);
        print(&format!("{:>4} guests: worst goodput {worst}, host memory {host}: {verdict}\n", trial.guests));
    }
}

/// The live view; false when the user left before the end.
fn live(fleet: &mut Fleet, title: &str, pool: PoolView, signals: &Signals) -> Result<bool> {
    let mut failure = None;
    top::live(&fleet.pool(), pool, FRAME, signals, |state| {
        if let Err(error) = fleet.go_on(Duration::ZERO) {
            failure = Some(error);
        }
        state.caption = Some(caption(title, fleet.stage(), fleet.progress()));
        failure.is_none() && fleet.stage() != Stage::Over
    })?;
    failure.map_or(Ok(fleet.stage() == Stage::Over), Err)
}

/// The pool as the first guest makes it; `None` when there is none, because that guest ended, there is to be none, or a
/// signal came, which is left for whoever asks next.
fn wait_for_pool(fleet: &mut Fleet, signals: &Signals) -> Result<Option<PoolView>> {
    let start = Instant::now();
    while fleet.is_pooled() && fleet.stage() != Stage::Over && start.elapsed() < PATIENCE && !signals.is_waiting() {
        if let Ok(pool) = Ledger::read(&fleet.pool()) {
            return Ok(Some(pool));
        }
        fleet.go_on(LOOK)?;
    }
    Ok(None)
}

/// In at most 80 cells.
fn caption(title: &str, stage: Stage, progress: f64) -> String {
    let doing = match stage {
        Stage::Starting => "starting",
        Stage::Filling => "filling memory",
        Stage::WarmingUp => "warming up",
        Stage::Measuring => "measuring",
        Stage::Closing => "closing",
        Stage::Working => "at work",
        Stage::Over => "done",
    };
    let full = (progress.clamp(0.0, 1.0) * BAR_CELLS as f64).round() as usize;
    let bar = "█".repeat(full) + &"·".repeat(BAR_CELLS - full);
    format!("{title:30} {doing:14} {bar} {:>3.0}%", progress * 100.0)
}

/// Whoever closed stdout does not want to read it.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_fit() {
        for stage in [Stage::Starting, Stage::Filling, Stage::Measuring, Stage::Over] {
            for progress in [0.0, 0.333, 1.0] {
                let caption = caption("a guest alone, kind 10 of 10", stage, progress);
                assert!(caption.chars().count() <= 80, "{caption}");
            }
        }
        assert!(caption("4 guests", Stage::Measuring, 0.5).ends_with(" ██████████··········  50%"));
    }
}
