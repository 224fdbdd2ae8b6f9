//! A pool of probes under pressure, and what its members take together as the kernel counts it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cistern_memory::ledger::{Ledger, Level, PoolView};
use serde_json::Value;
use tempfile::TempDir;

use crate::control::ask;
use crate::ksm::DrivenPool;
use crate::paged::{MIB, counter, folder_on_disk, without_histograms};
use crate::process::{LIMIT, Running, binary, probe};
use crate::samples::{Sampler, Samples};
use crate::watch::{Still, pss_bytes};

/// How often is looked at all members together.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long is waited for what takes a pool a second or two.
const PATIENCE: Duration = Duration::from_secs(120);

/// The processes of a pool that take memory now. Whoever reaps one takes it out first: its number may be another's then.
type Processes = Arc<Mutex<Vec<u32>>>;

/// A pool in a folder of its own.
pub struct Storm {
    /// Its members, the oldest first.
    pub members: Vec<Probe>,
    budget_bytes: u64,
    started: usize,
    processes: Processes,
    // Dropped after them, and before the folder.
    pool: DrivenPool,
    folder: TempDir,
}

/// A member.
pub struct Probe {
    /// Its name in the pool.
    pub name: String,
    /// The process.
    pub running: Running,
    /// Its control socket.
    pub socket: PathBuf,
}

impl Storm {
    /// A pool without members.
    pub fn new(budget_mib: u64) -> Self {
        let folder = folder_on_disk();
        fs::create_dir(folder.path().join("swap")).expect("a folder");
        let pool = DrivenPool::new(&folder.path().join("pool"));
        let (processes, members) = (Processes::default(), Vec::new());
        Self { members, budget_bytes: budget_mib * MIB, started: 0, processes, pool, folder }
    }

    /// Starts a probe with one virtual CPU and a swap file, unless `arguments` say otherwise.
    pub fn start(&mut self, memory_mib: u64, program: &str, arguments: &[&str]) {
        let name = format!("vm{}", self.started);
        self.started += 1;
        let socket = self.folder.path().join(&name);
        let mut command = Command::new(binary());
        command.args(["run", "--name", &name, "--cmdline", &format!("probe=\"{program}\""), "--kernel"]);
        command.arg(probe()).arg("--api-sock").arg(&socket).arg("--pool").arg(self.pool());
        command.args(["--memory", &format!("{memory_mib}M"), "--budget", &self.budget_bytes.to_string()]);
        command.arg("--swap").arg(self.folder.path().join("swap")).args(arguments).stdin(Stdio::null());
        let running = Running::spawn(command);
        self.lock().push(running.pid());
        self.members.push(Probe { name, running, socket });
    }

    /// The pool's folder.
    pub fn pool(&self) -> PathBuf {
        self.pool.folder().to_owned()
    }

    /// What its members may take together.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// The member with this process.
    #[track_caller]
    pub fn member(&self, pid: u32) -> &Probe {
        self.members.iter().find(|member| member.running.pid() == pid).expect("it is a member")
    }

    /// Waits until `wanted`; all members live.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(self) {
            self.expect_alive();
            assert!(Instant::now() < deadline, "no {what} in time: {:?}", self.view());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The pool by its own account.
    #[track_caller]
    pub fn view(&self) -> PoolView {
        Ledger::read(&self.pool()).expect("the pool can be read")
    }

    /// Waits until the pool's own account satisfies `wanted`; all members live.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&PoolView) -> bool) -> PoolView {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.expect_alive();
            if let Ok(view) = Ledger::read(&self.pool()) {
                if wanted(&view) {
                    return view;
                }
                assert!(Instant::now() < deadline, "no {what} in time: {view:?}");
            }
            assert!(Instant::now() < deadline, "no {what} in time, and no pool");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails if a member has ended.
    #[track_caller]
    pub fn expect_alive(&mut self) {
        for member in &mut self.members {
            if member.running.has_ended() {
                member.running.wait_for("life", |_| false);
            }
        }
    }

    /// Kills a member. Its memory is free when this returns.
    #[track_caller]
    pub fn kill(&mut self, pid: u32) {
        let at = self.members.iter().position(|member| member.running.pid() == pid).expect("it is a member");
        let member = self.members.remove(at);
        self.lock().retain(|&process| process != pid);
        member.running.signal(libc::SIGKILL);
        let finished = member.running.finish(LIMIT);
        assert_eq!(finished.status, None, "{finished:?}");
        expect_good(&finished.stdout);
    }

    /// What all members take, at one moment.
    pub fn taken_bytes(&self) -> u64 {
        taken_bytes(&self.lock(), &[])
    }

    /// What all members take, at one moment, one of which is stopped and stays so.
    pub fn taken_bytes_beside(&self, stopped: u32) -> u64 {
        taken_bytes(&self.lock(), &[stopped])
    }

    /// What all members have done at a level, by the name of a counter. All have started.
    #[track_caller]
    pub fn at_level(&self, level: Level, name: &str) -> u64 {
        self.members.iter().map(|member| member.at_level(level, name)).sum()
    }

