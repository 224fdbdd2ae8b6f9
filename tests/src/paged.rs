//! A guest in a VM with a pager, and what is counted there.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::control::ask;
use crate::guests::Guest;
use crate::process::{Finished, LIMIT, Running, binary, probe, target_folder};

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// A folder that goes away with the test, on the disk cargo builds on: swapping to memory is refused.
pub fn folder_on_disk() -> TempDir {
    let folder = target_folder().join("tmp");
    fs::create_dir_all(&folder).expect("a folder in the target folder");
    tempfile::tempdir_in(folder).expect("a folder")
}

/// A guest at work, with two virtual CPUs unless its arguments say otherwise.
pub struct PagedVm {
    /// The process.
    pub running: Running,
    folder: TempDir,
}

impl PagedVm {
    /// Runs a probe's program with 128 MiB. In `arguments`, `SWAP` stands for a folder on a disk.
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        Self::start_probe(Command::new(binary()), program, arguments)
    }

    /// The same; `launcher` becomes `cistern`.
    pub fn start_probe(launcher: Command, program: &str, arguments: &[&str]) -> Self {
        let cmdline = format!("probe=\"{program}\"");
        Self::boot(launcher, probe(), &[&["--cmdline", &cmdline], arguments].concat())
    }

    /// The test's Linux, which runs these words of its shell; `launcher` becomes `cistern`.
    pub fn start_linux(launcher: Command, words: &str, arguments: &[&str]) -> Self {
        let kernel = Guest::Vmlinux.build().expect("the kernel");
        let initrd = Guest::Initramfs.build().expect("the initramfs");
        let initrd = initrd.to_str().expect("test paths are plain");
        let cmdline = format!("init.run=\"{words}\"");
        Self::boot(launcher, &kernel, &[&["--initrd", initrd, "--cmdline", &cmdline], arguments].concat())
    }

    fn boot(mut command: Command, kernel: &Path, arguments: &[&str]) -> Self {
        let folder = folder_on_disk();
        fs::create_dir(folder.path().join("swap")).expect("a folder");
        command.args(["run", "--kernel"]).arg(kernel);
        for (flag, default) in [("--memory", "128M"), ("--cpus", "2")] {
            if !arguments.contains(&flag) {
                command.args([flag, default]);
            }
        }
        command.arg("--api-sock").arg(folder.path().join("socket")).stdin(Stdio::piped());
        for argument in arguments {
            match *argument {
                "SWAP" => command.arg(folder.path().join("swap")),
                other => command.arg(other),
            };
        }
        Self { running: Running::spawn(command), folder }
    }

    /// Where its swap file lies, if it has one.
    pub fn swap_folder(&self) -> PathBuf {
        self.folder.path().join("swap")
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The pager's counters; waits for the socket to be there.
    pub fn memory(&mut self) -> Value {
        let socket = self.socket();
        let deadline = Instant::now() + LIMIT;
        // The file is there a moment before anybody listens.
        while UnixStream::connect(&socket).is_err() && Instant::now() < deadline {
            assert!(!self.running.has_ended(), "the VM has ended");
            thread::sleep(Duration::from_millis(5));
        }
        ask(&socket, "GET", "/memory", "").json()
    }

    /// Waits until the counters satisfy `wanted`, and returns them.
    #[track_caller]
    pub fn wait_for_memory(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let memory = self.memory();
            if wanted(&memory) {
                return memory;
            }
            assert!(Instant::now() < deadline, "no {what} in time: {}", without_histograms(memory));
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the probe's loop that goes on until it is told (`repeat:told`).
    #[track_caller]
    pub fn tell(&mut self) {
        self.running.stdin().write_all(b"!").expect("the guest's console");
    }

    /// Sets the limit; `None` lifts it.
    #[track_caller]
    pub fn limit(&self, bytes: Option<u64>) {
        self.patch("/memory", &json!({"resident_bytes": bytes}));
    }

    /// Sets what the balloon shall take.
    #[track_caller]
    pub fn inflate(&self, mebibytes: u64) {
        self.patch("/balloon", &json!({"amount_mib": mebibytes}));
    }

    #[track_caller]
    fn patch(&self, path: &str, body: &Value) {
        let answer = ask(&self.socket(), "PATCH", path, &body.to_string());
        assert_eq!(answer.status, 204, "{path} {body}: {answer:?}");
    }

    /// Waits for this many more verifies to end, all of them good.
    #[track_caller]
    pub fn wait_for_verifies(&mut self, count: usize) {
        for _ in 0..count {
            let verify = self.running.wait_for_phase("verify");
            assert!(verify["bad"] == 0 && verify["pages"].as_u64() > Some(0), "{verify}");
        }
    }

    /// Stops it through its socket. No phase has found a bad page.
    #[track_caller]
    pub fn stop(self) -> Finished {
        let answer = ask(&self.socket(), "PUT", "/actions", r#"{"action_type": "InstanceStop"}"#);
        assert_eq!(answer.status, 204, "{answer:?}");
        expect_good(self.running.finish(LIMIT).expect_status(0))
    }

    /// Waits for its own end, which is that of a program without bad pages.
    #[track_caller]
    pub fn finish(self) -> Finished {
        expect_good(self.running.finish(LIMIT).expect_status(0))
    }
}

/// Fails if any phase has found a bad page. The last line may be cut short by a stop.
#[track_caller]
fn expect_good(finished: Finished) -> Finished {
    let lines = finished.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for line in lines {
        assert!(line["phase"] != "bad" && (line["bad"].is_null() || line["bad"] == 0), "{line} in {finished:?}");
    }
    finished
}

/// A counter by its path, like `refaults.zero.pages`.
#[track_caller]
pub fn counter(memory: &Value, path: &str) -> u64 {
    let found = path.split('.').fold(memory, |value, key| &value[key]);
    found.as_u64().unwrap_or_else(|| panic!("no {path} in {memory}"))
}

/// Fails unless pages have come back from each of these homes.
#[track_caller]
pub fn expect_homes(memory: &Value, homes: &[&str]) {
    for home in homes {
        assert!(counter(memory, &format!("refaults.{home}.pages")) > 0, "{home}: {memory}");
    }
}

/// Counters, short enough to be read.
pub fn without_histograms(mut memory: Value) -> Value {
    for source in ["first_touch", "aside", "zero", "duplicate", "compressed", "swapped"] {
        if let Some(source) = memory["refaults"][source].as_object_mut() {
            source.remove("latency");
        }
    }
    memory
}

/// Descriptors of a process that are files in this folder, deleted or without a name.
pub fn files_open_in(pid: u32, folder: &Path) -> Vec<PathBuf> {
    let folder = folder.canonicalize().expect("a folder");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let paths = descriptors.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| fs::read_link(path).is_ok_and(|target| target.starts_with(&folder))).collect()
}
