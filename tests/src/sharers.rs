//! Guests of one pool with room for all, that share once they are told to, and what they cost by the kernel's account.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::ask;
use crate::guest_memory::GuestMemory;
use crate::guests::Guest;
use crate::ksm::DrivenPool;
use crate::paged::folder_on_disk;
use crate::process::{LIMIT, Running, binary, probe};
use crate::watch::Still;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A pool that is never short.
const BUDGET: &str = "8G";

/// A guest with one virtual CPU.
pub struct Member {
    /// The process.
    pub running: Running,
    socket: PathBuf,
    /// What it had touched when it began to share.
    touched_bytes: u64,
}

/// See the top of this file.
pub struct Guests {
    /// In the order in which they came.
    pub members: Vec<Member>,
    // Dropped after them, and before the folder.
    pool: DrivenPool,
    folder: TempDir,
}

impl Guests {
    /// Nobody yet.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        let folder = folder_on_disk();
        Self { members: Vec::new(), pool: DrivenPool::new(&folder.path().join("pool")), folder }
    }

    /// A probe that runs this program.
    pub fn start_probe(&mut self, program: &str, arguments: &[&str]) {
        let cmdline = format!("probe=\"{program}\"");
        self.start(probe(), &[&["--cmdline", &cmdline], arguments].concat());
    }

    /// The test's Linux, which runs this.
    pub fn start_linux(&mut self, command: &str, arguments: &[&str]) {
        let kernel = Guest::Vmlinux.build().expect("the kernel");
        let initrd = Guest::Initramfs.build().expect("the initramfs");
        let initrd = initrd.to_str().expect("test paths are plain");
        let cmdline = format!("init.run=\"{command}\"");
        self.start(&kernel, &[&["--initrd", initrd, "--cmdline", &cmdline], arguments].concat());
    }

    /// Nothing is shared until [`Guests::share`].
    fn start(&mut self, kernel: &Path, arguments: &[&str]) {
        let name = format!("vm{}", self.members.len());
        let socket = self.folder.path().join(&name);
        let mut command = Command::new(binary());
        command.args(["run", "--name", &name, "--pool"]).arg(self.pool.folder());
        command.args(["--budget", BUDGET, "--sharing", "off", "--ksm-tune", "--api-sock"]).arg(&socket);
        command.arg("--kernel").arg(kernel).args(arguments).stdin(Stdio::null());
        let running = Running::spawn(command);
        self.members.push(Member { running, socket, touched_bytes: 0 });
    }

    /// They have come before other work so far, and do not any more: ksmd, which comes after all, would not come to anything.
    pub fn give_way(&self) {
        self.pids().for_each(give_way);
    }

    /// Those that do not share yet do from now on: zero pages, and equal ones by KSM.
    pub fn share(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.touched_bytes == 0) {
            member.touched_bytes = GuestMemory::of(member.running.pid()).expect("it runs").resident_bytes;
            let answer = ask(&member.socket, "PATCH", "/sharing", &json!({"mechanisms": "zero,ksm"}).to_string());
            assert_eq!(answer.status, 204, "{answer:?}");
        }
    }

    /// What all of them have at one moment.
    pub fn memory(&self) -> GuestMemory {
        let _still = Still::all(self.pids());
        self.pids().map(|pid| GuestMemory::of(pid).expect("it runs")).sum()
    }

    /// What they had touched when they began to share.
    pub fn touched_bytes(&self) -> u64 {
        self.members.iter().map(|member| member.touched_bytes).sum()
    }

    /// CPU time of their scanners.
    pub fn scanners_cpu(&self) -> Duration {
        let of = |member: &Member| member.sharing()["cpu_ns"].as_u64().expect("a number");
        Duration::from_nanos(self.members.iter().map(of).sum())
    }

    /// Their processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().map(|member| member.running.pid())
    }

    /// Looks every second until nothing more is saved, or so much is shared of what was touched, in percent; what was saved by
    /// when, in parts of what was touched.
    #[track_caller]
    pub fn settle(&self, enough_percent: Option<f64>) -> Vec<(Duration, f64)> {
        let (start, touched_bytes) = (Instant::now(), self.touched_bytes() as f64);
        let (mut course, mut best, mut improved) = (Vec::new(), f64::NEG_INFINITY, start);
        loop {
            let memory = self.memory();
            let saved = 1.0 - memory.proportional_bytes as f64 / touched_bytes;
            course.push((start.elapsed(), saved));
            if saved > best + NOTICEABLE {
                (best, improved) = (saved, Instant::now());
            }
            match enough_percent {
                Some(percent) if self.shared_percent(&memory) >= percent => return course,
                Some(percent) => {
                    assert!(start.elapsed() < LIMIT, "{:.1} % shared of {percent}", self.shared_percent(&memory));
                }
                None if improved.elapsed() >= QUIET || start.elapsed() >= SETTLE_LIMIT => return course,
                None => {}
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// What of that is shared: given back as zero, which is what the one zero page of others would be, or merged.
    pub fn shared_percent(&self, memory: &GuestMemory) -> f64 {
        let touched_bytes = self.touched_bytes();
        let zero_bytes = touched_bytes.saturating_sub(memory.resident_bytes);
        (memory.merged_bytes + zero_bytes) as f64 * 100.0 / touched_bytes as f64
    }
}

/// So long nothing has been saved that is worth mentioning.
const QUIET: Duration = Duration::from_secs(25);
const NOTICEABLE: f64 = 0.003;

/// However long it goes on.
const SETTLE_LIMIT: Duration = Duration::from_secs(240);

impl Member {
    /// What it says of its sharing.
    pub fn sharing(&self) -> Value {
        ask(&self.socket, "GET", "/sharing", "").json()
    }
}

fn give_way(pid: u32) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    for thread in tasks.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        // SAFETY: plain numbers; a thread that has ended meanwhile is no matter.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, 0) };
    }
}

/// CPU time the kernel's merging thread has had since the host started.
pub fn ksmd_cpu() -> Duration {
    let is_ksmd = |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "ksmd\n");
    let processes = fs::read_dir("/proc").expect("processes").flatten().map(|entry| entry.path());
    let ksmd = processes.into_iter().find(|path| is_ksmd(path)).expect("a kernel with KSM");
    let text = fs::read_to_string(ksmd.join("schedstat")).expect("a kernel that counts");
    let ns = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(ns.expect("schedstat begins with a time in ns"))
}