    /// What has become of it, short enough to be read.
    #[track_caller]
    pub fn summary(&self) -> String {
        let of_member = |member: &Probe| {
            let pool = member.memory()["pool"].take();
            let number = |name: &str| pool[name].as_u64().unwrap_or(0) >> 10;
            let levels = pool["levels"].as_array().into_iter().flatten().map(|level| {
                let number = |name: &str| level[name].as_u64().unwrap_or(0);
                format!(
                    "{} times {} ms: {} evicted, {} written, {} KiB by balloon, {} waits",
                    number("entered"),
                    number("time_ns") / 1_000_000,
                    number("evicted_pages"),
                    number("written_pages"),
                    number("balloon_given_bytes") >> 10,
                    number("waits_seen")
                )
            });
            format!(
                "{}: {} of {} KiB granted, may grow to {}, reclaim to {}, {}\n  {}\n",
                member.name,
                number("charge_bytes"),
                number("grant_bytes"),
                number("grow_to_bytes"),
                pool["reclaim_to_bytes"],
                pool["balloon"],
                levels.collect::<Vec<_>>().join("\n  ")
            )
        };
        self.members.iter().map(of_member).collect()
    }

    /// Looks at what all members take, all the while.
    pub fn watch(&self) -> PoolWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, processes) = (Arc::clone(&stop), Arc::clone(&self.processes));
        let thread = thread::spawn(move || {
            let (mut taken_most_bytes, mut looks) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let looked = Instant::now();
                let bytes = taken_bytes(&processes.lock().unwrap_or_else(PoisonError::into_inner), &[]);
                taken_most_bytes = bytes.max(taken_most_bytes);
                looks += 1;
                // On a busy machine it takes a while to stop them all: they are to run most of the time nevertheless.
                thread::sleep(INTERVAL.max(3 * looked.elapsed()));
            }
            (taken_most_bytes, looks)
        });
        PoolWatch { stop, thread, sampler: self.sample() }
    }

    /// Samples what all members take, without stopping them for it.
    pub fn sample(&self) -> Sampler {
        Sampler::start(Arc::clone(&self.processes))
    }

    /// Stops all members. None has found a bad page, nor reported a lost one.
    #[track_caller]
    pub fn stop(self) {
        for member in &self.members {
            let answer = ask(&member.socket, "PUT", "/actions", r#"{"action_type": "InstanceStop"}"#);
            assert_eq!(answer.status, 204, "{}: {answer:?}", member.name);
        }
        for member in self.members {
            self.processes.lock().unwrap_or_else(PoisonError::into_inner).retain(|&pid| pid != member.running.pid());
            expect_good(&member.running.finish(LIMIT).expect_status(0).stdout);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe {
    /// Its counters. It has started.
    #[track_caller]
    pub fn memory(&self) -> Value {
        without_histograms(ask(&self.socket, "GET", "/memory", "").json())
    }

    /// What it has done at a level, by the name of a counter.
    #[track_caller]
    pub fn at_level(&self, level: Level, name: &str) -> u64 {
        counter(&self.memory()["pool"]["levels"][level as usize], name)
    }

    /// Waits for the next verify to end, a good one.
    #[track_caller]
    pub fn wait_for_verify(&mut self) {
        self.running.catch_up();
        let verify = self.running.wait_for_phase("verify");
        assert!(verify["bad"] == 0 && verify["pages"].as_u64() > Some(0), "{}: {verify}", self.name);
    }
}

/// Fails if any phase has found a bad page. The last line may be cut short by a stop.
#[track_caller]
fn expect_good(output: &str) {
    for line in output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        assert!(line["phase"] != "bad" && (line["bad"].is_null() || line["bad"] == 0), "{line}");
    }
}

/// What processes take together. All stand still while they are counted, or pages that one has given up and another has
/// taken would be counted twice. `stopped` ones do so anyway, and go on doing so.
fn taken_bytes(processes: &[u32], stopped: &[u32]) -> u64 {
    let still = Still::all(processes.iter().copied().filter(|pid| !stopped.contains(pid)));
    let bytes = processes.iter().filter_map(|&pid| pss_bytes(pid)).sum();
    drop(still);
    bytes
}

/// The most that was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolPeak {
    /// Taken by all members at one moment.
    pub taken_bytes: u64,
    /// Times it was looked.
    pub looks: u64,
    /// Looks in between, less exact.
    pub samples: Samples,
}

impl PoolPeak {
    /// Fails unless a budget was exceeded by no more than 1 % at any look and in any sample, of which there were some.
    #[track_caller]
    pub fn expect_within(&self, budget_bytes: u64) {
        let Self { taken_bytes, looks, samples } = self;
        let percent = *taken_bytes as f64 * 100.0 / budget_bytes as f64;
        println!("peak {} KiB ({percent:.1} %) in {looks} looks; {}", taken_bytes >> 10, samples.summary(budget_bytes));
        assert!(*looks >= 10, "{self:?}");
        assert!(*taken_bytes <= budget_bytes / 100 * 101, "{percent:.2} % of the budget");
        samples.expect_within(budget_bytes);
    }
}

/// Looks at a pool until it is finished.
pub struct PoolWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
    sampler: Sampler,
}

impl PoolWatch {
    /// The most that was seen.
    #[track_caller]
    pub fn finish(self) -> PoolPeak {
        self.stop.store(true, Ordering::Relaxed);
        let (taken_bytes, looks) = self.thread.join().expect("the watch is well");
        PoolPeak { taken_bytes, looks, samples: self.sampler.finish() }
    }
}
