//! How hard ksmd works: what ksmtuned does, the daemon that distributions of virtualization hosts ship (its settings as in Red
//! Hat's `ksmtuned.conf`), with the pool's budget for the host's memory.

use std::time::{Duration, Instant};

/// Pages that are added to what ksmd scans at a time while memory is short, and taken away while it is not.
const BOOST_PAGES: i64 = 300;
const DECAY_PAGES: i64 = 50;
const LEAST_PAGES: i64 = 64;
const MOST_PAGES: i64 = 1250;
/// Memory is short when less than this part of it is free. (The other threshold, 2 GiB, is for hosts of a hundred.)
const SHORT_PERCENT: u64 = 20;
/// How long ksmd sleeps between two scans on a host of 16 GiB; the larger the host, the shorter.
const SLEEP_MS: u64 = 10;
const SLEEP_HOST_BYTES: u64 = 16 << 30;

/// How often it looks. ksmtuned's own default of a minute is for guests that run for days.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What ksmd is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Whether it runs. What is merged stays so when it does not.
    pub runs: bool,
    /// Pages it scans before it sleeps.
    pub pages_to_scan: u64,
    /// How long it sleeps, in ms.
    pub sleep_millisecs: u64,
}

/// ksmtuned's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ksmtuned {
    total_bytes: u64,
    pages: i64,
}

impl Ksmtuned {
    /// For so much memory.
    pub const fn new(total_bytes: u64) -> Self {
        Self { total_bytes, pages: LEAST_PAGES }
    }

    /// What ksmd is to be set to: `committed_bytes` is all guests' RAM that is resident, `free_bytes` what is free.
    pub fn look(&mut self, committed_bytes: u64, free_bytes: u64) -> Setting {
        let short_bytes = self.total_bytes * SHORT_PERCENT / 100;
        let runs = committed_bytes + short_bytes >= self.total_bytes || free_bytes <= short_bytes;
        if runs {
            let change_pages = if free_bytes < short_bytes { BOOST_PAGES } else { -DECAY_PAGES };
            self.pages = (self.pages + change_pages).clamp(LEAST_PAGES, MOST_PAGES);
        }
        let sleep_millisecs = (SLEEP_MS * SLEEP_HOST_BYTES / self.total_bytes.max(1)).max(SLEEP_MS);
        Setting { runs, pages_to_scan: self.pages as u64, sleep_millisecs }
    }
}

/// The daemon, between two looks.
pub(super) struct Daemon {
    ksmtuned: Ksmtuned,
    next: Instant,
}

impl Daemon {
    /// It looks at once.
    pub fn new(total_bytes: u64) -> Self {
        Self { ksmtuned: Ksmtuned::new(total_bytes), next: Instant::now() }
    }

    /// As [`Ksmtuned::look`] when it is time to.
    pub fn look(&mut self, committed_bytes: u64, free_bytes: u64) -> Option<Setting> {
        let now = Instant::now();
        (now >= self.next).then(|| {
            self.next = now + LOOK_INTERVAL;
            self.ksmtuned.look(committed_bytes, free_bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn it_works_harder_while_memory_is_short_and_rests_while_it_is_not() {
        let mut ksmtuned = Ksmtuned::new(16 * GIB);
        let idle = ksmtuned.look(2 * GIB, 14 * GIB);
        assert_eq!(idle, Setting { runs: false, pages_to_scan: 64, sleep_millisecs: 10 });
        let pages: Vec<_> = (0..5).map(|_| ksmtuned.look(15 * GIB, GIB).pages_to_scan).collect();
        assert_eq!(pages, [364, 664, 964, 1250, 1250]);
        let easy = ksmtuned.look(13 * GIB, 4 * GIB);
        assert_eq!(easy, Setting { runs: true, pages_to_scan: 1200, sleep_millisecs: 10 });
    }

    #[test]
    fn on_a_small_host_it_sleeps_longer() {
        assert_eq!(Ksmtuned::new(GIB).look(GIB, 0).sleep_millisecs, 160);
        assert_eq!(Ksmtuned::new(64 * GIB).look(64 * GIB, 0).sleep_millisecs, 10);
    }
}
