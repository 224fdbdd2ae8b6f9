//! How fast ksmd is to go: from what waits to be merged, and what it costs, to pages_to_scan and sleep_millisecs. Pure.
//!
//! ksmd goes through everything that is advised, again and again. A page is merged at the earliest when it is seen the
//! second time with the same content (kernel mm/ksm.c, the checksum of an rmap item), so what is advised now is judged after
//! two whole passes; more passes find only what has changed since. But ksmd's search for an equal ends, without any, at a page
//! that is away for a moment (unstable_tree_search_insert): where pages are evicted or sampled meanwhile a pass merges a part of
//! what it could. So there are two speeds: all of the budget while there is something new or passes still merge, next to
//! nothing once all is judged. Slow passes are no help there: more pages leave while they last.

use std::time::Duration;

/// The pass that is under way when a page is advised may be past it; the two after that are whole.
const PASSES: u64 = 3;

/// So many pages more than at the last look are something new: the larger of 1 MiB and a 16th. Below that, pages that
/// are unmerged by a write here and merged again there would keep ksmd going.
const NEW_PAGES: u64 = 256;
const NEW_PART: u64 = 16;

/// A last pass that merges so many pages more, or this part of those that wait if that is more, is followed by as many again, and
/// so are those if they do so together: where pages are written to meanwhile, one by itself may well end with less than before.
const MERGED_PAGES: u64 = 64;
const MERGED_PART: u64 = 64;

/// CPU share of a ksmd that has nothing to do; it would find pages that have become equal since.
const REST_SHARE: f64 = 0.001;

/// Scan and sleep together. ksmd sleeps up to a tick (10 ms at most) longer than it is told: the longer, the less that
/// matters; the shorter, the less it keeps others from the CPU at a time.
const CYCLE: Duration = Duration::from_millis(200);
const REST_CYCLE: Duration = Duration::from_secs(2);

/// A page where this was measured first; what holds is measured.
const FIRST_COST: Duration = Duration::from_nanos(5700);

/// What a page may cost: a page that only has to be counted, and one behind thousands that ksmd skips.
const COSTS: (f64, f64) = (100e-9, 10e-3);

/// CPU time after which the cost of a page is told anew: two clock ticks where there is no better clock.
const COST_WINDOW: Duration = Duration::from_millis(20);

/// In which time a difference to the budget is made good.
const HORIZON: Duration = Duration::from_secs(2);

/// By which factor the share may differ from the budget for that. On a busy host ksmd waits for the CPU, and more so as it
/// is nicer than others; what it could not have does not come all at once afterwards.
const CORRECTIONS: (f64, f64) = (0.1, 2.0);

/// No correction makes ksmd go without sleep: it would not be told any more how many pages it has time for.
const CORRECTED_MOST: f64 = 0.95;

/// A pace that differs less is not worth a write.
const NEAR: f64 = 0.05;

/// How ksmd runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Pace {
    /// Pages it looks at before it sleeps.
    pub pages_to_scan: u32,
    /// How long it sleeps.
    pub sleep_millisecs: u32,
}

impl Pace {
    /// The pace that takes a share of a core, above 0 and at most 1, when a page costs so many seconds.
    fn of(share: f64, cycle: Duration, cost_seconds: f64) -> Self {
        let busy_seconds = cycle.as_secs_f64() * share;
        let pages = (busy_seconds / cost_seconds).round().clamp(1.0, f64::from(u32::MAX));
        // As long as what is looked at costs, where that is more than the cycle has room for.
        let cycle_seconds = cycle.as_secs_f64().max(pages * cost_seconds / share);
        let sleep = (cycle_seconds * (1.0 - share) * 1e3).round();
        Self { pages_to_scan: pages as u32, sleep_millisecs: sleep as u32 }
    }

    fn is_near(self, other: Self) -> bool {
        let near = |a: u32, b: u32| f64::from(a.abs_diff(b)) <= f64::from(a.max(b)) * NEAR;
        near(self.pages_to_scan, other.pages_to_scan) && near(self.sleep_millisecs, other.sleep_millisecs)
    }
}

