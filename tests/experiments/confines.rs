//! What keeps guests within their budget: Linux, by a cgroup's limit or driven from outside, whichever reaches guests on this host
//! ([`Reach`]), or our own manager, in a cgroup with the same limit where there is one.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use cistern_tests::baseline::cgroup::Cgroup;
use cistern_tests::baseline::host::Host;
use cistern_tests::baseline::reach::Reach;
use cistern_tests::baseline::reclaimer::{Reclaimer, Work};
use cistern_tests::baseline::{Baseline, Swap};

use crate::way::Way;

/// In a cgroup our pool has this part less: what is charged there besides and a pool does not count, KVM's own memory and that of
/// `density` itself.
const UNCOUNTED_PART: u64 = 16;

/// What ours wants of the host, beside no swap: that KSM, which its leader may drive, is put back.
const HOST_OF_OURS: Baseline = Baseline { swap: Swap::Nothing, merges: true };

/// A host that is ready for guests, and is put back when dropped.
pub struct Confines {
    way: Way,
    budget_bytes: u64,
    cgroup: Option<Cgroup>,
    // Before the host, which it works on.
    reclaimer: Option<Reclaimer>,
    host: Arc<Host>,
}

impl Confines {
    /// Sets the host up, with room for `swap_bytes` in `folder`, which is on a disk. A limit is in force when this returns.
    ///
    /// # Errors
    /// The host lacks what it takes, which is named; this is not root.
    pub fn prepare(reach: &Reach, way: Way, budget_bytes: u64, swap_bytes: u64, folder: &Path) -> Result<Self> {
        let baseline = way.of_linux().unwrap_or(HOST_OF_OURS);
        let mut host = Host::prepare(baseline, budget_bytes, swap_bytes, folder)?;
        let cgroup = matches!(reach, Reach::Guests(_)).then(|| host.cgroup()).transpose()?;
        if cgroup.is_none() {
            host.expect_slow_for_everybody()?;
        }
        let host = Arc::new(host);
        let limited = cgroup.clone().map(|cgroup| {
            // Our leader drives ksmd by itself.
            let merges = baseline.merges && !way.is_ours();
            Reclaimer::limit(Baseline { merges, ..baseline }, Arc::clone(&host), budget_bytes, cgroup)
        });
        Ok(Self { way, budget_bytes, cgroup, reclaimer: limited.transpose()?, host })
    }

    /// Has a command run in the cgroup, where there is one.
    ///
    /// # Errors
    /// It is gone.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        self.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.enter(command))
    }

    /// The budget of our pool in it.
    pub fn pool_bytes(&self) -> u64 {
        let uncounted_bytes = self.cgroup.as_ref().map_or(0, |_| self.budget_bytes / UNCOUNTED_PART);
        self.budget_bytes - uncounted_bytes
    }

    /// Has the kernel driven from outside, where no limit does it. `processes` tells of the guests.
    pub fn watch(&mut self, processes: impl Fn() -> Vec<u32> + Send + 'static) {
        if let (Some(baseline), None) = (self.way.of_linux(), &self.reclaimer) {
            self.reclaimer = Some(Reclaimer::advise(baseline, Arc::clone(&self.host), self.budget_bytes, processes));
        }
    }

    /// The host, to be looked at.
    pub fn host(&self) -> Arc<Host> {
        Arc::clone(&self.host)
    }

    /// What was taken at the last look; `None` where nobody but our manager looks.
    pub fn taken_bytes(&self) -> Option<u64> {
        self.reclaimer.as_ref().map(Reclaimer::taken_bytes)
    }

    /// Ends it. Nobody else has the host any more.
    ///
    /// # Errors
    /// Something could not be put back; the host's counters could not be read.
    pub fn finish(self) -> Result<Option<Work>> {
        let Self { host, reclaimer, .. } = self;
        let work = reclaimer.map(Reclaimer::finish).transpose();
        Arc::into_inner(host).context("whoever looks at the host is done with it")?.restore()?;
        work
    }
}
