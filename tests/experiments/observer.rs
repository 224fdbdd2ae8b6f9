//! What guests cost the host over time.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;
use cistern_tests::baseline::host::Host;
use cistern_tests::control::try_ask;
use cistern_tests::cpu_time;
use cistern_tests::cycles::stored_pages as stored;
use cistern_tests::guest_usage::GuestUsage;
use cistern_tests::samples::private_bytes;
use serde_json::Value;

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(500);

/// The host at a moment, counts from the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Look {
    /// Since the beginning.
    pub seconds: f64,
    /// What all guests take, the kernel's store for what it has swapped included.
    pub taken_bytes: u64,
    /// CPU time of all guests' processes and of what drives the kernel's reclaim.
    pub cpu: Duration,
    /// Written to and read from where pages go that do not fit: the swap file, or the kernel's swap, zram included.
    pub swapped_bytes: u64,
}

/// What became of guests and host.
#[derive(Debug, Clone, Default)]
pub struct Course {
    /// The host.
    pub host: Vec<Look>,
    /// The guest that is measured, by its own clock, which begins with it.
    pub guest: Vec<GuestUsage>,
    /// All that it said.
    pub console: String,
    /// From when to when there was load, in seconds.
    pub load: Range<f64>,
}

/// Looks until it is finished.
pub struct Observer {
    started: Instant,
    sockets: Arc<Mutex<Vec<PathBuf>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Look>>>,
}

impl Observer {
    /// At these processes, on a host that is set up where it swaps.
    pub fn start(processes: impl Fn() -> Vec<u32> + Send + 'static, host: Option<Arc<Host>>) -> Self {
        let (stop, started, sockets) =
            (Arc::<AtomicBool>::default(), Instant::now(), Arc::<Mutex<Vec<PathBuf>>>::default());
        let (stopped, known) = (Arc::clone(&stop), Arc::clone(&sockets));
        let thread = thread::spawn(move || {
            let (mut looks, swapped_before_bytes) = (Vec::new(), swapped_by_kernel_bytes());
            while !stopped.load(Ordering::Relaxed) {
                let processes = processes();
                let private_bytes: u64 = processes.iter().filter_map(|&pid| private_bytes(pid)).sum();
                let store_bytes = host.as_ref().and_then(|host| host.store_bytes().ok()).unwrap_or(0);
                let cpu: Duration = processes.iter().filter_map(|&pid| cpu_time::of_process(pid)).sum();
                let swapped_bytes = if host.is_some() {
                    swapped_by_kernel_bytes() - swapped_before_bytes
                } else {
                    let sockets = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    sockets.iter().filter_map(|socket| swapped_bytes(&memory(socket)?)).sum()
                };
                looks.push(Look {
                    seconds: started.elapsed().as_secs_f64(),
                    taken_bytes: private_bytes + store_bytes,
                    cpu: cpu + cpu_time::of_reclaimer(),
                    swapped_bytes,
                });
                thread::sleep(INTERVAL);
            }
            looks
        });
        Self { started, sockets, stop, thread: Some(thread) }
    }

    /// Also asks a VM, by its control socket, what it has swapped.
    pub fn add_socket(&self, socket: PathBuf) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// What was seen, without what the guest has said.
    pub fn finish(mut self) -> Course {
        self.stop.store(true, Ordering::Relaxed);
        let host = self.thread.take().expect("it is joined once").join().expect("the observer is well");
        Course { host, ..Course::default() }
    }
}

impl Drop for Observer {
    /// A host is put back once nobody looks at it.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Course {
    /// The most that all guests took.
    pub fn peak_bytes(&self) -> u64 {
        self.host.iter().map(|look| look.taken_bytes).max().unwrap_or(0)
    }

    /// CPU time of the host between two moments under load, in seconds from its beginning, as far as looks tell.
    pub fn cpu(&self, moments: Range<f64>) -> Duration {
        let at =
            |moment: f64| self.host.iter().find(|look| look.seconds - self.load.start >= moment).or(self.host.last());
        let cpu = |moment| at(moment).map_or(Duration::ZERO, |look| look.cpu);
        cpu(moments.end).saturating_sub(cpu(moments.start))
    }

    /// A quantity of the host under load, over time.
    pub fn level(&self, quantity: impl Fn(&Look) -> f64) -> Vec<(f64, f64)> {
        self.under_load(self.host.iter().map(|look| (look.seconds, quantity(look))).collect())
    }

