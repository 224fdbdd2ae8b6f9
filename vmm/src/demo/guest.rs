//! A guest of the demo: a `cistern run` of its own.

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result};

use super::acts::{ACTS, Act, BUDGET, Doing, MEMORY, doing};
use super::merging::Merging;
use super::place::Place;
use super::progress::Progress;
use super::watch::Watched;

/// A guest that takes longer than this is stuck, however slow the host is.
const TIMEOUT_SECONDS: &str = "300";

/// What a guest's process wrote.
pub enum Line {
    /// The guest, on its console.
    Console(String),
    /// The VMM, on stderr.
    Complaint(String),
}

/// Lines of all guests, with the guest's number.
pub type Lines = Sender<(usize, Line)>;

/// A guest at work.
pub struct Guest {
    /// What it does.
    pub act: &'static Act,
    /// What it has told.
    pub progress: Progress,
    program: String,
    socket: PathBuf,
    child: Child,
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
        let mut command = Command::new(env::current_exe().context("finding this program")?);
        // SAFETY: its calls are async-signal-safe and touch nothing of this process.
        unsafe { command.pre_exec(belong_to_the_demo) };
        command
            .args(["run", "--name", act.name, "--timeout", TIMEOUT_SECONDS])
            .args(["--memory", &MEMORY.to_string(), "--budget", &BUDGET.to_string(), "--pool"])
            .arg(place.pool())
            .arg("--api-sock")
            .arg(&socket)
            .arg("--kernel")
            .arg(place.kernel())
            .args(["--cmdline", &format!("probe=\"{program}\"")]);
        if let Some(swap) = place.swap() {
            command.arg("--swap").arg(swap);
        }
        if let Some(merging) = merging {
            command.args(merging.flags());
        }
        // Keys are the demo's: in a process group of its own a guest has no part in Ctrl-C.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting a guest")?;
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        forward(stdout, lines.clone(), move |line| (nth, Line::Console(line)));
        forward(stderr, lines.clone(), move |line| (nth, Line::Complaint(line)));
        Ok(Self { act, progress: Progress::default(), program, socket, child })
    }

    /// What is to be known to look at it from outside.
    pub fn watched(&self) -> Watched {
        Watched { pid: self.child.id(), socket: self.socket.clone() }
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
        let status = self.child.wait().context("waiting for a guest")?;
        self.progress.end(status.code());
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Already gone in the usual case; otherwise the demo ends early and takes its guests along.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends on what is read, line by line, until nobody wants it.
fn forward(from: impl Read + Send + 'static, to: Lines, line: impl Fn(String) -> (usize, Line) + Send + 'static) {
    thread::spawn(move || {
        for text in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(line(text)).is_err() {
                break;
            }
        }
    });
}

/// Lets the kernel kill this process when the one that started it ends, however it ends, and lets signals through that
/// are only the other's to wait for.
fn belong_to_the_demo() -> io::Result<()> {
    // SAFETY: plain system calls; the set is made valid by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            || libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
