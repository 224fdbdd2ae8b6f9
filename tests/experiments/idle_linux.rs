//! Linux guests that idle beside one that works, in a pool too small for them: what each costs the host, everything included, and
//! how soon it answers on its console.

use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::PAGE_SIZE;
use cistern_tests::course::Recorder;
use cistern_tests::guest_memory::GuestMemory;
use cistern_tests::memory_group::{Charged, MemoryGroup};
use cistern_tests::paged::{MIB, PagedVm, counter};
use cistern_tests::pool::TestPool;
use cistern_tests::process::{binary, wait_until};
use cistern_tests::watch::{Still, page_tables_bytes, pss_with_files_bytes};

use crate::report::{NOT_PUBLISHED, Report};
use crate::scenario::Plan;
use crate::walks::working;
use crate::way::Setting;

/// How many idle, and for how long.
const GUESTS: u64 = 8;
const GUESTS_SHORT: u64 = 2;
const IDLE: Duration = Duration::from_secs(60);

/// How long guests run between two looks, each of which stops them all.
const INTERVAL: Duration = Duration::from_secs(1);

/// The most that each may cost. The short version does not wait until it is that little.
const MOST_MIB: u64 = 8;
const MOST_MIB_SHORT: u64 = 16;

/// An interactive shell on the console, once a file was read.
const SHELL: &str = "md5sum /bin/busybox; exec sh -i < /dev/ttyS0 > /dev/ttyS0 2>&1";
const SHELL_FLAGS: &[&str] = &["--memory", "128M", "--cpus", "1"];

/// What the pool has for the one that works, which is less than it walks through, and less than its shares are worth beside
/// guests that idle. The second of two must find room to load its kernel.
const WORKER_MIB: u64 = 8;
const WORKER_MIB_SHORT: u64 = 32;
const WORKER_FILL: &str = "fill:64M,zero=15,dup=20,text=45,random=20,seed=1";
const WORKER_WALK: &str = "walk:64M,touches=1000,write=20;idle:0.2";
const WORKER_FLAGS: &[&str] = &["--memory", "512M", "--cpus", "1"];

/// Firecracker's SPECIFICATION.md: the VMM of a guest with one CPU and 128 MiB.
const FIRECRACKER_OWN: &str = "<= 5 MiB (Firecracker)";

/// What a guest costs the host, in bytes.
struct Cost {
    /// Proportional set size, files included.
    pss: u64,
    /// Page tables, which the memory controller counts as well.
    page_tables: u64,
    /// Guest memory that is in host memory as it is.
    resident: u64,
    /// Host memory that compressed pages take.
    compressed: u64,
    /// Guest memory that is in the swap file.
    swapped: u64,
    /// By the memory controller, which has the kernel's own memory in it, and no files.
    charged: Option<Charged>,
}

impl Cost {
    fn of(vm: &mut PagedVm, group: Option<&MemoryGroup>) -> Self {
        let (memory, pid) = (vm.memory(), vm.running.pid());
        let _still = Still::all([pid]);
        let pss = pss_with_files_bytes(pid).expect("it runs");
        Self {
            pss,
            page_tables: page_tables_bytes(pid).expect("it runs"),
            resident: GuestMemory::of(pid).expect("it runs").proportional_bytes,
            compressed: counter(&memory, "compressed.held_bytes"),
            swapped: counter(&memory, "pages.swapped") * PAGE_SIZE,
            charged: group.and_then(MemoryGroup::charged),
        }
    }

    /// By the process's own account.
    fn of_process(&self) -> u64 {
        self.pss + self.page_tables
    }

    /// What the VMM takes beside guest memory.
    fn own(&self) -> u64 {
        self.of_process().saturating_sub(self.resident + self.compressed)
    }

    /// Everything: files, and all of the kernel's own where it is told.
    fn all(&self) -> u64 {
        self.pss + self.charged.map_or(self.page_tables, |charged| charged.kernel_bytes)
    }

    /// By the account that has most: one of them counts a moment later than the other.
    fn most(&self) -> u64 {
        self.all().max(self.of_process()).max(self.charged.map_or(0, Charged::bytes))
    }
}

