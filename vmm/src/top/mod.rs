//! `cistern top`: a pool and its guests, live or once.

mod column;
#[cfg(test)]
pub mod fixtures;
mod guest;
mod keys;
mod live;
mod rates;
mod screen;
mod state;
mod table;
mod text;
mod water;

use std::env;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use cistern::terminal::is_foreground_terminal;
use cistern_memory::ledger::{Ledger, LedgerError, PoolView};
use ratatui::crossterm::terminal;

pub use live::show as live;

use column::{Column, Row, Sort};
use rates::{Courses, MemberKey};

/// Names the pool for who does not.
const POOL_VARIABLE: &str = "CISTERN_POOL";

/// How long rates are measured for a table that is printed once, and how long to wait for the reports they take.
const MEASURED: Duration = Duration::from_secs(1);
const MEASURED_AT_MOST: Duration = Duration::from_millis(2500);
const MEASURED_STEP: Duration = Duration::from_millis(50);

/// The user did not say which pool.
#[derive(Debug, thiserror::Error)]
#[error("no pool is named and the current folder is none: name its folder, or set {POOL_VARIABLE}")]
pub struct NoPoolNamed;

/// Shows a pool: live on a terminal, else once.
pub fn run(dir: Option<PathBuf>, once: bool) -> Result<u8> {
    let (dir, pool) = find(dir)?;
    if once || !io::stdout().is_terminal() || !is_foreground_terminal(io::stdin().as_fd()) {
        print_once(&dir, &pool)?;
    } else {
        live::run(&dir, pool)?;
    }
    Ok(0)
}

/// The pool that is meant, and a first look at it.
fn find(dir: Option<PathBuf>) -> Result<(PathBuf, PoolView)> {
    let variable = || env::var_os(POOL_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    match dir.or_else(variable) {
        Some(dir) => Ok((dir.clone(), Ledger::read(&dir)?)),
        None => {
            let dir = env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
            match Ledger::read(&dir) {
                Err(LedgerError::NoPool { .. }) => Err(NoPoolNamed.into()),
                look => Ok((dir, look?)),
            }
        }
    }
}

/// Prints the table when every guest has told twice how it is, for the rates.
fn print_once(dir: &Path, pool: &PoolView) -> Result<()> {
    let mut courses = Courses::default();
    courses.take(pool);
    let start = Instant::now();
    let mut later = pool.clone();
    while !pool.members.is_empty() && start.elapsed() < MEASURED_AT_MOST {
        thread::sleep(MEASURED_STEP);
        later = Ledger::read(dir)?;
        if start.elapsed() >= MEASURED && have_all_reported_since(pool, &later) {
            break;
        }
    }
    courses.take(&later);
    let mut rows: Vec<_> = later.members.iter().map(|member| Row { member, course: courses.of(member) }).collect();
    Sort::DEFAULT.apply(&mut rows);
    print(&table::plain(&later, dir, &Column::ALL, &rows, width()));
    Ok(())
}

/// Whether whoever was in the pool before has made another report, or has left.
fn have_all_reported_since(before: &PoolView, now: &PoolView) -> bool {
    let is_same = |now: &_, before: &_| MemberKey::from(now) == MemberKey::from(before);
    let has_reported = |before| match now.members.iter().find(|member| is_same(*member, before)) {
        Some(member) => member.report.time_ns != before.report.time_ns,
        None => true,
    };
    before.members.iter().all(has_reported)
}

/// Prints the ledger as it is, for `cistern pool`.
pub fn print_pool(dir: &Path, json: bool) -> Result<u8> {
    let pool = Ledger::read(dir)?;
    if json {
        print(&(text::ascii_json(&serde_json::to_string(&pool)?) + "\n"));
        return Ok(0);
    }
    // What takes two looks is not in one.
    let columns: Vec<_> =
        Column::ALL.into_iter().filter(|column| !matches!(column, Column::Refaults | Column::Stall)).collect();
    let rows: Vec<_> = pool.members.iter().map(|member| Row { member, course: None }).collect();
    print(&table::plain(&pool, dir, &columns, &rows, width()));
    Ok(0)
}

/// Cells of a line on stdout: what is no terminal has room for everything.
fn width() -> usize {
    match terminal::size() {
        Ok((width, _)) if width > 0 && io::stdout().is_terminal() => width.into(),
        _ => usize::MAX,
    }
}

/// Whoever closed stdout does not want to read it.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::fixtures::{member, pool};
    use super::*;

    #[test]
    fn json_has_the_names_users_rely_on() {
        let json = serde_json::to_value(pool(vec![member("web", 0)])).expect("a value");
        for key in ["budget_bytes", "free_bytes", "state", "leader", "members"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!((json["state"].as_str(), json["leader"].as_str()), (Some("soft"), Some("web")));
        let keys = ["name", "pid", "size_bytes", "grant_bytes", "charge_bytes", "active_bytes", "ballooned_bytes"];
        for key in keys {
            assert!(!json["members"][0][key].is_null(), "{key}");
        }
    }

    #[test]
    fn a_report_of_everybody_ends_the_wait() {
        let before = pool(vec![member("web", 0), member("db", 1)]);
        let mut now = before.clone();
        assert!(!have_all_reported_since(&before, &now));
        now.members[0].report.time_ns += 1;
        assert!(!have_all_reported_since(&before, &now));
        now.members[1].id.generation += 1;
        assert!(have_all_reported_since(&before, &now), "the other has left");
    }
}