/// What is known at a moment. Totals only ever rise, unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Look {
    /// Time since any beginning.
    pub time: Duration,
    /// Pages that are advised and not merged.
    pub waiting_pages: u64,
    /// Pages that are merged now, of the whole host: it may fall.
    pub merged_pages: u64,
    /// Passes that ksmd has ended.
    pub full_scans: u64,
    /// Pages it has looked at, where the kernel counts them.
    pub pages_scanned: Option<u64>,
    /// CPU time it has had, where it can be seen.
    pub cpu_time: Option<Duration>,
}

/// Whether there is something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// All was judged but for less than would be new; so many pages remained.
    Judged { pages: u64 },
    /// There is, until the passes have reached this number; so many pages wait at the least since.
    New { until_scans: u64, pages: u64, start: Start },
}

/// What the last passes start from: the one that is under way, or several together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    /// It is left as it is until more passes than these have ended.
    after_scans: u64,
    /// The most pages that were merged at an end of passes, 0 before the first: what is unmerged by a write and merged again is
    /// nothing gained.
    merged_pages: u64,
}

impl Start {
    fn next(self, look: &Look) -> Self {
        let merged_pages = self.merged_pages.max(look.merged_pages);
        if look.full_scans <= self.after_scans { self } else { Self { after_scans: look.full_scans, merged_pages } }
    }
}

impl Work {
    fn next(self, look: &Look) -> Self {
        let Look { waiting_pages, merged_pages, full_scans, .. } = *look;
        let (Self::Judged { pages } | Self::New { pages, .. }) = self;
        let is_new = waiting_pages >= pages.saturating_add(NEW_PAGES.max(pages / NEW_PART));
        let least_pages = pages.min(waiting_pages);
        let has_merged = |start: Start| {
            merged_pages.saturating_sub(start.merged_pages) >= MERGED_PAGES.max(least_pages / MERGED_PART)
        };
        let new = |until_scans, pages, start| Self::New { until_scans, pages, start };
        let until_scans_more = full_scans.saturating_add(PASSES);
        match self {
            // What counts as merged before the first pass may be of processes that are gone: ksmd forgets them as it goes.
            _ if is_new => new(until_scans_more, waiting_pages, Start { after_scans: full_scans, merged_pages: 0 }),
            Self::New { until_scans, start, .. } if waiting_pages > 0 && full_scans < until_scans => {
                new(until_scans, least_pages, start.next(look))
            }
            Self::New { start, .. } if waiting_pages > 0 && has_merged(start) => {
                new(until_scans_more, least_pages, Start { after_scans: until_scans_more, merged_pages })
            }
            Self::New { .. } => Self::Judged { pages: waiting_pages },
            // Down with those that get merged after all: what comes instead is new.
            Self::Judged { .. } => Self::Judged { pages: least_pages },
        }
    }
}

/// What ksmd costs.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cost {
    seconds_a_page: f64,
    /// What was seen since that was told.
    seen: Duration,
    seen_pages: f64,
}

impl Cost {
    fn next(mut self, cpu_time: Duration, pages: f64) -> Self {
        self.seen += cpu_time;
        self.seen_pages += pages;
        if self.seen >= COST_WINDOW && self.seen_pages >= 1.0 {
            // The last window alone: a first look at a page costs a fifth of a second one, and each is whole passes long.
            let seconds_a_page = (self.seen.as_secs_f64() / self.seen_pages).clamp(COSTS.0, COSTS.1);
            return Self { seconds_a_page, seen: Duration::ZERO, seen_pages: 0.0 };
        }
        self
    }
}

/// What a tuner remembers from look to look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Regulator {
    /// The budget: a share of a core, above 0 and at most 1.
    share: f64,
    work: Work,
    cost: Cost,
    /// CPU time below (or, negative, above) the budget, in seconds.
    unspent_seconds: f64,
    last: Option<Look>,
    pace: Option<Pace>,
}

