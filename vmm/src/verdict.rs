//! Where the first ending of a run is kept.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use cistern_devices::request::GuestRequest;
use cistern_memory::manager::ManagerError;
use cistern_memory::pager::PagerError;
use cistern_memory::sharing::SharingError;
use vmm_sys_util::eventfd::EventFd;

use crate::outcome::Outcome;

/// Errors of the host while the guest runs.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// `KVM_RUN` failed.
    #[error("vCPU {id}: KVM_RUN: {cause}")]
    Vcpu {
        /// Number of the CPU.
        id: u8,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The limit on guest memory could not be set.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// The VM cannot take its part in its pool.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// Nothing can look for what could be shared.
    #[error(transparent)]
    Sharing(#[from] SharingError),
    /// A thread could not be started or the event loop failed.
    #[error("{what}: {cause}")]
    Thread {
        /// Which part of the process.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The end of a run: many threads may reach one, the first stands. An eventfd tells the supervisor.
#[derive(Debug)]
pub struct Verdict {
    ending: Mutex<Option<Result<Outcome, RunError>>>,
    reached: EventFd,
    // Guards nothing: a vCPU that reports a crash kernel and then resets does both in program order.
    crash_kernel: AtomicBool,
}

impl Verdict {
    /// No ending yet.
    ///
    /// # Errors
    /// When the eventfd cannot be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ending: Mutex::new(None),
            reached: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            crash_kernel: AtomicBool::new(false),
        })
    }

    /// Ends the run with `ending`, unless it has ended already.
    pub fn reach(&self, ending: Result<Outcome, RunError>) {
        let mut slot = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(ending);
            // Fails only when the counter is full: then it is readable already.
            let _ = self.reached.write(1);
        }
    }

    /// What the guest asked for. After its kernel has panicked into a crash kernel no ending is a success.
    pub fn request(&self, request: GuestRequest) {
        let outcome = match request {
            GuestRequest::CrashLoaded => {
                self.crash_kernel.store(true, Ordering::Relaxed);
                return;
            }
            GuestRequest::Panic => Outcome::Crash("kernel panic".to_owned()),
            GuestRequest::Reset | GuestRequest::PowerOff if self.crash_kernel.load(Ordering::Relaxed) => {
                Outcome::Crash("kernel panic, and its crash kernel has run".to_owned())
            }
            GuestRequest::Reset => Outcome::Reset,
            GuestRequest::PowerOff => Outcome::PowerOff,
            GuestRequest::Exit(byte) => Outcome::Exit(byte),
        };
        self.reach(Ok(outcome));
    }

    /// Readable once there is an ending.
    pub fn event(&self) -> &EventFd {
        &self.reached
    }

    /// Takes the ending.
    pub fn take(&self) -> Option<Result<Outcome, RunError>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
