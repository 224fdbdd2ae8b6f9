//! What 1, 2, 5 and 10 identical guests share and save: ESX's figure 4 (Waldspurger, "Memory Resource Management in VMware ESX
//! Server", OSDI 2002), in percent of the pages that the guests had touched.

use std::thread;
use std::time::Duration;

use crate::ksm::Ksm;
use crate::sharers::{Guests, ksmd_cpu};

/// Of the pages of ten identical Linux guests, in percent: shared, and reclaimed.
pub const ESX: [u32; 2] = [67, 60];

/// Probes: a fifth zero, and nearly half equal to the others'.
const PROBE_MEMORY: &str = "64M";
const PROBE_FILL: &str = "fill:56M,zero=20,dup=47,text=33,seed=SEED;repeat:1000000,(idle:1)";

/// Linux guests, beside whose kernel and files there is a process that reads what it holds; half of that is the same in all.
/// They are small: where KVM interprets their kernels, each page of a process takes milliseconds to come into being.
const LINUX_MEMORY: &str = "64M";
const LINUX_COMMAND: &str = "exec -a hold /init 8M 8M SEED";

/// Linux reports pages that it freed within two seconds or so (mm/page_reporting.c).
const REPORTING: Duration = Duration::from_secs(5);

/// Whose guests are identical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bare-metal ones.
    Probes,
    /// Linux.
    Linux,
}

impl Kind {
    /// What they do and have, in words.
    pub fn description(self) -> String {
        match self {
            Self::Probes => format!("probes of {PROBE_MEMORY}: {PROBE_FILL}"),
            Self::Linux => format!("Linux guests of {LINUX_MEMORY}: {LINUX_COMMAND}"),
        }
    }

    fn start(self, guests: &mut Guests, number: usize) {
        let with_seed = |text: &str| text.replace("SEED", &number.to_string());
        match self {
            Self::Probes => guests.start_probe(&with_seed(PROBE_FILL), &["--memory", PROBE_MEMORY]),
            Self::Linux => guests.start_linux(&with_seed(LINUX_COMMAND), &["--memory", LINUX_MEMORY]),
        }
    }

    /// Waits until one has touched what it will.
    fn wait(self, guests: &mut Guests, number: usize) {
        let running = &mut guests.members[number].running;
        match self {
            Self::Probes => drop(running.wait_for_phase("fill")),
            Self::Linux => drop(running.wait_for("the load", |line| line.starts_with("hold: ready"))),
        }
    }
}

/// What so many guests share, parts in percent of what they had touched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// How many there are.
    pub guests: usize,
    /// What they had touched.
    pub touched_bytes: u64,
    /// Given back as zero.
    pub zero_percent: f64,
    /// Merged with others, as a whole.
    pub merged_percent: f64,
    /// What that saves.
    pub reclaimed_percent: f64,
    /// What each has of its own, in the mean.
    pub own_bytes: u64,
    /// When nine tenths of it were saved.
    pub reached: Option<Duration>,
    /// CPU time of their scanners, and of ksmd.
    pub cpu: [Duration; 2],
}

impl Point {
    /// Zero pages and merged ones: ESX counts zero pages among those that are shared.
    pub fn shared_percent(&self) -> f64 {
        self.zero_percent + self.merged_percent
    }
}

/// Starts guests up to each count and measures what these share, once nothing more comes of it or so much is shared, in
/// percent. `each` is told of a point when it is known.
pub fn measure(kind: Kind, counts: &[usize], enough_percent: Option<f64>, mut each: impl FnMut(&Point)) -> Vec<Point> {
    let _ksm = Ksm::hold();
    let mut guests = Guests::new();
    let mut points = Vec::new();
    for &count in counts {
        let first = guests.members.len();
        (first..count).for_each(|number| kind.start(&mut guests, number));
        (first..count).for_each(|number| kind.wait(&mut guests, number));
        thread::sleep(REPORTING);
        let (scanners, ksmd) = (guests.scanners_cpu(), ksmd_cpu());
        guests.give_way();
        guests.share();
        let course = guests.settle(enough_percent);
        let cpu = [guests.scanners_cpu() - scanners, ksmd_cpu().saturating_sub(ksmd)];
        let point = point(&guests, &course, cpu);
        each(&point);
        points.push(point);
    }
    for member in &mut guests.members {
        assert!(!member.running.has_ended(), "a guest has ended");
    }
    points
}

fn point(guests: &Guests, course: &[(Duration, f64)], cpu: [Duration; 2]) -> Point {
    let (memory, touched_bytes) = (guests.memory(), guests.touched_bytes());
    let percent = |bytes: u64| bytes as f64 * 100.0 / touched_bytes as f64;
    let reclaimed_percent = percent(touched_bytes.saturating_sub(memory.proportional_bytes));
    let first = course.first().map_or(0.0, |(_, saved)| *saved);
    let most = first + (reclaimed_percent / 100.0 - first) * 0.9;
    Point {
        guests: guests.members.len(),
        touched_bytes,
        // What went back as zero is what the one zero page of others would be.
        zero_percent: percent(touched_bytes.saturating_sub(memory.resident_bytes)),
        merged_percent: percent(memory.merged_bytes),
        reclaimed_percent,
        own_bytes: memory.proportional_bytes / guests.members.len() as u64,
        reached: course.iter().find(|(_, saved)| *saved >= most).map(|(time, _)| *time),
        cpu,
    }
}
