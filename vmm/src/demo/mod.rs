//! `cistern demo`: a pool at work. Eight embedded guests, each a `cistern run` of its own, fill twice as much memory as
//! they may use together, and verify all of it in the end.

mod account;
mod acts;
mod guest;
mod place;
mod progress;
mod stage;
mod table;
mod view;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cistern::guests::PROBE;
use cistern::host::Host;
use cistern::signals::{Signals, restore_terminal_on_fatal_signals};
use cistern::terminal::is_foreground_terminal;
use cistern_memory::UserfaultSupport;
use cistern_memory::ledger::{Ledger, PoolView};

use crate::guest_process::merging::Merging;
use crate::top;
use place::Place;
use stage::Stage;
use view::Lines;

/// How often the picture changes.
const FRAME: Duration = Duration::from_millis(250);

/// How long the first guest may take to make the pool, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// Runs the demo; the status is 0 when every guest verified all its pages and ended well, else 1.
pub fn run(json: bool) -> Result<u8> {
    // What all guests would fail for is said once.
    Host::open()?;
    let userfault = UserfaultSupport::probe()?;
    let signals = Signals::block().context("signals")?;
    restore_terminal_on_fatal_signals().context("signals")?;
    let place = Place::new()?;
    let kernel = place.kernel();
    PROBE.write(&kernel).with_context(|| kernel.display().to_string())?;

    let merging = Merging::possible(&place.pool(), userfault);
    let mut stage = Stage::open(place, merging)?;
    let has_terminal = io::stdout().is_terminal() && is_foreground_terminal(io::stdin().as_fd());
    let is_over = if json {
        tell(&mut stage, &signals, None)?
    } else if !has_terminal {
        let lines = Lines::begin(stage.place().swap().is_some());
        tell(&mut stage, &signals, Some(lines))?
    } else {
        show(&mut stage, &signals)?
    };
    if !is_over {
        bail!("demo: stopped before its end: not every page was verified");
    }
    let ended = stage.end()?;
    if json {
        view::print_json(&ended)
    } else {
        view::print(&table::render(&ended))
    }
    Ok(if ended.is_good() { 0 } else { 1 })
}

/// Goes on in silence or in lines; false when a signal came before the end.
fn tell(stage: &mut Stage, signals: &Signals, mut lines: Option<Lines>) -> Result<bool> {
    while !stage.is_over() {
        if signals.take() {
            return Ok(false);
        }
        stage.go_on(FRAME, |guest| {
            if let Some(lines) = &mut lines {
                lines.told(guest);
            }
        })?;
        if let Some(lines) = &mut lines {
            lines.look(stage);
        }
    }
    Ok(true)
}

/// Goes on in the live view; false when the user left before the end.
fn show(stage: &mut Stage, signals: &Signals) -> Result<bool> {
    let dir = stage.place().pool();
    let Some(pool) = wait_for_pool(stage, signals)? else { return Ok(stage.is_over()) };
    let mut failure = None;
    top::live(&dir, pool, FRAME, signals, |state| {
        if let Err(error) = stage.go_on(Duration::ZERO, |_| ()) {
            failure = Some(error);
        }
        state.caption = Some(stage.caption());
        failure.is_none() && !stage.is_over()
    })?;
    failure.map_or(Ok(stage.is_over()), Err)
}

/// The pool as the first guest makes it; `None` when there is none, because that guest ended or a signal came.
fn wait_for_pool(stage: &mut Stage, signals: &Signals) -> Result<Option<PoolView>> {
    let start = Instant::now();
    loop {
        match Ledger::read(&stage.place().pool()) {
            Ok(pool) => return Ok(Some(pool)),
            Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) if stage.is_over() || signals.take() => return Ok(None),
            Err(_) => {
                stage.go_on(Duration::ZERO, |_| ())?;
                thread::sleep(LOOK);
            }
        }
    }
}
