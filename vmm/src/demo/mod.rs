//! `cistern demo`: a handful of embedded guests at once, each a `cistern run` of its own, watched to their end.

mod progress;
mod view;

use std::env;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cistern::guests::PROBE;
use cistern::size::Size;
use progress::Progress;
use view::View;

/// A guest of the demo.
struct Act {
    name: &'static str,
    memory: Size,
    cpus: u8,
    program: &'static str,
}

/// What each guest does; together they take about ten seconds.
const ACTS: [Act; 5] = [
    Act {
        name: "uniform",
        memory: Size::mebibytes(256),
        cpus: 1,
        program: "fill:96M,zero=20,dup=20,text=40,random=20,seed=1;verify;walk:64M,secs=5,dist=uniform,write=30;verify",
    },
    Act {
        name: "zipf",
        memory: Size::mebibytes(256),
        cpus: 1,
        program: "fill:96M,zero=20,dup=20,text=40,random=20,seed=2;verify;walk:96M,secs=5,dist=zipf,write=30;verify",
    },
    Act {
        name: "two-cpus",
        memory: Size::mebibytes(512),
        cpus: 2,
        program: "fill:128M,text=60,random=40,seed=3;verify;walk:64M,secs=5,dist=sequential,write=10;verify",
    },
    Act {
        name: "idle",
        memory: Size::mebibytes(4096),
        cpus: 1,
        program: "fill:64M,zero=50,text=50,seed=4;verify;idle:5;verify",
    },
    Act {
        name: "giver",
        memory: Size::mebibytes(1024),
        cpus: 1,
        program: "fill:160M,text=50,random=50,seed=5;verify;idle:1;free:128M;idle:4;verify",
    },
];

/// A guest that takes longer than this is stuck.
const TIMEOUT_SECONDS: &str = "25";
const REFRESH: Duration = Duration::from_millis(200);

/// Runs the demo; the status is 0 when every guest verified all its pages and ended well, else 1.
pub fn run(json: bool) -> Result<u8> {
    let folder = tempfile::tempdir().context("temporary folder")?;
    let kernel = folder.path().join("probe");
    PROBE.write(&kernel).with_context(|| kernel.display().to_string())?;

    let start = Instant::now();
    let (sender, lines) = channel();
    let mut guests = Vec::with_capacity(ACTS.len());
    for (index, act) in ACTS.iter().enumerate() {
        guests.push(Running::start(act, index, &kernel, sender.clone())?);
    }
    drop(sender);

    let mut view = View::new(json);
    view.begin(ACTS.len());
    loop {
        match lines.recv_timeout(REFRESH) {
            Ok((index, line)) => {
                let guest: &mut Running = &mut guests[index];
                guest.progress.take_line(&line);
                view.line(guest.act.name, &guest.progress);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Every guest has closed its console.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if view.is_due() {
            guests.iter_mut().for_each(Running::measure);
            view.draw(&guests.iter().map(Running::row).collect::<Vec<_>>());
        }
    }
    for guest in &mut guests {
        let status = guest.child.wait().context("waiting for a guest")?;
        guest.progress.end(status.code());
    }
    view.end(&guests.iter().map(Running::row).collect::<Vec<_>>(), start.elapsed());
    let all_good = guests.iter().all(|guest| guest.progress.is_good(verifies(guest.act.program)));
    Ok(if all_good { 0 } else { 1 })
}

/// How many `verify` steps a program has.
fn verifies(program: &str) -> usize {
    program.split(';').filter(|step| *step == "verify").count()
}

/// A guest at work.
struct Running {
    act: &'static Act,
    child: Child,
    progress: Progress,
}

impl Running {
    fn start(act: &'static Act, index: usize, kernel: &Path, sender: Sender<(usize, String)>) -> Result<Self> {
        let program = env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        // SAFETY: prctl is async-signal-safe and touches nothing of this process. A demo that is killed takes its guests
        // along.
        unsafe { command.pre_exec(die_with_parent) };
        let mut child = command
            .args(["run", "--name", &format!("demo-{}", act.name), "--timeout", TIMEOUT_SECONDS])
            .args(["--memory", &act.memory.to_string(), "--cpus", &act.cpus.to_string()])
            // Two demos at once have guests of the same names.
            .arg("--api-sock")
            .arg(kernel.with_file_name(format!("{}.sock", act.name)))
            .arg("--kernel")
            .arg(kernel)
            .args(["--cmdline", &format!("probe=\"{}\"", act.program)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a guest")?;
        let console = child.stdout.take().expect("stdout is piped");
        thread::spawn(move || {
            for line in BufReader::new(console).lines().map_while(Result::ok) {
                if sender.send((index, line)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { act, child, progress: Progress::default() })
    }

    /// Reads what the guest costs the host now.
    fn measure(&mut self) {
        if let Some(bytes) = pss_bytes(self.child.id()) {
            self.progress.take_memory(bytes);
        }
    }

    fn row(&self) -> view::Row<'_> {
        view::Row { name: self.act.name, cpus: self.act.cpus, size: self.act.memory, progress: &self.progress }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone in the usual case; otherwise the demo ends early and takes its guests along.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the kernel kill this process when the one that started it ends, however it ends.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: a plain system call.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Memory of a process, shared pages divided among their users (kernel Documentation/filesystems/proc.rst).
fn pss_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Pss:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
