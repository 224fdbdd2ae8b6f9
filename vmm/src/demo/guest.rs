//! A guest of the demo: a `cistern run` of its own.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;

use super::acts::{ACTS, Act, BUDGET, Doing, MEMORY, doing};
use super::place::Place;
use super::progress::Progress;
use crate::guest_process::merging::Merging;
use crate::guest_process::watch::Watched;
use crate::guest_process::{GuestProcess, Lines};

/// A guest that takes longer than this is stuck, however slow the host is.
const TIMEOUT_SECONDS: &str = "300";

/// What guests are started with that merge pages.
const MERGING_FLAGS: [&str; 3] = ["--sharing", "zero,store,ksm", "--ksm-tune"];

/// A guest at work.
pub struct Guest {
    /// What it does.
    pub act: &'static Act,
    /// What it has told.
    pub progress: Progress,
    program: String,
    socket: PathBuf,
    process: GuestProcess,
}

impl Guest {
    /// Starts the guest that arrives as the `nth`. It ends when the calling thread does.
    ///
    /// # Errors
    /// No process can be started.
    pub fn start(nth: usize, place: &Place, merging: Option<&Merging>, lines: &Lines) -> Result<Self> {
        let act = &ACTS[nth];
        let program = act.program(nth, place.swap().is_some());
        let socket = place.socket(act.name);
        let mut arguments = Vec::<OsString>::new();
        let mut flag = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        flag("--name", act.name.into());
        flag("--timeout", TIMEOUT_SECONDS.into());
        flag("--memory", MEMORY.to_string().into());
        flag("--budget", BUDGET.to_string().into());
        flag("--pool", place.pool().into());
        flag("--api-sock", socket.clone().into());
        flag("--kernel", place.kernel().into());
        flag("--cmdline", format!("probe=\"{program}\"").into());
        if let Some(swap) = place.swap() {
            flag("--swap", swap.into());
        }
        if merging.is_some() {
            arguments.extend(MERGING_FLAGS.map(OsString::from));
        }
        let process = GuestProcess::start(nth, arguments, lines)?;
        Ok(Self { act, progress: Progress::default(), program, socket, process })
    }

    /// What is to be known to look at it from outside.
    pub fn watched(&self) -> Watched {
        Watched { pid: self.process.pid(), socket: self.socket.clone() }
    }

    /// What it is at.
    pub fn doing(&self) -> Doing {
        self.progress.steps.map_or(Doing::Booting, |steps| doing(&self.program, steps))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait(&mut self) -> Result<()> {
        let status = self.process.wait()?;
        self.progress.end(status.code());
        Ok(())
    }
}