impl Regulator {
    /// With a budget in percent of a core, 1 to 100.
    pub fn new(cpu_percent: u8) -> Self {
        Self {
            share: f64::from(cpu_percent.clamp(1, 100)) / 100.0,
            work: Work::Judged { pages: 0 },
            cost: Cost { seconds_a_page: FIRST_COST.as_secs_f64(), seen: Duration::ZERO, seen_pages: 0.0 },
            unspent_seconds: 0.0,
            last: None,
            pace: None,
        }
    }

    /// As one who takes over a ksmd that is driven already: it rests until there is something new.
    #[must_use]
    pub fn taking_over(mut self) -> Self {
        self.pace = Some(self.rest());
        self
    }

    fn rest(&self) -> Pace {
        Pace::of(self.share.min(REST_SHARE), REST_CYCLE, self.cost.seconds_a_page)
    }

    /// The pace; `None` until there was anything to do.
    pub fn pace(&self) -> Option<Pace> {
        self.pace
    }

    /// Whether there is something new to be merged.
    pub fn is_busy(&self) -> bool {
        matches!(self.work, Work::New { .. })
    }

    /// What a page costs, as measured.
    pub fn cost(&self) -> Duration {
        Duration::from_secs_f64(self.cost.seconds_a_page)
    }

    /// After another look.
    #[must_use]
    pub fn next(mut self, look: &Look) -> Self {
        let was_busy = self.is_busy();
        self.measure(look);
        self.work = self.work.next(look);
        self.last = Some(*look);
        if self.is_busy() != was_busy {
            // What was not used for want of work is not for later.
            self.unspent_seconds = self.unspent_seconds.min(0.0);
        }
        let wanted = match self.is_busy() {
            true => Pace::of(self.corrected_share(), CYCLE, self.cost.seconds_a_page),
            false if self.pace.is_none() => return self,
            false => self.rest(),
        };
        self.pace = Some(self.pace.filter(|pace| pace.is_near(wanted)).unwrap_or(wanted));
        self
    }

    /// What became of the last pace.
    fn measure(&mut self, look: &Look) {
        let (Some(last), Some(pace)) = (self.last, self.pace) else { return };
        let passed = look.time.saturating_sub(last.time);
        let (Some(before), Some(now)) = (last.cpu_time, look.cpu_time) else { return };
        let used = now.saturating_sub(before);
        let pages = match (last.pages_scanned, look.pages_scanned) {
            (Some(before), Some(now)) => Some(now.saturating_sub(before) as f64),
            // It does not count them: so many as belong to the sleeps it had time for.
            _ if used.is_zero() || pace.sleep_millisecs == 0 => None,
            _ => {
                let slept = passed.saturating_sub(used).as_secs_f64();
                Some(slept * 1e3 / f64::from(pace.sleep_millisecs) * f64::from(pace.pages_to_scan))
            }
        };
        if let Some(pages) = pages {
            self.cost = self.cost.next(used, pages);
        }
        if self.is_busy() {
            let most = self.share * HORIZON.as_secs_f64();
            let unspent = self.unspent_seconds + passed.as_secs_f64() * self.share - used.as_secs_f64();
            // A batch ends with its pass: where passes are short ksmd has no use for the budget, and will have none later.
            let is_short_of_work = look.full_scans.saturating_sub(last.full_scans) > 1;
            let most_saved = if is_short_of_work { 0.0 } else { most * (CORRECTIONS.1 - 1.0) };
            self.unspent_seconds = unspent.clamp(-most * (1.0 - CORRECTIONS.0), most_saved);
        }
    }

    /// The share of a core for the next time, so that the budget is kept on the whole.
    fn corrected_share(&self) -> f64 {
        let correction = 1.0 + self.unspent_seconds / (self.share * HORIZON.as_secs_f64());
        (self.share * correction.clamp(CORRECTIONS.0, CORRECTIONS.1)).min(self.share.max(CORRECTED_MOST))
    }
}

#[cfg(test)]
mod tests;
