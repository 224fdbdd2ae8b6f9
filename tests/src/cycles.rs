//! Churn, counted: pages that change while they are in guest RAM, leave it, and come back when they are touched.
//!
//! A **cycle** is a page that was out, was touched by the guest, came back from a store, and was not what it was the time
//! before. All of them are checked by the guest: a walk that only writes looks at the whole of every page before it makes
//! it anew, so that the next time it is another. Counted are pages the guest asked for (`refaults.HOME.pages`), not those
//! that came along, from the four stores, not from aside. Taken off is what may have come back unchanged: a verify reads
//! every page once, which brings each back at most once, and once more after it.

use std::env;

use serde_json::Value;

use crate::paged::{PagedVm, counter, without_histograms};
use crate::watch::{Peak, Watch};

/// Pages of the churned fill: 64 MiB.
const PAGES: u64 = 16_384;

/// Where a stored page can be.
pub const HOMES: [&str; 4] = ["zero", "duplicate", "compressed", "swapped"];

/// Pages that have left guest RAM for the stores so far.
pub fn stored_pages(memory: &Value) -> u64 {
    HOMES.iter().map(|home| counter(memory, &format!("evictions.{home}"))).sum()
}

/// Pages that the guest has asked for and that came back from there.
pub fn returned_pages(memory: &Value) -> u64 {
    HOMES.iter().map(|home| counter(memory, &format!("refaults.{home}.pages"))).sum()
}

/// Cycles of the whole suite; `PAGING_CYCLES` in the environment.
pub fn wanted() -> u64 {
    const SMALL: u64 = 100_000;
    env::var("PAGING_CYCLES").map_or(SMALL, |text| text.parse().expect("PAGING_CYCLES: a number"))
}

/// Cycles, by home in the order of [`HOMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycles {
    by_home: [u64; 4],
}

impl Cycles {
    /// What these counters say about a guest that has churned, where so many pages may have come back as they were.
    pub fn of(memory: &Value, unchanged: u64) -> Self {
        // Kinds take turns, so each home has its quarter of those.
        let pages = |home: &str| counter(memory, &format!("refaults.{home}.pages"));
        let by_home = HOMES.map(|home| pages(home).saturating_sub(unchanged / 4));
        Self { by_home }
    }

    /// Of all homes.
    pub fn total(&self) -> u64 {
        self.by_home.iter().sum()
    }

    /// Fails unless every one of these homes has at least a tenth.
    #[track_caller]
    pub fn expect_tenths(&self, homes: &[&str]) {
        for (home, cycles) in HOMES.iter().zip(self.by_home).filter(|(home, _)| homes.contains(home)) {
            assert!(cycles * 10 >= self.total(), "{home}: {self:?}");
        }
    }
}

/// What has become of churn.
#[derive(Debug)]
pub struct Churned {
    /// Its cycles.
    pub cycles: Cycles,
    /// The counters at the end.
    pub memory: Value,
    /// The most memory it took.
    pub peak: Peak,
}

/// Churns 64 MiB at random under a limit, for long enough that there are this many cycles if it is a quarter of that.
#[track_caller]
pub fn churn(target: u64, limit: &str, arguments: &[&str]) -> Churned {
    let plan = Plan::of(target);
    let mut vm = PagedVm::start(&plan.program(), &[&["--resident", limit], arguments].concat());
    let watch = Watch::start(vm.running.pid(), &vm.swap_folder());
    vm.wait_for_verifies(plan.rounds as usize);
    // The guest idles now.
    let peak = watch.finish();
    let memory = without_histograms(vm.memory());
    let cycles = Cycles::of(&memory, plan.unchanged());
    vm.stop();
    println!("{cycles:?}, {peak:?}, {memory}");
    Churned { cycles, memory, peak }
}

/// How much is done for a number of cycles.
struct Plan {
    touches: u64,
    rounds: u64,
}

impl Plan {
    /// Under a limit of a quarter four touches of five find the page out; two of three are reckoned with.
    fn of(target: u64) -> Self {
        const TOUCHES_PER_ROUND: u64 = 500_000;
        let rounds = 1 + target * 3 / 2 / TOUCHES_PER_ROUND;
        let plan = Self { touches: 0, rounds };
        Self { touches: (target + plan.unchanged()) * 3 / 2 / rounds, ..plan }
    }

    /// Pages that may come back as they were: nothing comes after the last verify.
    fn unchanged(&self) -> u64 {
        PAGES * (2 * self.rounds - 1)
    }

    /// Random touches count; the walk from end to end is there for what comes along with a page.
    fn program(&self) -> String {
        let Self { touches, rounds } = self;
        format!(
            "fill:64M,churn,seed=7;repeat:{rounds},(walk:64M,touches={touches},write=100;\
             walk:64M,touches={PAGES},dist=sequential,write=100;verify);idle:1000000"
        )
    }
}
