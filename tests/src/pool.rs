//! A pool of probes, looked at from outside: what its members cost is read from the kernel, what they are granted and why
//! from the ledger.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cistern_memory::ledger::{Ledger, Level, MemberView, PoolView};
use cistern_memory::policy::allocator::{Claim, IdleTax, grants};
use serde_json::Value;
use tempfile::TempDir;

use crate::ksm::DrivenPool;
use crate::paged::{PagedVm, counter, folder_on_disk};
use crate::process::{Finished, LIMIT};
use crate::watch::{page_tables_bytes, pss_bytes};

/// How often a pool is looked at.
pub const INTERVAL: Duration = Duration::from_millis(200);

/// A state lasts if so many looks in a row find it.
const STEADY_LOOKS: usize = 5;

/// A pool and its members, in the order in which they came.
pub struct TestPool {
    flags: Vec<String>,
    /// The VMs.
    pub vms: Vec<PagedVm>,
    // Dropped after them, and before the folder.
    _driven: DrivenPool,
    folder: TempDir,
}

/// A member at a moment.
#[derive(Debug, Clone)]
pub struct Look {
    /// What it costs, by the kernel: its proportional set size, the files it maps apart, and its page tables.
    pub cost_bytes: u64,
    /// What the ledger has of it.
    pub ledger: MemberView,
    /// What the allocator grants it by what the ledger has of all.
    pub due_bytes: u64,
}

impl Look {
    /// What it was last granted.
    pub fn grant_bytes(&self) -> u64 {
        self.ledger.grant_bytes.unwrap_or(0)
    }

    /// Whether it costs what it is granted, and is granted what it is due, to within so many percent.
    pub fn is_settled(&self, percent: u64) -> bool {
        is_within(percent, self.cost_bytes, self.due_bytes) && is_within(percent, self.grant_bytes(), self.due_bytes)
    }
}

impl TestPool {
    /// A pool whose members are all started with these flags.
    pub fn new(flags: &[&str]) -> Self {
        let folder = folder_on_disk();
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        Self { flags, vms: Vec::new(), _driven: DrivenPool::new(folder.path()), folder }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a member with this program, named `vm` and its number.
    pub fn start(&mut self, program: &str, arguments: &[&str]) {
        let vm = PagedVm::start(program, &strs(&self.arguments(arguments)));
        self.vms.push(vm);
    }

    /// Starts a member that is the test's Linux, as [`PagedVm::start_linux`] does.
    pub fn start_linux(&mut self, launcher: Command, words: &str, arguments: &[&str]) {
        let vm = PagedVm::start_linux(launcher, words, &strs(&self.arguments(arguments)));
        self.vms.push(vm);
    }

    /// Those of the next member.
    fn arguments(&self, of_its_own: &[&str]) -> Vec<String> {
        let name = format!("vm{}", self.vms.len());
        let folder = self.folder.path().to_str().expect("test paths are plain");
        let place = ["--pool", folder, "--name", &name];
        let flags = self.flags.iter().map(String::as_str);
        place.into_iter().chain(flags).chain(of_its_own.iter().copied()).map(str::to_owned).collect()
    }

    /// The ledger.
    #[track_caller]
    pub fn view(&self) -> PoolView {
        Ledger::read(self.folder()).expect("the ledger of a pool at work")
    }

    /// All members as they are now; `None` while one of them has not said anything or cannot be read.
    pub fn looks(&self) -> Option<Vec<Look>> {
        let view = Ledger::read(self.folder()).ok()?;
        let due = due_bytes(&view);
        let look = |(index, vm): (usize, &PagedVm)| {
            let slot = view.members.iter().position(|member| member.identity.name == format!("vm{index}"))?;
            let ledger = view.members[slot].clone();
            ledger.grant_bytes?;
            Some(Look { cost_bytes: cost_bytes(vm.running.pid())?, ledger, due_bytes: due[slot] })
        };
        self.vms.iter().enumerate().map(look).collect()
    }

    /// Waits until several looks in a row are as wanted, and returns the last.
    #[track_caller]
    pub fn wait_until_steady(&mut self, what: &str, mut wanted: impl FnMut(&[Look]) -> bool) -> Vec<Look> {
        let deadline = Instant::now() + LIMIT;
        let mut found = 0;
        loop {
            let looks = self.looks();
            found = if looks.as_deref().is_some_and(&mut wanted) { found + 1 } else { 0 };
            if let Some(looks) = looks.filter(|_| found == STEADY_LOOKS) {
                return looks;
            }
            for vm in self.vms.iter_mut().filter_map(|vm| vm.running.has_ended().then_some(vm)) {
                vm.running.wait_for(what, |_| false);
            }
            assert!(Instant::now() < deadline, "no {what} in time: {:?}", self.view());
            thread::sleep(INTERVAL);
        }
    }

    /// What the manager of a member says.
    pub fn statistics(&mut self, index: usize) -> Value {
        self.vms[index].memory()["pool"].take()
    }

    /// What all members have done at these levels, by the name of a counter.
    #[track_caller]
    pub fn at_levels(&mut self, levels: &[Level], name: &str) -> u64 {
        let of_member = |vm: &mut PagedVm| {
            let memory = vm.memory();
            levels.iter().map(|&level| counter(&memory["pool"]["levels"][level as usize], name)).sum::<u64>()
        };
        self.vms.iter_mut().map(of_member).sum()
    }

    /// Stops all. No guest has found a bad page.
    #[track_caller]
    pub fn stop(self) -> Vec<Finished> {
        self.vms.into_iter().map(PagedVm::stop).collect()
    }
}

fn strs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// What a process costs; `None` when it is gone.
fn cost_bytes(pid: u32) -> Option<u64> {
    Some(pss_bytes(pid)? + page_tables_bytes(pid)?)
}

/// What the allocator grants each member by what they say of themselves.
fn due_bytes(view: &PoolView) -> Vec<u64> {
    let claims: Vec<Claim> = view.members.iter().map(claim).collect();
    let distributable_bytes = view.settings.budget_bytes - view.settings.reserve_bytes();
    grants(distributable_bytes, IdleTax::from_percent(view.settings.idle_tax_percent), &claims)
}

/// What a member may claim, by what it says of itself.
pub fn claim(MemberView { identity, report, .. }: &MemberView) -> Claim {
    Claim {
        shares: identity.shares,
        reservation_bytes: identity.reservation_bytes,
        most_bytes: identity.limit_bytes.min(report.touched_bytes) + report.own_bytes,
        active_bytes: report.active_bytes + report.own_bytes,
    }
}

/// Whether the first is within this part, in percent, of the second.
pub fn is_within(percent: u64, bytes: u64, of_bytes: u64) -> bool {
    bytes.abs_diff(of_bytes) * 100 <= of_bytes * percent
}

/// What members cost, are granted and are due, in MiB, to be read.
pub fn in_mib(looks: &[Look]) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let of = |look: &Look| {
        let Look { cost_bytes, ledger, due_bytes } = look;
        format!(
            "{}: costs {:.1}, granted {:.1}, due {:.1}, active {:.1}, own {:.1}",
            ledger.identity.name,
            mib(*cost_bytes),
            mib(look.grant_bytes()),
            mib(*due_bytes),
            mib(ledger.report.active_bytes),
            mib(ledger.report.own_bytes)
        )
    };
    looks.iter().map(of).collect::<Vec<_>>().join("; ")
}
