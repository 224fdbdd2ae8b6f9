//! What a VM's manager says that its guest works with, period by period.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::paged::{MIB, PagedVm, counter};
use crate::process::LIMIT;

/// How often is looked: several times in the shortest period anybody samples with.
const INTERVAL: Duration = Duration::from_millis(100);

/// A period that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The walk that was running at its end, from 0.
    pub walk: usize,
    /// That walk was running all the time.
    pub is_whole: bool,
    /// The estimate, in MiB.
    pub active_mib: u64,
    /// The estimate from samples of guest RAM alone, in MiB.
    pub sampled_mib: u64,
    /// The estimate from the dirty log alone, in MiB; `None` before one of its periods has ended.
    pub written_mib: Option<u64>,
}

/// A tracked probe with one CPU in a pool of its own, whose program fills memory once, then walks.
pub struct WalkingVm {
    /// The VM.
    pub vm: PagedVm,
    folder: TempDir,
}

impl WalkingVm {
    /// Starts it.
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = |name: &str| folder.path().join(name).to_str().expect("test paths are plain").to_owned();
        let (pool, console) = (text("pool"), format!("file:{}", text("console")));
        let own = ["--cpus", "1", "--pool", &pool, "--budget", "2G", "--console", &console];
        Self { vm: PagedVm::start(program, &[&own, arguments].concat()), folder }
    }

    /// The reports of a phase so far. The last line may not be complete.
    pub fn reports(&self, phase: &str) -> Vec<Value> {
        let console: PathBuf = self.folder.path().join("console");
        let text = fs::read_to_string(console).unwrap_or_default();
        let reports = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        reports.filter(|report| report["phase"] == phase).collect()
    }

    /// Waits until this many walks are over. Every period that ended after the fill.
    #[track_caller]
    pub fn observe(&mut self, walks: usize) -> Vec<Period> {
        let mut deadline = Instant::now() + LIMIT;
        let mut periods = Vec::new();
        // The number of the last period seen to end, and the walk that was running then.
        let mut last: Option<(u64, usize)> = None;
        loop {
            let walk = self.reports("walk").len();
            if walk == walks {
                return periods;
            }
            assert!(Instant::now() < deadline, "{walk} walks: {periods:?}");
            let pool = self.vm.memory()["pool"].take();
            let ended = counter(&pool, "sample_periods");
            let is_walking = !self.reports("fill").is_empty();
            if is_walking && pool["active"] != Value::Null && last.is_none_or(|(before, _)| before < ended) {
                let mib = |what: &str| pool["active"][what].as_u64().map(|bytes| bytes / MIB);
                periods.push(Period {
                    walk,
                    is_whole: last == Some((ended - 1, walk)),
                    active_mib: mib("active_bytes").expect("it is estimated"),
                    sampled_mib: mib("sampled_bytes").expect("it is estimated"),
                    written_mib: mib("written_bytes"),
                });
                last = Some((ended, walk));
                deadline = Instant::now() + LIMIT;
            }
            thread::sleep(INTERVAL);
        }
    }
}

/// How an estimate followed a guest that stepped up, then down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    /// How far it was off in whole periods after it had settled, in MiB.
    pub errors_mib: Vec<u64>,
    /// Whole periods after the step up until it was within the error; a period of which the step was a part comes before these.
    pub up: Option<usize>,
    /// Whole periods after the step down until it was halfway there.
    pub down: Option<usize>,
}

/// Whole periods after which a step is known: one upward. Downward, from a fill too, a few half-lives of 1.4.
const SETTLING: [usize; 3] = [4, 1, 4];

impl Following {
    /// Of one of the estimates, where these were the steps, and an error of so much is right.
    pub fn of(
        periods: &[Period],
        steps_mib: [u64; 3],
        error_mib: u64,
        estimate: impl Fn(&Period) -> Option<u64>,
    ) -> Self {
        let whole = |walk: usize| periods.iter().filter(move |period| period.walk == walk && period.is_whole);
        let errors = (0..steps_mib.len())
            .flat_map(|walk| whole(walk).skip(SETTLING[walk]).map(move |period| (walk, period)))
            .filter_map(|(walk, period)| Some(estimate(period)?.abs_diff(steps_mib[walk])));
        let first = |walk: usize, wanted: &dyn Fn(u64) -> bool| {
            whole(walk).filter_map(&estimate).position(wanted).map(|at| at + 1)
        };
        Self {
            errors_mib: errors.collect(),
            up: first(1, &|mib| mib.abs_diff(steps_mib[1]) <= error_mib),
            down: first(2, &|mib| mib <= steps_mib[2].midpoint(steps_mib[1])),
        }
    }

    /// How many errors were no larger than that, in MiB.
    pub fn within(&self, error_mib: u64) -> usize {
        self.errors_mib.iter().filter(|&&error| error <= error_mib).count()
    }
}

/// The value in the middle; `None` of none.
pub fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
