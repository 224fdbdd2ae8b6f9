//! Guests as processes of this one: each a `cistern run` of its own, which ends with it.

pub mod cpu;
pub mod held;
pub mod merging;
pub mod resident;
pub mod still;
pub mod watch;

use std::env;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::ptr;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

/// The least of a thread's stack that reads lines.
const STACK_BYTES: usize = 64 << 10;

/// What a guest's process wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The guest, on its console.
    Console(String),
    /// The VMM, on stderr.
    Complaint(String),
    /// The console is closed: the process has ended, or is about to.
    End,
}

/// Which guest, when, and what.
pub type Said = (usize, Instant, Line);

/// Where all guests' lines go.
pub type Lines = Sender<Said>;

/// A running guest. It is killed when this is dropped.
pub struct GuestProcess {
    child: Child,
}

impl GuestProcess {
    /// Starts `cistern run` with these arguments. It ends when the calling thread does; its lines go to `lines`, as those of
    /// guest `number`.
    ///
    /// # Errors
    /// No process can be started.
    pub fn start(number: usize, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, lines: &Lines) -> Result<Self> {
        let mut command = Command::new(env::current_exe().context("finding this program")?);
        let this_process = std::process::id();
        // SAFETY: its calls are async-signal-safe and touch nothing of this process.
        unsafe { command.pre_exec(move || belong_to(this_process)) };
        command.arg("run").args(arguments);
        // Keys are this process's: in a process group of its own a guest has no part in Ctrl-C.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting a guest")?;
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let process = Self { child };
        let to = lines.clone();
        forward(stderr, move |text| {
            to.send((number, Instant::now(), text.map_or(Line::End, Line::Complaint))).is_ok()
        })?;
        let to = lines.clone();
        forward(stdout, move |text| to.send((number, Instant::now(), text.map_or(Line::End, Line::Console))).is_ok())?;
        Ok(process)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the kernel to end it, without waiting for that.
    pub fn kill(&mut self) {
        // One that is gone already is what is wanted.
        let _ = self.child.kill();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("waiting for a guest")
    }
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Sends on what is read, line by line and then `None`, until nobody wants it. Whoever is killed may leave half a line: nobody
/// is to make anything of it.
fn forward(from: impl Read + Send + 'static, send: impl Fn(Option<String>) -> bool + Send + 'static) -> Result<()> {
    let read = move || {
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        // A guest may write anything, and lines without an end.
        while reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let is_whole = line.ends_with(b"\n") || line.len() as u64 == LINE_BYTES_MAX;
            if is_whole && !send(Some(String::from_utf8_lossy(&line).trim_end().to_owned())) {
                return;
            }
            line.clear();
        }
        send(None);
    };
    thread::Builder::new().stack_size(STACK_BYTES).spawn(read).context("starting a thread")?;
    Ok(())
}

/// More of a line is another line.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Lets the kernel end this process when its parent, the one that started it, ends, however it ends, and lets signals through that
/// are only the other's to wait for. It is told to end and not killed: whichever leads the pool then puts KSM back.
fn belong_to(parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls; the set is made valid by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0
            || libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()) != 0
        {
            return Err(io::Error::last_os_error());
        }
        // It may have ended before the kernel was told.
        if libc::getppid().cast_unsigned() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn half_a_line_is_nobodys() {
        let said = |text: &str| -> Vec<Option<String>> {
            let (to, lines) = channel();
            forward(Cursor::new(text.to_owned()), move |line| to.send(line).is_ok()).expect("a thread");
            lines.iter().collect()
        };
        assert_eq!(said("one\r\n\ntwo"), [Some("one".to_owned()), Some(String::new()), None]);
        let long = "x".repeat(LINE_BYTES_MAX as usize + 1);
        assert_eq!(said(&long), [Some(long[1..].to_owned()), None], "one line without end, as far as it goes");
    }
}
