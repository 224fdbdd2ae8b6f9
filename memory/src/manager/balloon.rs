//! Whether a guest's balloon does what it is asked, and how much may be asked of it. Pure.

use std::time::{Duration, Instant};

use crate::BalloonStatistics;
use crate::ledger::BalloonHealth;

/// How long a balloon has for its first steps towards a target.
const PATIENCE: Duration = Duration::from_secs(5);

/// The part of what was asked, in percent, that must have come by then.
const PROGRESS_PERCENT: u64 = 10;

/// The part of what it took, in percent, that must have left the host: pages that a guest never touched are given first, and
/// are nothing to anybody.
const GIVEN_PERCENT: u64 = 10;

/// What must have been taken before anything is concluded from what that gave.
const LEAST_TAKEN_BYTES: u64 = 256 << 10;

/// How long a balloon that stalled, or that hurt, is not asked for more.
const PAUSE: Duration = Duration::from_secs(30);

/// A guest has so little left that taking more would hurt: this part of its memory, in percent.
const LOW_PERCENT: u64 = 2;

/// What is known of a balloon at a moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BalloonView {
    /// The guest drives it.
    pub has_driver: bool,
    /// What it was last asked to hold.
    pub target_bytes: u64,
    /// What it holds.
    pub inflated_bytes: u64,
    /// What taking it has given the host, in total.
    pub given_bytes: u64,
    /// What the guest last said.
    pub statistics: Option<BalloonStatistics>,
}

/// An earlier look at what was asked, from which progress is measured.
#[derive(Debug, Clone, Copy)]
struct Asked {
    since: Instant,
    target_bytes: u64,
    inflated_bytes: u64,
}

/// An earlier look at what was held, from which is measured what more of it gives.
#[derive(Debug, Clone, Copy)]
struct Held {
    since: Instant,
    inflated_bytes: u64,
    given_bytes: u64,
}

/// Watches one balloon.
#[derive(Debug, Default)]
pub(super) struct BalloonWatch {
    asked: Option<Asked>,
    stalled: Option<Instant>,
    held: Option<Held>,
    /// When it was last seen to take what is nothing to the host.
    vain: Option<Instant>,
    /// The most that may be asked for, and since when: the guest was seen to suffer from more.
    ceiling: Option<(u64, Instant)>,
    last_paging_bytes: Option<u64>,
    last_inflated_bytes: u64,
    cost_bytes: u64,
}

impl BalloonWatch {
    /// Looks at the balloon now: its health, and the most it may be asked to hold.
    pub fn look(&mut self, view: &BalloonView, now: Instant) -> (BalloonHealth, u64) {
        if !view.has_driver {
            *self = Self { cost_bytes: self.cost_bytes, ..Self::default() };
            return (BalloonHealth::Absent, 0);
        }
        let health = self.health(view, now);
        let most_bytes = self.most_bytes(view, now);
        self.last_inflated_bytes = view.inflated_bytes;
        (health, most_bytes)
    }

    /// What the guest has moved to and from its own swap while the balloon held something: a guest pages because it has too
    /// little, and the balloon took it.
    pub fn cost_bytes(&self) -> u64 {
        self.cost_bytes
    }

    fn health(&mut self, view: &BalloonView, now: Instant) -> BalloonHealth {
        let is_asked = view.target_bytes > view.inflated_bytes;
        match self.asked {
            _ if !is_asked => self.asked = None,
            Some(asked) if asked.target_bytes == view.target_bytes => {
                let wanted_bytes = asked.target_bytes.saturating_sub(asked.inflated_bytes);
                let came_bytes = view.inflated_bytes.saturating_sub(asked.inflated_bytes);
                if came_bytes * 100 >= wanted_bytes * PROGRESS_PERCENT {
                    self.asked = Some(Asked { since: now, inflated_bytes: view.inflated_bytes, ..asked });
                    self.stalled = None;
                } else if now.duration_since(asked.since) >= PATIENCE {
                    self.stalled = Some(now);
                }
            }
            // A target that moves does not start the clock anew: what came since counts against the first.
            Some(asked) if now.duration_since(asked.since) < PATIENCE => {
                self.asked = Some(Asked { target_bytes: view.target_bytes, ..asked });
            }
            _ => {
                let (since, inflated_bytes) = (now, view.inflated_bytes);
                self.asked = Some(Asked { since, target_bytes: view.target_bytes, inflated_bytes });
            }
        }
        if self.takes_in_vain(view, now) {
            self.vain = Some(now);
        }
        let pauses = |since: &Instant| now.duration_since(*since) < PAUSE;
        self.stalled = self.stalled.filter(pauses);
        self.vain = self.vain.filter(pauses);
        if self.stalled.or(self.vain).is_some() { BalloonHealth::Stalled } else { BalloonHealth::Working }
    }

