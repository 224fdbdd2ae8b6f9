//! Whether a cgroup's limit reaches a guest's memory on this host: a guest is filled, a limit of a part of what it has is set, and
//! what comes of it is looked at. A process of Linux's own would tell nothing, and neither would a guest at rest: a host without
//! accessed bits for its guests swaps both, and finds nothing to reclaim of a guest at work.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::cgroup::{Cgroup, Version};
use super::host::Host;
use super::threshold::{HIGH_PERCENT, LOW_PERCENT};
use super::{Baseline, Swap};
use crate::paged::MIB;
use crate::process::{Running, binary, cistern, probe, wait_until};

const FILLED_BYTES: u64 = 16 * MIB;
const SWAP_BYTES: u64 = 64 * MIB;
/// As hard as can be: whatever is reclaimed is wanted back at once.
const PROGRAM: &str = "probe=\"fill:16M,text=50,random=50;repeat:1000000,(verify)\"";

/// The limit is this part of what the guest has: less than what it is filled with and the program itself, which lies in memory
/// where there is no disk.
const LIMIT_PART: u64 = 2;

/// So often the guest must come through, and for so long.
const VERIFIES: usize = 6;
const TRIAL: Duration = Duration::from_secs(10);

/// Of so many guests one must live: the kernel kills when sixteen tries to reclaim have gained nothing, which on a slow host may
/// be while the limit is lowered.
const TRIALS: usize = 3;

/// What a limit does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It has guests' memory swapped.
    Guests(Version),
    /// Nothing of the kind, and why.
    Nothing(String),
}

impl fmt::Display for Reach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guests(version) => write!(
                formatter,
                "one memory cgroup ({version}) holds all guests, and its limit, with what zram takes, is the budget"
            ),
            Self::Nothing(reason) => write!(
                formatter,
                "on this host a limit does not make the kernel take memory from guests ({reason}), so it is driven from \
                 outside: below {LOW_PERCENT} % free, random clusters are paged out (MADV_PAGEOUT) until {HIGH_PERCENT} % are, and \
                 whoever grows beyond the budget is stopped"
            ),
        }
    }
}

impl Reach {
    /// Tries it, with swap space in `folder`, which is on a disk.
    ///
    /// # Errors
    /// A guest's pages were not what they had been; the host could not be put back.
    pub fn find(folder: &Path) -> Result<Self> {
        let kvm: Value = serde_json::from_str(&cistern(&["host", "--json"]).expect_status(0).stdout)?;
        // A trial would tell by chance: even with a quarter of its memory left one guest in 60 came through.
        if kvm["kvm"] != "hardware" {
            return Ok(Self::Nothing(
                "guests run without hardware virtualization: none of their accesses is seen".to_owned(),
            ));
        }
        let mut reach = trial(folder)?;
        for _ in 1..TRIALS {
            if matches!(reach, Self::Nothing(_)) {
                reach = trial(folder)?;
            }
        }
        Ok(reach)
    }
}

fn trial(folder: &Path) -> Result<Reach> {
    let baseline = Baseline { swap: Swap::File, merges: false };
    let mut host = match Host::prepare(baseline, FILLED_BYTES, SWAP_BYTES, folder) {
        Ok(host) => host,
        Err(error) => return Ok(Reach::Nothing(format!("{error:#}"))),
    };
    let tried = host.cgroup().and_then(|cgroup| of_limit(&cgroup));
    host.restore()?;
    // What a host lacks for a trial it lacks for a limit.
    let (reach, bad) = tried.unwrap_or_else(|error| (Reach::Nothing(format!("{error:#}")), 0));
    ensure!(bad == 0, "{bad} pages of a guest were bad after it had been swapped");
    Ok(reach)
}

/// What a limit does, and how many pages were bad after it.
fn of_limit(cgroup: &Cgroup) -> Result<(Reach, u64)> {
    let nothing = |reason: &str, bad| Ok((Reach::Nothing(format!("{}: {reason}", cgroup.version())), bad));
    let mut command = Command::new(binary());
    command.args(["run", "--memory", "64M", "--cmdline", PROGRAM, "--kernel"]).arg(probe()).stdin(Stdio::null());
    cgroup.enter(&mut command)?;
    let mut guest = Running::spawn(command);
    guest.wait_for_phase("fill");
    let charged_bytes = cgroup.usage()?.charged_bytes;
    if charged_bytes < FILLED_BYTES {
        return nothing("guests' memory is not charged to it", 0);
    }
    let limit_bytes = charged_bytes / LIMIT_PART;
    if !cgroup.set_limit(limit_bytes)? {
        return nothing("it is refused, as nothing can be reclaimed", 0);
    }
    guest.catch_up();
    let (mut verifies, mut bad) = (0, 0);
    let start = Instant::now();
    wait_until("verifies, or the guest's end", || {
        let reports = guest.new_lines();
        let reports = reports.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for verify in reports.filter(|report| report["phase"] == "verify") {
            verifies += 1;
            bad += verify["bad"].as_u64().unwrap_or(1);
        }
        (verifies >= VERIFIES && start.elapsed() >= TRIAL) || guest.has_ended()
    });
    match cgroup.usage()?.swapped_bytes {
        _ if guest.has_ended() => nothing("a guest that runs into it is killed", bad),
        0 => nothing("nothing is swapped", bad),
        _ => Ok((Reach::Guests(cgroup.version()), bad)),
    }
}
