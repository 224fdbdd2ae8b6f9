//! `cistern` as a process under test.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take that should take seconds: hosts that interpret a guest's kernel are slow, busy ones
/// more so.
pub const LIMIT: Duration = Duration::from_secs(600);

/// The folder of this build's binaries: tests and benches lie in PROFILE/deps, `experiments` in PROFILE.
fn profile_folder() -> PathBuf {
    let program = env::current_exe().expect("a program knows its path");
    let folder = program.parent().expect("a program lies in a folder");
    let deps = folder.ends_with("deps").then(|| folder.parent().expect("deps lies in PROFILE"));
    deps.unwrap_or(folder).to_owned()
}

/// Cargo's target folder.
pub fn target_folder() -> PathBuf {
    profile_folder().parent().expect("profiles lie in the target folder").to_owned()
}

/// The `cistern` binary of this build, brought up to date once: Cargo builds binaries only for tests of their own
/// package. Where there is no cargo, as in the nested host, that is done before.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let folder = profile_folder();
        if !Path::new(env!("CARGO")).exists() {
            return folder.join("cistern");
        }
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("no profile in {}", folder.display()),
        };
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "cistern", "--profile", profile, "--target-dir"])
            .arg(target_folder())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo starts");
        assert!(status.success(), "building cistern failed");
        folder.join("cistern")
    })
}

/// The probe as a file to boot.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let path = target_folder().join(format!("probe-{}.elf", std::process::id()));
        let status = Command::new(binary()).args(["guest", "write", "probe"]).arg(&path).status();
        assert!(status.expect("cistern starts").success(), "writing the probe failed");
        path
    })
}

/// Whether this may change what is the whole host's.
pub fn is_root() -> bool {
    // SAFETY: a plain system call.
    unsafe { libc::geteuid() == 0 }
}

/// Waits until it is so.
///
/// # Panics
/// If it is not within [`LIMIT`].
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Has a command get a signal when the thread that starts it ends, however that comes: a test that is killed leaves nothing
/// behind (`PR_SET_PDEATHSIG`, prctl(2)).
pub fn ends_with_this_thread(command: &mut Command, signal: libc::c_int) {
    let parent = std::process::id() as libc::pid_t;
    // SAFETY: prctl with PR_SET_PDEATHSIG and getppid are async-signal-safe and touch nothing of the parent's.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            // It may have ended before that.
            0 if libc::getppid() == parent => Ok(()),
            0 => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// The processes that this one has started and not waited for (proc(5), `/proc/PID/task/TID/children`): it costs little, and may
/// be asked a hundred times a second.
pub fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let started: Vec<String> =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok()).collect();
    started.iter().flat_map(|pids| pids.split_ascii_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

/// What a finished `cistern` left.
#[derive(Debug)]
pub struct Finished {
    /// Exit status; `None` for a signal.
    pub status: Option<i32>,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

/// Runs `cistern` to its end.
pub fn cistern(arguments: &[&str]) -> Finished {
    Running::start(arguments).finish(LIMIT)
}

/// A `cistern` at work. Killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    /// Starts `cistern` with stdin empty.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, Stdio::null())
    }

    /// Starts `cistern` with this stdin.
    pub fn start_with(arguments: &[&str], stdin: Stdio) -> Self {
        let mut command = Command::new(binary());
        command.args(arguments).stdin(stdin);
        Self::spawn(command)
    }

    /// Starts a command that is `cistern`, or becomes it.
    pub fn spawn(command: Command) -> Self {
        Self::spawn_to(command, Stdio::piped())
    }

    /// Starts such a command with this stdout; its lines are seen here when that is [`Stdio::piped`].
    ///
    /// What the process's first thread starts is killed with it, however it ends: other threads may end before what they start.
    pub fn spawn_to(mut command: Command, stdout: Stdio) -> Self {
        // SAFETY: a plain system call.
        if unsafe { libc::gettid() } as u32 == std::process::id() {
            ends_with_this_thread(&mut command, libc::SIGKILL);
        }
        let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("the command starts");
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                let mut reader = BufReader::new(stdout);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    if sender.send(text).is_err() {
                        break;
                    }
                    line.clear();
                }
            });
        }
        let mut stderr = child.stderr.take().expect("piped");
        let stderr = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, lines, seen: Vec::new(), stderr: Some(stderr) }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The guest's stdin, when it was started with a pipe.
    pub fn stdin(&mut self) -> &mut std::process::ChildStdin {
        self.child.stdin.as_mut().expect("started with a piped stdin")
    }

    /// True when it is over.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_some()
    }

    /// Ends the guest's stdin.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a plain system call; the child is not reaped yet, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Takes note of what was said so far: what is waited for comes later.
    pub fn catch_up(&mut self) {
        self.new_lines();
    }

    /// The lines that were said since the last look, without waiting.
    pub fn new_lines(&mut self) -> Vec<String> {
        let lines: Vec<String> = self.lines.try_iter().collect();
        self.seen.extend_from_slice(&lines);
        lines
    }

    /// Waits for a line of output that satisfies `wanted`.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what} in time; so far:\n{}", self.seen.join("\n")),
                Err(RecvTimeoutError::Disconnected) => {
                    let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
                    panic!("ended without {what}; output:\n{}\nstderr:\n{stderr}", self.seen.join("\n"));
                }
            }
        }
    }

    /// Waits for the probe's report of a phase.
    pub fn wait_for_phase(&mut self, phase: &str) -> Value {
        let is_phase = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|value| value["phase"] == phase);
        let line = self.wait_for(&format!("phase {phase}"), is_phase);
        serde_json::from_str(&line).expect("it was parsed before")
    }

    /// Waits for the end.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let status = self.wait(limit);
        self.seen.extend(self.lines.iter());
        Finished {
            status: status.code(),
            stdout: self.seen.join("\n"),
            stderr: self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default(),
        }
    }

    fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                self.seen.extend(self.lines.iter());
                panic!("not done within {limit:?}; output:\n{}", self.seen.join("\n"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// The lines the probe printed, parsed. One that was killed may have been in the middle of its last.
    pub fn reports(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}\n{self:?}"));
        let mut lines: Vec<&str> = self.stdout.lines().collect();
        if self.status.is_none() {
            lines.pop_if(|line| serde_json::from_str::<Value>(line).is_err());
        }
        lines.into_iter().map(parse).collect()
    }

    /// The reports of one phase.
    pub fn phase(&self, name: &str) -> Vec<Value> {
        self.reports().into_iter().filter(|report| report["phase"] == name).collect()
    }

    /// Fails unless it ended with this status.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails unless every `verify` was good and there were this many.
    #[track_caller]
    pub fn expect_verified(self, times: usize) -> Self {
        let verifies = self.phase("verify");
        assert_eq!(verifies.len(), times, "{self:?}");
        for verify in &verifies {
            assert_eq!(verify["bad"], 0, "{self:?}");
            assert!(verify["pages"].as_u64().is_some_and(|pages| pages > 0), "{self:?}");
        }
        self
    }
}
