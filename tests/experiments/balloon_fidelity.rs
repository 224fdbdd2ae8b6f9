//! A Linux guest that a balloon has made small, beside one that was born as small: how much slower it is, and how its free memory
//! and its host's are cut up.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cistern_tests::chart::Chart;
use cistern_tests::control::ask;
use cistern_tests::cpu_time;
use cistern_tests::guest_memory::GuestMemory;
use cistern_tests::guests::Guest;
use cistern_tests::paged::{MIB, counter};
use cistern_tests::process::{LIMIT, Running, binary};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;

/// How much slower ESX's ballooned guests were than those that were as small from the beginning.
const ESX_SLOWER: &str = "1.4-4.4 %";

/// A Linux page of a buddy list of this order, and above, has a huge page in it.
const HUGE_ORDER: usize = 9;

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "ESX measured throughput, of a load whose cache shrinks with the guest; ours is CPU time for taking new memory that fits, writing and reading it (system calls \
         are dear where guest kernels are interpreted), so that at most the balloon's own cost is seen. Host pages are huge only where \
         the host makes them so by itself",
    );
    // What is left to the guest, of how much.
    let (size_mib, sizes_mib, turns): (u64, &[u64], usize) =
        if plan.is_short { (128, &[64], 1) } else { (192, &[64, 96, 128], 7) };
    let mut points = Vec::new();
    for mib in sizes_mib.iter().map(|mib| mib * plan.scale) {
        let work = format!("hog {}M", mib / 8);
        let [mut born, mut made] = [mib, size_mib * plan.scale].map(|mib| LinuxGuest::start(mib, &work));
        born.wait_for_start();
        made.wait_for_start();
        made.inflate(size_mib * plan.scale - mib);
        let [mut born_times, mut made_times] = [Vec::new(), Vec::new()];
        for _ in 0..turns {
            born_times.push(born.work());
            made_times.push(made.work());
        }
        let slower_percent = (median(made_times).as_secs_f64() / median(born_times).as_secs_f64() - 1.0) * 100.0;
        points.push((mib as f64, slower_percent));
        report.row(format!("{mib} MiB by balloon, more CPU time"), ESX_SLOWER, format!("{slower_percent:.1} %"));
        report.row(
            format!("{mib} MiB: free memory in blocks of 2 MiB, by balloon, born so"),
            NOT_PUBLISHED,
            format!("{:.0} %, {:.0} %", made.huge_free_percent, born.huge_free_percent),
        );
        report.row(
            format!("{mib} MiB: huge pages of the host, of resident MiB, by balloon, born so"),
            NOT_PUBLISHED,
            format!("{}, {}", made.host_pages(), born.host_pages()),
        );
        let held = made.ballooned_mib();
        report.claim(
            format!("{mib} MiB: the balloon stays, the guest works"),
            held + 2 >= size_mib * plan.scale - mib,
            format!("{held} MiB in it"),
        );
    }
    let mut chart = Chart::over("CPU time beyond that of a guest born as small (percent)", "MiB");
    chart.line("by balloon", points);
    report.drawn(chart.write_to(&plan.out, "balloon-fidelity.svg"));
    report
}

/// The time in the middle.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A Linux guest that works whenever it is told to.
struct LinuxGuest {
    running: Running,
    socket: PathBuf,
    /// Of its free memory before it last worked, what is in blocks that have a huge page in them.
    huge_free_percent: f64,
    _folder: TempDir,
}

impl LinuxGuest {
    fn start(mib: u64, work: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("socket");
        let script = format!("echo ready; while read line; do cat /proc/buddyinfo; {work}; done < /dev/ttyS0");
        let mut command = Command::new(binary());
        command.args(["run", "--memory", &format!("{mib}M"), "--cmdline", &format!("init.run=\"{script}\"")]);
        command.arg("--kernel").arg(Guest::Vmlinux.build().expect("the kernel"));
        command.arg("--initrd").arg(Guest::Initramfs.build().expect("the initramfs"));
        command.arg("--api-sock").arg(&socket).stdin(Stdio::piped());
        Self { running: Running::spawn(command), socket, huge_free_percent: 0.0, _folder: folder }
    }

    fn wait_for_start(&mut self) {
        self.running.wait_for("a shell", |line| line.starts_with("ready"));
    }

    /// Has the balloon take that, and waits until it has.
    fn inflate(&mut self, mib: u64) {
        let answer = ask(&self.socket, "PATCH", "/balloon", &json!({ "amount_mib": mib }).to_string());
        assert_eq!(answer.status, 204, "{answer:?}");
        let started = Instant::now();
        while self.ballooned_mib() < mib {
            assert!(started.elapsed() < LIMIT, "{} of {mib} MiB are in the balloon", self.ballooned_mib());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn ballooned_mib(&self) -> u64 {
        let memory: Value = ask(&self.socket, "GET", "/memory", "").json();
        counter(&memory, "balloon_inflated_bytes") / MIB
    }

    /// CPU time its work took: unlike time that passed it has no waiting for a CPU in it. All it wrote was there in
    /// the end.
    fn work(&mut self) -> Duration {
        let mut before = cpu_time::of_vcpu(self.running.pid());
        self.running.stdin().write_all(b"go\n").expect("the guest's console");
        let mut free = Vec::new();
        loop {
            let line = self.running.wait_for("work", |line| line.starts_with("Node ") || line.starts_with("hog: "));
            if line.starts_with("Node ") {
                free.push(line);
                before = cpu_time::of_vcpu(self.running.pid());
                continue;
            }
            assert!(line.starts_with("hog: sum OK"), "{line}");
            self.huge_free_percent = huge_free_percent(&free);
            return cpu_time::of_vcpu(self.running.pid()) - before;
        }
    }

    fn host_pages(&self) -> String {
        let memory = GuestMemory::of(self.running.pid()).expect("it runs");
        format!("{} of {}", memory.huge_bytes / MIB, memory.resident_bytes / MIB)
    }
}

/// From lines of `/proc/buddyinfo`: free blocks of each order (kernel Documentation/filesystems/proc.rst).
fn huge_free_percent(lines: &[String]) -> f64 {
    let (mut all, mut huge) = (0, 0);
    for line in lines {
        let blocks = line.split_whitespace().skip(4).map(|word| word.parse::<u64>().unwrap_or(0));
        for (order, blocks) in blocks.enumerate() {
            let pages = blocks << order;
            all += pages;
            huge += if order >= HUGE_ORDER { pages } else { 0 };
        }
    }
    huge as f64 * 100.0 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_weighed_by_the_size_of_its_blocks() {
        let lines =
            ["Node 0, zone      DMA      2      1      0      0      0      0      0      0      0      1      0 "
                .into()];
        assert!((huge_free_percent(&lines) - 512.0 * 100.0 / 516.0).abs() < 1e-9);
        assert_eq!(huge_free_percent(&[]), 0.0);
    }
}
