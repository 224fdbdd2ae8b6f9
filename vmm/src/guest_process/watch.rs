//! Looks at all guests, all the while.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cistern::api::client::Client;
use serde_json::Value;

use super::cpu::{CpuTime, cpu_time};
use super::still::{Taken, taken};

/// How often is looked, at most: guests stand still for a part of each look, and are to work most of the time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// The least time between two looks.
    pub interval: Duration,
    /// The least time between two, in times that guests stand still for one.
    pub interval_of_stops: u32,
}

/// What was seen at one look, guest by guest, as they were added.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// The CPU time each has had, one after the other; `None` for who is gone.
    pub cpu: Vec<Option<CpuTime>>,
    /// What each takes of the host, all at one moment; `None` for who is gone.
    pub taken: Vec<Option<Taken>>,
    /// What their VMMs answer to `GET /memory`, one after the other; `None` for who does not.
    pub answers: Vec<Option<Value>>,
}

/// What becomes of looks.
pub trait Observer: Clone + Default + Send + 'static {
    /// Takes one.
    fn take(&mut self, look: &Look);
}

/// A guest to look at.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Its process, which nobody waits for before the watch is over.
    pub pid: u32,
    /// Its control socket.
    pub socket: PathBuf,
}

#[derive(Default)]
struct Shared<O> {
    inner: Mutex<Inner<O>>,
    stop: Condvar,
}

#[derive(Default)]
struct Inner<O> {
    is_stopping: bool,
    pace: Pace,
    guests: Vec<Watched>,
    observer: O,
}

/// The looking thread; it ends when this is dropped.
pub struct Watch<O: Observer> {
    shared: Arc<Shared<O>>,
    thread: Option<JoinHandle<()>>,
}

impl<O: Observer> Watch<O> {
    /// Starts to look.
    pub fn start(pace: Pace) -> Self {
        let shared = Arc::new(Shared { inner: Mutex::new(Inner { pace, ..Inner::default() }), stop: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        Self { shared, thread: Some(thread::spawn(move || of_thread.look_on())) }
    }

    /// Looks more or less often, from the next look on.
    pub fn set_pace(&self, pace: Pace) {
        self.shared.lock().pace = pace;
    }

    /// Looks at one more.
    pub fn add(&self, guest: Watched) {
        self.shared.lock().guests.push(guest);
    }

    /// What was seen so far.
    pub fn seen(&self) -> O {
        self.shared.lock().observer.clone()
    }

    /// Looks no more.
    pub fn finish(&mut self) -> O {
        self.shared.lock().is_stopping = true;
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process.
            drop(thread.join());
        }
        self.seen()
    }
}

impl<O: Observer> Drop for Watch<O> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<O: Observer> Shared<O> {
    fn lock(&self) -> MutexGuard<'_, Inner<O>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_on(&self) {
        let mut guests: Vec<Watched> = Vec::new();
        loop {
            let start = Instant::now();
            let pids: Vec<_> = guests.iter().map(|guest| guest.pid).collect();
            let taken = taken(&pids);
            let stood_still = start.elapsed();
            let look = Look {
                taken,
                cpu: pids.into_iter().map(cpu_time).collect(),
                answers: guests.iter().map(ask).collect(),
            };
            let mut inner = self.lock();
            let pause = inner.pace.interval.max(inner.pace.interval_of_stops * stood_still);
            if !guests.is_empty() {
                inner.observer.take(&look);
            }
            let inner = self.stop.wait_timeout_while(inner, pause, |inner| !inner.is_stopping);
            let (inner, _) = inner.unwrap_or_else(PoisonError::into_inner);
            if inner.is_stopping {
                return;
            }
            guests.clone_from(&inner.guests);
        }
    }
}

/// What a guest's VMM says of its memory. One that has only begun, or has ended, does not answer.
fn ask(guest: &Watched) -> Option<Value> {
    Client::connect(&guest.socket).ok()?.get("/memory").ok()
}
