//! What became of a pool over time, by its own account.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cistern_memory::ledger::{Ledger, Level, PoolView, Report};

use crate::chart::Chart;
use crate::paged::MIB;

/// How often is looked: as often as a member short of memory does.
const INTERVAL: Duration = Duration::from_millis(20);

/// A pool at moments, in seconds from the first.
#[derive(Debug, Default)]
pub struct Course {
    /// The moments.
    pub moments: Vec<(f64, PoolView)>,
}

/// Notes the course of a pool until it is finished.
pub struct Recorder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Course>,
}

impl Recorder {
    /// Of the pool in this folder.
    pub fn start(pool: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pool) = (Arc::clone(&stop), pool.to_owned());
        let thread = thread::spawn(move || {
            let (started, mut course) = (Instant::now(), Course::default());
            while !stopped.load(Ordering::Relaxed) {
                let seconds = started.elapsed().as_secs_f64();
                course.moments.extend(Ledger::read(&pool).ok().map(|view| (seconds, view)));
                thread::sleep(INTERVAL);
            }
            course
        });
        Self { stop, thread }
    }

    /// What was noted.
    #[track_caller]
    pub fn finish(self) -> Course {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the recorder is well")
    }
}

impl Course {
    /// Draws it: free memory and what each mechanism holds, shaded by level.
    pub fn draw(&self, title: &str, file: &str) -> PathBuf {
        let mut chart = Chart::new(&format!("{title} (MiB; the darker, the lower the level)"));
        let mib = |bytes: i64| bytes as f64 / MIB as f64;
        let of_pool = |value: &dyn Fn(&PoolView) -> i64| -> Vec<(f64, f64)> {
            self.moments.iter().map(|(seconds, view)| (*seconds, mib(value(view)))).collect()
        };
        let sum = |field: fn(&Report) -> u64| {
            of_pool(&move |view| view.members.iter().map(|member| field(&member.report)).sum::<u64>() as i64)
        };
        chart.line("free", of_pool(&|view| view.free_bytes.unwrap_or(0)));
        chart.line("given by balloons", sum(|report| report.balloon_given_bytes));
        chart.line("compressed store", sum(|report| report.compressed_bytes));
        chart.line("swap file", sum(|report| report.swapped_bytes));
        chart.line("stored as zero", sum(|report| report.zero_bytes));
        for pair in self.moments.windows(2) {
            if let Some(level) = pair[0].1.level.filter(|&level| level > Level::High) {
                chart.band(pair[0].0, pair[1].0, level as u8);
            }
        }
        chart.write(file)
    }
}
