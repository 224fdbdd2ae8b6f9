//! A VM in this process, so that a bench reaches its pager and its memory. Its guest is the probe.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cistern::config::ConsoleTarget;
use cistern::machine::Machine;
use cistern::options::RunOptions;
use cistern::outcome::Outcome;
use cistern::size::Size;
use cistern::supervisor::Controls;
use cistern::verdict::Verdict;
use cistern_memory::GuestRam;
use cistern_memory::pager::Pager;
use cistern_tests::process::{LIMIT, probe};
use serde_json::Value;

/// What the probe's steps work on.
pub const FILL_BYTES: u64 = 64 << 20;
/// The same in pages.
pub const FILL_PAGES: u64 = FILL_BYTES / cistern_memory::PAGE_SIZE;
/// Guest memory: the fill, and room for the probe itself.
const MEMORY: Size = Size::mebibytes(96);

/// A running VM; stopped when dropped.
pub struct Vm {
    pub ram: Arc<GuestRam>,
    pub pager: Arc<Pager>,
    verdict: Arc<Verdict>,
    thread: Option<JoinHandle<()>>,
    console: PathBuf,
    /// Bytes of the console that were looked at.
    seen: usize,
    /// Keeps the console's file.
    _folder: tempfile::TempDir,
}

impl Vm {
    /// An open VM that runs a program of the probe's.
    pub fn start(program: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let console = folder.path().join("console");
        let options = RunOptions {
            kernel: Some(probe().to_owned()),
            memory: Some(MEMORY),
            cmdline: Some(format!("probe=\"{program}\"")),
            console: Some(ConsoleTarget::File(console.clone())),
            ..RunOptions::default()
        };
        let machine = Machine::build(&options.resolve().expect("right options")).expect("KVM");
        let (ram, pager) = (Arc::clone(machine.ram()), Arc::clone(machine.pager()));
        let verdict = Arc::clone(machine.verdict());
        let thread = thread::spawn(move || {
            if let Err(error) = machine.run(Controls::default()) {
                panic!("{error}");
            }
        });
        Self { ram, pager, verdict, thread: Some(thread), console, seen: 0, _folder: folder }
    }

    /// Waits for the probe's next report of a phase.
    pub fn wait_for(&mut self, phase: &str) -> Value {
        self.wait_for_while(phase, || ())
    }

    /// The same; meanwhile does something every few milliseconds.
    pub fn wait_for_while(&mut self, phase: &str, mut meanwhile: impl FnMut()) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = fs::read_to_string(&self.console).unwrap_or_default();
            while let Some(length) = text[self.seen..].find('\n') {
                let line = &text[self.seen..self.seen + length];
                self.seen += length + 1;
                let report: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                assert!(report.get("error").is_none() && report["phase"] != "bad", "{line}");
                if report["phase"] == phase {
                    return report;
                }
            }
            assert!(Instant::now() < deadline, "no {phase} in time; so far:\n{text}");
            meanwhile();
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.verdict.reach(Ok(Outcome::Stopped));
        // A panic has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Resident memory of this process.
pub fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("this process is there");
    let pages = text.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok());
    pages.expect("the second word of statm is a number") * cistern_memory::PAGE_SIZE
}