    /// What a count of the host grows by in a second, under load, over time.
    pub fn rate(&self, count: impl Fn(&Look) -> f64) -> Vec<(f64, f64)> {
        slopes(&self.level(count))
    }

    /// A quantity of the guest under load, over time.
    pub fn guest_level(&self, quantity: impl Fn(&GuestUsage) -> f64) -> Vec<(f64, f64)> {
        self.under_load(self.guest.iter().map(|usage| (usage.up_ms as f64 / 1000.0, quantity(usage))).collect())
    }

    /// What a count of the guest grows by in a second, under load, over time.
    pub fn guest_rate(&self, count: impl Fn(&GuestUsage) -> f64) -> Vec<(f64, f64)> {
        slopes(&self.guest_level(count))
    }

    /// What was between the beginning of the load and its end, in seconds from its beginning.
    fn under_load(&self, mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
        points.retain(|&(at, _)| self.load.contains(&at));
        points.into_iter().map(|(at, value)| (at - self.load.start, value)).collect()
    }
}

/// Slopes between points, at the later one.
fn slopes(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let slope = |pair: &[(f64, f64)]| (pair[1].0, (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0).max(1e-3));
    points.windows(2).map(slope).collect()
}

/// Pages that have left a VM's RAM for its stores; `None` when it does not say.
pub fn stored_pages(socket: &Path) -> Option<u64> {
    memory(socket).map(|memory| stored(&memory))
}

/// What a VM that may not listen yet says.
fn memory(socket: &Path) -> Option<Value> {
    serde_json::from_str(&try_ask(socket, "/memory")?.body).ok()
}

/// `None` for a VM without a swap file as yet.
fn swapped_bytes(memory: &Value) -> Option<u64> {
    let swap = &memory["swap"];
    Some(swap["written_bytes"].as_u64()? + swap["read_bytes"].as_u64()?)
}

/// Pages in and out of swap since the host started, zswap's too, which the kernel counts apart (kernel mm/vmstat.c).
fn swapped_by_kernel_bytes() -> u64 {
    swapped_pages(&fs::read_to_string("/proc/vmstat").unwrap_or_default()) * PAGE_SIZE
}

fn swapped_pages(vmstat: &str) -> u64 {
    let is_wanted = |name: &&str| ["pswpin", "pswpout", "zswpin", "zswpout"].contains(name);
    let pages = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        number.parse::<u64>().ok().filter(|_| is_wanted(&name))
    };
    vmstat.lines().filter_map(pages).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_become_rates() {
        assert_eq!(slopes(&[(1.0, 10.0), (3.0, 30.0), (4.0, 30.0)]), [(3.0, 10.0), (4.0, 0.0)]);
        assert_eq!(slopes(&[(1.0, 10.0)]), []);
    }

    #[test]
    fn pages_of_zswap_are_swapped_too() {
        assert_eq!(swapped_pages("pgpgin 9\npswpin 1\npswpout 20\nzswpin 300\nzswpout 4000\nzswpwb 9\n"), 4321);
    }

    #[test]
    fn what_was_before_and_after_the_load_is_left_out() {
        let look = |seconds| Look { seconds, taken_bytes: seconds as u64, ..Look::default() };
        let course = Course { host: [1.0, 4.0, 6.0, 9.0].map(look).into(), load: 3.0..9.0, ..Course::default() };
        assert_eq!(course.level(|look| look.taken_bytes as f64), [(1.0, 4.0), (3.0, 6.0)]);
        assert_eq!(course.rate(|look| look.taken_bytes as f64), [(3.0, 1.0)]);
        assert_eq!(course.peak_bytes(), 9);
    }

    #[test]
    fn cpu_time_between_two_moments() {
        let look = |seconds: f64| Look { seconds, cpu: Duration::from_secs_f64(seconds * 2.0), ..Look::default() };
        let course = Course { host: [1.0, 4.0, 6.0, 9.0].map(look).into(), load: 3.0..9.0, ..Course::default() };
        assert_eq!(course.cpu(1.0..3.0), Duration::from_secs(4));
        assert_eq!(course.cpu(0.0..100.0), Duration::from_secs(10));
        assert_eq!(Course::default().cpu(0.0..1.0), Duration::ZERO);
    }
}