    /// Whether a balloon has done what it was asked for some time, and hardly any of it has left the host.
    fn takes_in_vain(&mut self, view: &BalloonView, now: Instant) -> bool {
        let BalloonView { inflated_bytes, given_bytes, .. } = *view;
        let held = *self.held.get_or_insert(Held { since: now, inflated_bytes, given_bytes });
        let taken_bytes = inflated_bytes.saturating_sub(held.inflated_bytes);
        let is_judged = now.duration_since(held.since) >= PATIENCE && taken_bytes >= LEAST_TAKEN_BYTES;
        if is_judged || taken_bytes == 0 {
            self.held = Some(Held { since: now, inflated_bytes, given_bytes });
        }
        is_judged && given_bytes.saturating_sub(held.given_bytes) * 100 < taken_bytes * GIVEN_PERCENT
    }

    /// A guest that pages, that took pages back by itself, or that has next to nothing left is not asked for more than it
    /// gave by then, and for some time.
    fn most_bytes(&mut self, view: &BalloonView, now: Instant) -> u64 {
        let mut suffers = false;
        if let Some(statistics) = &view.statistics {
            let paging_bytes =
                statistics.swap_in_bytes.unwrap_or(0).saturating_add(statistics.swap_out_bytes.unwrap_or(0));
            let last_bytes = self.last_paging_bytes.replace(paging_bytes).unwrap_or(paging_bytes);
            if paging_bytes > last_bytes {
                suffers = true;
                if view.inflated_bytes > 0 {
                    self.cost_bytes += paging_bytes - last_bytes;
                }
            }
            let left_bytes = statistics.available_bytes.or(statistics.free_bytes);
            if let (Some(left_bytes), Some(total_bytes)) = (left_bytes, statistics.total_bytes) {
                suffers |= left_bytes < total_bytes / 100 * LOW_PERCENT;
            }
        }
        // Deflated although it was not asked to: out of memory.
        suffers |= view.inflated_bytes < self.last_inflated_bytes && view.inflated_bytes < view.target_bytes;
        if suffers {
            // A quarter of it back at once, so that the guest recovers before it pages again.
            self.ceiling = Some((view.inflated_bytes / 4 * 3, now));
        } else if self.ceiling.is_some_and(|(_, since)| now.duration_since(since) >= PAUSE) {
            self.ceiling = None;
        }
        self.ceiling.map_or(u64::MAX, |(bytes, _)| bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn view(target_mib: u64, inflated_mib: u64) -> BalloonView {
        BalloonView {
            has_driver: true,
            target_bytes: target_mib * MIB,
            inflated_bytes: inflated_mib * MIB,
            given_bytes: inflated_mib * MIB,
            statistics: None,
        }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_balloon_without_a_driver_is_absent() {
        let mut watch = BalloonWatch::default();
        let now = Instant::now();
        assert_eq!(watch.look(&BalloonView { has_driver: false, ..view(10, 0) }, now).0, BalloonHealth::Absent);
        assert_eq!(watch.look(&view(10, 0), now).0, BalloonHealth::Working);
    }

    #[test]
    fn one_that_does_not_follow_stalls_until_later() {
        let mut watch = BalloonWatch::default();
        let start = Instant::now();
        let mut health = |target, inflated, seconds| watch.look(&view(target, inflated), after(start, seconds)).0;
        assert_eq!(health(100, 0, 0), BalloonHealth::Working);
        assert_eq!(health(100, 9, 4), BalloonHealth::Working);
        assert_eq!(health(100, 9, 5), BalloonHealth::Stalled);
        // Also where somebody asks again and again.
        assert_eq!(health(110, 9, 34), BalloonHealth::Stalled);
        assert_eq!(health(110, 9, 35), BalloonHealth::Working);
        for second in 36..41 {
            health(110 + second, 9, second);
        }
        assert_eq!(health(160, 9, 41), BalloonHealth::Working);
        assert_eq!(health(160, 9, 46), BalloonHealth::Stalled);
        // What is reached is no stall, however long.
        assert_eq!(health(20, 20, 80), BalloonHealth::Working);
        assert_eq!(health(20, 20, 1000), BalloonHealth::Working);
        assert_eq!(health(40, 22, 1001), BalloonHealth::Working);
        assert_eq!(health(40, 24, 1005), BalloonHealth::Working);
        assert_eq!(health(40, 26, 1009), BalloonHealth::Working, "slow is not stalled");
    }

    #[test]
    fn one_that_gives_nothing_stalls() {
        let mut watch = BalloonWatch::default();
        let start = Instant::now();
        let mut health = |inflated, given_mib: u64, seconds| {
            let view = BalloonView { given_bytes: given_mib * MIB, ..view(inflated, inflated) };
            watch.look(&view, after(start, seconds)).0
        };
        assert_eq!(health(0, 0, 0), BalloonHealth::Working);
        assert_eq!(health(20, 0, 4), BalloonHealth::Working, "not for long");
        assert_eq!(health(30, 3, 5), BalloonHealth::Working, "a tenth");
        assert_eq!(health(50, 5, 9), BalloonHealth::Working);
        assert_eq!(health(60, 5, 10), BalloonHealth::Stalled);
        assert_eq!(health(60, 5, 39), BalloonHealth::Stalled);
        assert_eq!(health(60, 5, 40), BalloonHealth::Working);
        // Deflated and asked again: what it holds again counts anew.
        assert_eq!(health(10, 5, 41), BalloonHealth::Working);
        assert_eq!(health(40, 35, 50), BalloonHealth::Working);
        assert_eq!(health(70, 35, 56), BalloonHealth::Stalled);
    }

    #[test]
    fn a_guest_that_suffers_is_left_alone() {
        let start = Instant::now();
        let paging = |bytes| BalloonView {
            statistics: Some(BalloonStatistics { swap_out_bytes: Some(bytes), ..BalloonStatistics::default() }),
            ..view(100, 80)
        };
        let mut watch = BalloonWatch::default();
        assert_eq!(watch.look(&paging(5), start).1, u64::MAX, "what was before is not the balloon's");
        assert_eq!(watch.look(&paging(6), start).1, 60 * MIB);
        assert_eq!(watch.look(&paging(6), after(start, 29)).1, 60 * MIB);
        assert_eq!(watch.look(&paging(6), after(start, 30)).1, u64::MAX);
        assert_eq!(watch.cost_bytes(), 1);
        let empty = BalloonView { inflated_bytes: 0, target_bytes: 0, ..paging(9) };
        assert_eq!(watch.look(&empty, after(start, 31)).1, 0, "it has too little without a balloon");
        assert_eq!(watch.cost_bytes(), 1, "which is not the balloon's doing");

        let left = |available| BalloonView {
            statistics: Some(BalloonStatistics {
                available_bytes: Some(available),
                total_bytes: Some(100 * MIB),
                ..BalloonStatistics::default()
            }),
            ..view(100, 40)
        };
        let mut watch = BalloonWatch::default();
        assert_eq!(watch.look(&left(2 * MIB), start).1, u64::MAX);
        assert_eq!(watch.look(&left(2 * MIB - 1), start).1, 30 * MIB);

        let mut watch = BalloonWatch::default();
        assert_eq!(watch.look(&view(100, 80), start).1, u64::MAX);
        assert_eq!(watch.look(&view(100, 70), start).1, 70 / 4 * 3 * MIB + 1536 * 1024, "it took pages back");
        let mut watch = BalloonWatch::default();
        watch.look(&view(100, 80), start);
        assert_eq!(watch.look(&view(60, 70), start).1, u64::MAX, "it was asked to");
    }
}
