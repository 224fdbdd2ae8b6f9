//! What became of a pool over time, by its own account.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cistern_memory::ledger::{Ledger, Level, MemberView, PoolView, Report};

use crate::chart::Chart;
use crate::paged::MIB;

/// How often is looked: as often as a member short of memory does.
const INTERVAL: Duration = Duration::from_millis(20);

/// A pool at moments, in seconds from the first.
#[derive(Debug, Default)]
pub struct Course {
    /// The moments.
    pub moments: Vec<(f64, PoolView)>,
    /// What began when.
    pub marks: Vec<(f64, String)>,
}

/// A quantity of a member, and its name in a chart.
pub type Quantity = (&'static str, fn(&MemberView) -> u64);

/// Notes the course of a pool until it is finished.
pub struct Recorder {
    started: Instant,
    marks: Vec<(f64, String)>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Course>,
}

impl Recorder {
    /// Of the pool in this folder.
    pub fn start(pool: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pool, started) = (Arc::clone(&stop), pool.to_owned(), Instant::now());
        let thread = thread::spawn(move || {
            let mut course = Course::default();
            while !stopped.load(Ordering::Relaxed) {
                let seconds = started.elapsed().as_secs_f64();
                course.moments.extend(Ledger::read(&pool).ok().map(|view| (seconds, view)));
                thread::sleep(INTERVAL);
            }
            course
        });
        Self { started, marks: Vec::new(), stop, thread }
    }

    /// Notes that something begins.
    pub fn mark(&mut self, name: &str) {
        self.marks.push((self.started.elapsed().as_secs_f64(), name.to_owned()));
    }

    /// What was noted.
    #[track_caller]
    pub fn finish(self) -> Course {
        self.stop.store(true, Ordering::Relaxed);
        Course { marks: self.marks, ..self.thread.join().expect("the recorder is well") }
    }
}

impl Course {
    /// Draws it to cargo's target folder: free memory and what each mechanism holds, shaded by level.
    pub fn draw(&self, title: &str, file: &str) -> PathBuf {
        self.mechanisms(title).write(file)
    }

    /// Free memory and what each mechanism holds, shaded by level.
    pub fn mechanisms(&self, title: &str) -> Chart {
        let mut chart = self.chart(title);
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
        chart
    }

    /// What each member costs, and some more of it, shaded by level.
    pub fn members(&self, title: &str, more: &[Quantity]) -> Chart {
        let mut chart = self.chart(title);
        let names: BTreeSet<&str> = self.all_members().map(|(_, member)| member.identity.name.as_str()).collect();
        let costs: Quantity = ("costs", |member| member.report.charge_bytes);
        for name in names {
            for (what, value) in [&[costs], more].concat() {
                let of_member = self.all_members().filter(|(_, member)| member.identity.name == name);
                let points = of_member.map(|(seconds, member)| (seconds, mib(value(member) as i64))).collect();
                chart.line(&format!("{name} {what}"), points);
            }
        }
        chart
    }

    fn all_members(&self) -> impl Iterator<Item = (f64, &MemberView)> {
        self.moments.iter().flat_map(|(seconds, view)| view.members.iter().map(|member| (*seconds, member)))
    }

    /// Without lines as yet.
    fn chart(&self, title: &str) -> Chart {
        let mut chart = Chart::new(&format!("{title} (MiB; the darker, the lower the level)"));
        for pair in self.moments.windows(2) {
            if let Some(level) = pair[0].1.level.filter(|&level| level > Level::High) {
                chart.band(pair[0].0, pair[1].0, level as u8);
            }
        }
        self.marks.iter().for_each(|(seconds, name)| chart.mark(*seconds, name));
        chart
    }
}

fn mib(bytes: i64) -> f64 {
    bytes as f64 / MIB as f64
}
