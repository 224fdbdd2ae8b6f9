//! `cistern density --json` as a child that is looked at until it ends.

use std::io;
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cistern_tests::process::ends_with_this_thread;
use serde_json::Value;

/// One that runs.
pub struct Density {
    pid: u32,
    started: Instant,
    ended: JoinHandle<io::Result<Output>>,
}

impl Density {
    /// Starts it. It ends with the thread that calls this, and its guests with it, those that are stopped as well.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        ends_with_this_thread(command, libc::SIGTERM);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("{} does not start", command.get_program().display()))?;
        let (pid, started) = (child.id(), Instant::now());
        Ok(Self { pid, started, ended: thread::spawn(move || child.wait_with_output()) })
    }

    /// The process whose children are the guests.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Calls `look` with the seconds since it was started, every so often until it has ended; then its report.
    ///
    /// # Errors
    /// It has made no report: what it says instead.
    pub fn watch(self, interval: Duration, mut look: impl FnMut(f64)) -> Result<Value> {
        while !self.ended.is_finished() {
            look(self.started.elapsed().as_secs_f64());
            thread::sleep(interval);
        }
        let output = self.ended.join().expect("it only waits")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }
}
