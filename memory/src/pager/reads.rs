//! Pages that are to be read from the swap file.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::page_table::{Claim, Refaulting};

/// Pages to be read, ascending. Whoever has the job owns their claims.
#[derive(Debug)]
pub(super) struct Job {
    /// All of them stored.
    pub claims: Vec<Claim<Refaulting>>,
    /// The page that was asked for, when the fault was read. The others come along.
    pub asked: Option<(u64, Instant)>,
}

/// What a reader is to do next.
#[derive(Debug)]
pub(super) enum Next {
    Job(Job),
    /// None has come in time.
    Late,
    /// None will.
    Closed,
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

    /// Waits for a job, for ever or so long. Jobs there are come before the end.
    pub fn pop(&self, patience: Option<Duration>) -> Next {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |jobs: &mut (VecDeque<Job>, bool)| jobs.0.is_empty() && !jobs.1;
        let mut jobs = match patience {
            None => self.changed.wait_while(jobs, is_idle).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                self.changed.wait_timeout_while(jobs, patience, is_idle).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        match jobs.0.pop_front() {
            Some(job) => Next::Job(job),
            None if jobs.1 => Next::Closed,
            None => Next::Late,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_come_before_the_end() {
        let (queue, moment) = (Queue::default(), Some(Duration::from_millis(1)));
        assert!(matches!(queue.pop(moment), Next::Late));
        queue.push(Job { claims: Vec::new(), asked: None });
        queue.close();
        assert!(matches!(queue.pop(None), Next::Job(_)));
        assert!(matches!((queue.pop(None), queue.pop(moment)), (Next::Closed, Next::Closed)));
    }
}
