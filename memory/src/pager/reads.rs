//! Pages that are to be read from the swap file.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::page_table::{Claim, Refaulting};

/// Pages to be read, ascending. Whoever has the job owns their claims.
#[derive(Debug)]
pub(super) struct Job {
    /// All of them stored.
    pub claims: Vec<Claim<Refaulting>>,
    /// The page that was asked for, when the fault was read. The others come along.
    pub asked: Option<(u64, Instant)>,
}

/// Jobs that wait for a reader. Each is a fault that waits, so there are no more than the guest's CPUs can have.
#[derive(Debug, Default)]
pub(super) struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    changed: Condvar,
}

impl Queue {
    pub fn push(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).0.push_back(job);
        self.changed.notify_one();
    }

    /// No more jobs come; those there are will be done.
    pub fn close(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    /// The next job; `None` when the queue is closed and empty.
    pub fn pop(&self) -> Option<Job> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |jobs: &mut (VecDeque<Job>, bool)| jobs.0.is_empty() && !jobs.1;
        self.changed.wait_while(jobs, idle).unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }
}
