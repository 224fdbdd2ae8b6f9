//! The live view on a terminal, until the user leaves.

use std::io::{self, BufWriter};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cistern::signals::{Signals, restore_terminal_on_fatal_signals};
use cistern::terminal::RawTerminal;
use cistern_memory::ledger::{Ledger, PoolView};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal;
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};

use super::keys::action;
use super::screen;
use super::state::State;

/// How often the pool is looked at.
const REFRESH: Duration = Duration::from_secs(1);

/// Shows the pool in `dir`, of which this is the first look, until the user leaves.
pub fn run(dir: &Path, pool: PoolView) -> Result<()> {
    let signals = Signals::block().context("signals")?;
    restore_terminal_on_fatal_signals().context("signals")?;
    show(dir, pool, REFRESH, &signals, |_| true)
}

/// The same until `go_on` says no, which is asked before every picture; pictures are so far apart.
pub fn show(
    dir: &Path,
    pool: PoolView,
    refresh: Duration,
    signals: &Signals,
    mut go_on: impl FnMut(&mut State) -> bool,
) -> Result<()> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    // Dropped last, so that nothing is drawn once the terminal is as it was.
    let _raw = RawTerminal::enter_page(stdin.as_fd(), stdout.as_fd())?;
    let backend = CrosstermBackend::new(BufWriter::new(stdout));
    let mut terminal = Terminal::with_options(backend, TerminalOptions { viewport: viewport() }).context("terminal")?;
    let mut state = State::new(dir.to_owned(), pool);
    let mut due = Instant::now() + refresh;
    while go_on(&mut state) {
        terminal.draw(|frame| screen::draw(frame, &state)).context("terminal")?;
        let can_read = wait(signals, due.saturating_duration_since(Instant::now()));
        if !can_read || signals.take() || !take_keys(&mut state)? {
            break;
        }
        if Instant::now() >= due {
            state.take(Ledger::read(dir));
            due = Instant::now() + refresh;
        }
    }
    Ok(())
}

/// All of the terminal. One that does not know its size, as on a serial line, is taken for a common one.
fn viewport() -> Viewport {
    match terminal::size() {
        Ok((1.., 1..)) => Viewport::Fullscreen,
        _ => Viewport::Fixed(Rect::new(0, 0, 80, 24)),
    }
}

/// Does what was typed; false when that is to leave.
fn take_keys(state: &mut State) -> Result<bool> {
    while event::poll(Duration::ZERO).context("terminal")? {
        // Everything else changes only the size, which every picture asks for anew.
        if let Event::Key(key) = event::read().context("terminal")?
            && let Some(action) = action(&key, state.page)
            && !state.act(action)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits for a key or a signal, at most this long; false when the terminal is gone.
fn wait(signals: &Signals, timeout: Duration) -> bool {
    let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut polled = [watch(io::stdin().as_raw_fd()), watch(signals.as_raw_fd())];
    // A millisecond is added for the part of one that is cut off: waiting too short would spin.
    let timeout_ms = timeout.as_millis() as libc::c_int + 1;
    // SAFETY: as many pollfds as said. A failure is an interruption by a change of the terminal's size.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms) };
    polled[0].revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) == 0
}
