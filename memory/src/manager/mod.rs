//! The manager: in each VM of a pool a thread that observes, has the leader's decisions from the ledger, and acts.
//!
//! [`Member`] is the VM in its pool, from before its guest is loaded; [`Manager`] runs it beside the guest. Whichever member
//! holds the leader's lock decides for all (`leader`), by the pure functions of [`crate::policy`]. Nothing is done in a pool
//! whose members fit its budget (`rest`).

mod balloon;
mod budget;
mod cold;
mod driver;
mod handle;
mod leader;
mod member;
mod own;
mod proactive;
mod rest;

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use budget::automatic_budget_bytes;
pub use handle::{LevelStatistics, ManagerHandle, ManagerStatistics};
pub use member::Member;

use crate::activity::TrackerConfig;
use crate::ledger::LedgerError;
use crate::pager::PagerError;
use crate::sharing::ksm::TunerConfig;

/// Why a VM cannot take part in a pool.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The pool, or its ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Guest memory cannot be paged.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// What the process costs cannot be read.
    #[error("/proc/self: {0}")]
    Proc(io::Error),
    /// There was no room to begin.
    #[error("the pool has no {} MiB for this VM to begin with: stop others, or raise the budget", .bytes.div_ceil(1 << 20))]
    NoRoom {
        /// What was needed.
        bytes: u64,
    },
    /// A thread cannot be had.
    #[error("manager: starting a thread: {0}")]
    Thread(io::Error),
}

/// When pages are taken from a guest without its help.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReclaimMode {
    /// Never.
    Off,
    /// When the pool is short of memory.
    #[default]
    Pressure,
    /// Cold pages always, as far as that does not cost the guest.
    Proactive,
}

/// How a member behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagerConfig {
    /// How the guest is sampled.
    pub tracker: TrackerConfig,
    /// Samples also where nothing is short.
    pub track: bool,
    /// When pages are taken.
    pub reclaim: ReclaimMode,
    /// The most a balloon may hold of its guest, in percent.
    pub balloon_max_percent: u8,
    /// How to drive the kernel's page merging, if this member may.
    pub ksm_tuner: Option<TunerConfig>,
}

impl ManagerConfig {
    /// Whether the guest is watched where nothing is short.
    fn samples_at_rest(&self) -> bool {
        self.track || self.reclaim == ReclaimMode::Proactive
    }
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            tracker: TrackerConfig::default(),
            track: false,
            reclaim: ReclaimMode::default(),
            balloon_max_percent: 65,
            ksm_tuner: None,
        }
    }
}

/// What the thread and its owner share.
#[derive(Debug, Default)]
struct Shared {
    is_stopping: Mutex<bool>,
    stop: Condvar,
}

/// Runs a member beside its guest until it is dropped.
/// Its control is a [`ManagerHandle`].
#[derive(Debug)]
pub struct Manager {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    /// Starts the thread. The member has taken charge of its guest.
    ///
    /// # Errors
    /// [`ManagerError::Thread`].
    pub fn start(mut member: Member) -> Result<Self, ManagerError> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let body = move || {
            while !of_thread.is_stopping() {
                let pause = member.step(Instant::now()).unwrap_or_else(|_| member.note_failure());
                of_thread.rest(pause);
            }
        };
        let thread = thread::Builder::new().name("manager".to_owned()).spawn(body).map_err(ManagerError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        *self.is_stopping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rest(&self, pause: Duration) {
        let is_stopping = self.is_stopping.lock().unwrap_or_else(PoisonError::into_inner);
        // Woken too early it looks round once more.
        drop(self.stop.wait_timeout_while(is_stopping, pause, |is_stopping| !*is_stopping));
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        *self.shared.is_stopping.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process.
            drop(thread.join());
        }
    }
}
