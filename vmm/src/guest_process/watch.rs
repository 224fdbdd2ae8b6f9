//! Looks at all guests of the demo, all the while.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cistern::api::client::Client;
use serde_json::Value;

use super::account::Account;
use super::still::taken_bytes;

/// How often is looked, at most: guests are to work most of the time.
const INTERVAL: Duration = Duration::from_millis(400);
const INTERVAL_OF_LOOKS: u32 = 4;

/// A guest to look at.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Its process, which nobody waits for before the watch is over.
    pub pid: u32,
    /// Its control socket.
    pub socket: PathBuf,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    stop: Condvar,
}

#[derive(Default)]
struct Inner {
    is_stopping: bool,
    guests: Vec<Watched>,
    account: Account,
}

/// The looking thread; it ends when this is dropped.
#[derive(Default)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to look.
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        Self { shared, thread: Some(thread::spawn(move || of_thread.look_on())) }
    }

    /// Looks at one more.
    pub fn add(&self, guest: Watched) {
        self.shared.lock().guests.push(guest);
    }

    /// What was seen so far.
    pub fn account(&self) -> Account {
        self.shared.lock().account.clone()
    }

    /// Looks no more.
    pub fn finish(&mut self) -> Account {
        self.shared.lock().is_stopping = true;
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process.
            drop(thread.join());
        }
        self.account()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_on(&self) {
        let mut guests = Vec::new();
        loop {
            let start = Instant::now();
            let pids: Vec<_> = guests.iter().map(|guest: &Watched| guest.pid).collect();
            let taken = taken_bytes(&pids);
            let answers: Vec<_> = guests.iter().map(ask).collect();
            let pause = INTERVAL.max(INTERVAL_OF_LOOKS * start.elapsed());
            let mut inner = self.lock();
            if !guests.is_empty() {
                inner.account.take_memory(&taken);
                inner.account.take_answers(&answers);
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