/// See the top of this file.
pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new(
        "Firecracker's figure is a bound, and of the VMM alone. Idle is a guest whose interactive shell waits on the serial console; \
         it answers while another guest wants more memory than there is. The pool has the settings for hosts full of guests that idle \
         (ours-packed). --scale has so many times as many guests",
    );
    let (guests, most_mib, worker_mib) = match plan.is_short {
        true => (GUESTS_SHORT, MOST_MIB_SHORT, WORKER_MIB_SHORT),
        false => (GUESTS * plan.scale, MOST_MIB, WORKER_MIB),
    };
    let (idle, worker) = (0..guests as usize, guests as usize);
    let budget = format!("{}M", guests * MOST_MIB + worker_mib);
    // Removed after the guests are gone.
    let groups: Vec<_> = idle.clone().map(|index| MemoryGroup::new(&format!("idle{index}"))).collect();
    let mut pool = TestPool::new(&[&["--budget", &budget, "--swap", "SWAP"], Setting::Packed.flags()].concat());
    let recorder = Recorder::start(pool.folder());
    let mut before = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let launcher = group.as_ref().map_or_else(|| Command::new(binary()), |group| group.command(binary()));
        pool.start_linux(launcher, SHELL, SHELL_FLAGS);
        // One after the other: loading its kernel, each takes the room of three.
        before.push(wait_for_sum(&mut pool.vms[index]));
    }
    pool.start(&format!("{WORKER_FILL};{}", working(WORKER_WALK)), WORKER_FLAGS);
    pool.vms[worker].running.wait_for_phase("fill");
    if plan.is_short {
        // Less than it may be: these looks leave files out.
        let enough_bytes = most_mib * MIB * 3 / 4;
        pool.wait_until_steady("guests as small as that", |looks| {
            looks[idle.clone()].iter().all(|look| look.cost_bytes <= enough_bytes)
        });
    } else {
        thread::sleep(IDLE);
    }

    let mut look = || pool.vms.iter_mut().zip(&groups).map(|(vm, group)| Cost::of(vm, group.as_ref())).collect();
    let mut costs: Vec<Cost> = look();
    if plan.is_short {
        wait_until("guests that small, everything included", || {
            let is_enough = costs.iter().all(|cost| cost.most() <= most_mib * MIB);
            if !is_enough {
                thread::sleep(INTERVAL);
                costs = look();
            }
            is_enough
        });
    }
    let times: Vec<Duration> = pool.vms[idle.clone()].iter_mut().enumerate().map(time_to_answer).collect();
    let after: Vec<String> = pool.vms[idle].iter_mut().map(read_again).collect();
    pool.vms[worker].tell();
    pool.vms[worker].wait_for_verifies(1);

    let mut row = |what: &str, published: &str, value: fn(&Cost) -> Option<u64>| {
        report.row(format!("an idle guest of 128 MiB: {what}"), published, in_mib(&costs, value));
    };
    row("host memory (PSS and page tables)", NOT_PUBLISHED, |cost| Some(cost.of_process()));
    row("of that resident guest memory", NOT_PUBLISHED, |cost| Some(cost.resident));
    row("of that compressed", NOT_PUBLISHED, |cost| Some(cost.compressed));
    row("of that the VMM's own", FIRECRACKER_OWN, |cost| Some(cost.own()));
    row("host memory (memory controller, without files)", NOT_PUBLISHED, |cost| Some(cost.charged?.bytes()));
    row("of that the kernel's own", NOT_PUBLISHED, |cost| Some(cost.charged?.kernel_bytes));
    row("everything: PSS with files, and all of the kernel's own", NOT_PUBLISHED, |cost| Some(cost.all()));
    row("swapped, which costs no memory", NOT_PUBLISHED, |cost| Some(cost.swapped));
    let seconds = spread(times.iter().map(Duration::as_secs_f64).collect());
    report.row("an idle guest of 128 MiB: answers on its console after", NOT_PUBLISHED, format!("{seconds} s"));

    report.claim(
        format!("each of {guests} in {budget} with one that works costs at most {most_mib} MiB, everything included"),
        costs.iter().all(|cost| cost.most() <= most_mib * MIB),
        in_mib(&costs, |cost| Some(cost.most())),
    );
    let are_away = costs.iter().all(|cost| cost.swapped > 0);
    report.claim("pages of each are in the swap file", are_away, in_mib(&costs, |cost| Some(cost.swapped)));
    report.reached("each answers on its console", format!("{} of {guests}", times.len()));
    report.claim("each reads in a file what it read there before", before == after, &after[0]);
    report.reached("the one that works has all its pages", "0 bad");
    report.drawn(recorder.finish().members("Idle Linux guests", &[]).write_to(&plan.out, "idle-linux.svg"));
    pool.stop();
    report
}

/// Asks the shell something that no guest was asked before; the time until it has answered.
fn time_to_answer((number, vm): (usize, &mut PagedVm)) -> Duration {
    let (started, question) = (Instant::now(), number + 6);
    say(vm, &format!("echo answer $(({question} * 7))"));
    let answer = format!("answer {}", question * 7);
    vm.running.wait_for("an answer", |line| line == answer);
    started.elapsed()
}

fn read_again(vm: &mut PagedVm) -> String {
    say(vm, "md5sum /bin/busybox");
    wait_for_sum(vm)
}

fn say(vm: &mut PagedVm, words: &str) {
    writeln!(vm.running.stdin(), "{words}").expect("the guest's console");
}

/// The line of md5sum, and not the one that shows what was typed.
fn wait_for_sum(vm: &mut PagedVm) -> String {
    vm.running.wait_for("a checksum", |line| line.len() > 32 && line.ends_with("  /bin/busybox"))
}

/// The median and the most of all guests, or that nobody has told.
fn in_mib(costs: &[Cost], value: fn(&Cost) -> Option<u64>) -> String {
    let values: Option<Vec<f64>> = costs.iter().map(|cost| Some(value(cost)? as f64 / MIB as f64)).collect();
    values.map_or_else(|| "not told here".to_owned(), |values| format!("{} MiB", spread(values)))
}

/// The value in the middle and the largest, of at least one.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("median {:.1}, worst {:.1}", values[(values.len() - 1) / 2], values[values.len() - 1])
}
