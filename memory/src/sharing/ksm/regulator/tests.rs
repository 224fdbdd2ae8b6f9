//! The regulator against a model of ksmd.

use proptest::prelude::*;

use super::*;

/// ksmd and what is advised, as kernel mm/ksm.c has it: a batch of pages, cut off at the end of a pass; a sleep, longer by
/// up to a tick; pages merged when they are seen the second time, or a part of them at a time.
struct Host {
    time: f64,
    cpu: f64,
    pages_scanned: u64,
    full_scans: u64,
    /// How far the pass under way is.
    cursor: u64,
    cost: f64,
    tick: f64,
    /// Batches of pages that were advised: how many, how many of them have an equal, which passes have to end.
    advised: Vec<(u64, u64, u64)>,
    /// Of what has an equal, how much a pass merges.
    merged_part: f64,
    counts_pages: bool,
    shows_cpu: bool,
    /// How long a sleep is over after the tick: 0 to 1, another each time.
    phase: f64,
    asleep_until: f64,
    /// Time that passes for each second of CPU: above 1 where others want it too.
    crowd: f64,
    pace: Option<Pace>,
    writes: u32,
}

impl Host {
    fn new(cost_us: f64, tick_hz: f64) -> Self {
        Self {
            time: 0.0,
            cpu: 0.0,
            pages_scanned: 0,
            full_scans: 0,
            cursor: 0,
            cost: cost_us * 1e-6,
            tick: 1.0 / tick_hz,
            advised: Vec::new(),
            merged_part: 1.0,
            counts_pages: true,
            shows_cpu: true,
            phase: 0.0,
            asleep_until: 0.0,
            crowd: 1.0,
            pace: None,
            writes: 0,
        }
    }

    fn advise(&mut self, pages: u64, equal: u64) {
        // Of the pass that is under way it may be behind the cursor.
        let whole = if self.cursor == 0 { 2 } else { 3 };
        self.advised.push((pages, equal, self.full_scans + whole));
    }

    fn total(&self) -> u64 {
        self.advised.iter().map(|(pages, ..)| pages).sum()
    }

    fn look(&self) -> Look {
        let merged = |&(_, equal, after): &(u64, u64, u64)| {
            let passes = (self.full_scans + 1).saturating_sub(after);
            (equal as f64 * (1.0 - (1.0 - self.merged_part).powf(passes as f64))) as u64
        };
        let merged_pages = self.advised.iter().map(merged).sum();
        Look {
            time: Duration::from_secs_f64(self.time),
            waiting_pages: self.total() - merged_pages,
            merged_pages,
            full_scans: self.full_scans,
            pages_scanned: self.counts_pages.then_some(self.pages_scanned),
            cpu_time: self.shows_cpu.then(|| Duration::from_secs_f64(self.cpu)),
        }
    }

    fn set(&mut self, pace: Option<Pace>) {
        if pace != self.pace {
            self.writes += 1;
            self.pace = pace;
            // A changed sleep wakes it.
            self.asleep_until = self.time;
        }
    }

    fn run(&mut self, seconds: f64) {
        let end = self.time + seconds;
        while let Some(pace) = self.pace.filter(|_| self.asleep_until < end && self.total() > 0) {
            self.time = self.time.max(self.asleep_until);
            let pages = u64::from(pace.pages_to_scan).min(self.total() - self.cursor);
            let busy = pages as f64 * self.cost;
            self.time += busy * self.crowd;
            self.cpu += busy;
            self.pages_scanned += pages;
            self.cursor += pages;
            if self.cursor >= self.total() {
                self.cursor = 0;
                self.full_scans += 1;
            }
            self.phase = (self.phase + 0.618) % 1.0;
            self.asleep_until = self.time + f64::from(pace.sleep_millisecs) * 1e-3 + self.phase * self.tick;
        }
        self.time = self.time.max(end);
    }

    /// Looks every second; the share of a core that ksmd had in that time.
    fn regulate(&mut self, regulator: &mut Regulator, seconds: u32) -> f64 {
        let (time, cpu) = (self.time, self.cpu);
        for _ in 0..seconds {
            *regulator = regulator.next(&self.look());
            self.set(regulator.pace());
            self.run(1.0);
        }
        (self.cpu - cpu) / (self.time - time)
    }

    /// Until all is judged; how long that took.
    fn regulate_to_rest(&mut self, regulator: &mut Regulator) -> u32 {
        let mut seconds = 0;
        loop {
            self.regulate(regulator, 1);
            if !regulator.is_busy() {
                return seconds;
            }
            seconds += 1;
            assert!(seconds < 10_000, "{regulator:?}");
        }
    }
}

const GIB: u64 = (1 << 30) / 4096;

#[test]
fn nothing_is_asked_for_until_something_waits() {
    let mut regulator = Regulator::new(10);
    let mut host = Host::new(5.7, 250.0);
    host.regulate(&mut regulator, 100);
    host.advise(100, 100);
    host.regulate(&mut regulator, 100);
    assert_eq!((regulator.pace(), host.writes), (None, 0));
    // Unless another has left ksmd at a pace of its own.
    regulator = Regulator::new(10).taking_over();
    host.regulate(&mut regulator, 1);
    assert!(regulator.pace().is_some_and(|pace| pace.sleep_millisecs >= 1900), "{regulator:?}");
}

#[test]
fn the_pace_is_what_its_share_and_cost_say() {
    let pace = |share, cycle, cost| Pace::of(share, cycle, cost);
    assert_eq!(pace(0.1, CYCLE, 10e-6), Pace { pages_to_scan: 2000, sleep_millisecs: 180 });
    assert_eq!(pace(1.0, CYCLE, 10e-6), Pace { pages_to_scan: 20_000, sleep_millisecs: 0 });
    // A page that costs more than its time in a cycle has a longer one.
    assert_eq!(pace(0.01, CYCLE, 10e-3), Pace { pages_to_scan: 1, sleep_millisecs: 990 });
}

#[test]
fn what_is_new_is_judged_within_its_passes_and_then_it_rests() {
    let mut regulator = Regulator::new(10);
    let mut host = Host::new(5.7, 250.0);
    host.advise(2 * GIB, GIB);
    host.regulate(&mut regulator, 1);
    assert!(regulator.is_busy());
    let seconds = host.regulate_to_rest(&mut regulator);
    // 3 passes of 2 GiB at 5.7 us a page and 10 % of a core.
    let ideal = PASSES as f64 * 2.0 * GIB as f64 * 5.7e-6 / 0.1;
    assert!((f64::from(seconds) / ideal - 1.0).abs() < 0.1, "{seconds} s, ideally {ideal}");
    assert_eq!(host.full_scans, PASSES);
    let at_rest = host.regulate(&mut regulator, 600);
    assert!(at_rest < 0.0015 && at_rest > 0.0005, "{at_rest}");
    assert!(host.writes <= seconds / 5, "{} in {seconds} s, and then", host.writes);
    // More comes: only a change, not a level, is new.
    host.advise(GIB / 8, GIB / 8);
    host.regulate(&mut regulator, 1);
    assert!(regulator.is_busy());
    host.regulate_to_rest(&mut regulator);
    assert_eq!(regulator.work, Work::Judged { pages: GIB });
}

#[test]
fn what_comes_and_goes_does_not_make_it_oscillate() {
    let mut work = Work::Judged { pages: 16_000 };
    let next = |work: Work, waiting_pages, full_scans| {
        work.next(&Look { waiting_pages, full_scans, merged_pages: 100_000, ..Look::default() })
    };
    let start = |after_scans| Start { after_scans, merged_pages: 0 };
    for pages in [16_500, 16_999, 16_000, 16_999] {
        work = next(work, pages, 7);
    }
    assert_eq!(work, Work::Judged { pages: 16_000 }, "less than a 16th");
    assert_eq!(next(work, 17_000, 7), Work::New { until_scans: 7 + PASSES, pages: 17_000, start: start(7) });
    // Merged pages let the level sink, and what is unmerged again is new only from there.
    let sunk = next(work, 10_000, 7);
    assert_eq!(sunk, Work::Judged { pages: 10_000 });
    assert_eq!(next(sunk, 10_624, 7), sunk);
    // A small rise during the passes does not put off their end, a large one does.
    let new = Work::New { until_scans: 10, pages: 1000, start: Start { after_scans: 9, merged_pages: 100_000 } };
    assert_eq!(next(new, 1255, 9), new);
    assert_eq!(next(new, 1256, 9), Work::New { until_scans: 12, pages: 1256, start: start(9) });
    assert_eq!(next(new, 1255, 10), Work::Judged { pages: 1255 });
    assert_eq!(next(new, 0, 8), Work::Judged { pages: 0 });
}

#[test]
fn as_long_as_passes_merge_they_go_on() {
    let look = |merged_pages, full_scans| Look {
        waiting_pages: 10_000 - merged_pages,
        full_scans,
        merged_pages,
        ..Look::default()
    };
    let new = Work::Judged { pages: 0 }.next(&look(0, 3));
    // What the second pass merges is no reason for a fourth, what the third does is.
    let merged = new.next(&look(0, 4)).next(&look(5000, 5)).next(&look(5000, 5));
    assert_eq!(merged.next(&look(5063, 6)), Work::Judged { pages: 4937 });
    let more = merged.next(&look(5100, 6));
    assert!(matches!(more, Work::New { until_scans: 9, pages: 4900, .. }), "{more:?}");
    // Three more, which count together.
    let two_more = more.next(&look(5130, 7)).next(&look(5150, 8));
    assert_eq!(two_more.next(&look(5170, 9)), Work::Judged { pages: 4830 });
    assert!(matches!(two_more.next(&look(5180, 9)), Work::New { until_scans: 12, .. }));
    assert!(matches!(two_more.next(&look(5170, 8)), Work::New { until_scans: 9, .. }), "its last is under way");
    // Pages that are still counted of processes that are gone need not be merged anew before anything is progress.
    let stale = Work::Judged { pages: 0 }.next(&Look { merged_pages: 18_000, ..look(0, 3) });
    let merged = stale.next(&look(500, 4)).next(&look(1300, 5));
    assert!(matches!(merged.next(&look(1800, 6)), Work::New { until_scans: 9, .. }));
    // What was merged before and is merged again is none either.
    let again = new.next(&look(5000, 4)).next(&look(4900, 5));
    assert_eq!(again.next(&look(5000, 6)), Work::Judged { pages: 5000 });
    // Where many wait a 64th of them is asked for.
    let many = |merged_pages, full_scans| Look { waiting_pages: 640_000, ..look(merged_pages, full_scans) };
    let new = Work::Judged { pages: 0 }.next(&many(0, 3)).next(&many(0, 5));
    assert_eq!(new.next(&many(9999, 6)), Work::Judged { pages: 640_000 });
    assert!(matches!(new.next(&many(10_000, 6)), Work::New { .. }));
}

#[test]
fn what_is_merged_a_part_at_a_time_is_merged() {
    let mut regulator = Regulator::new(10);
    let mut host = Host { merged_part: 0.1, ..Host::new(5.7, 250.0) };
    host.advise(GIB, GIB / 2);
    host.regulate(&mut regulator, 1);
    host.regulate_to_rest(&mut regulator);
    let merged_pages = host.look().merged_pages;
    assert!(merged_pages > GIB / 2 * 7 / 10, "{merged_pages} of {} after {} passes", GIB / 2, host.full_scans);
}

#[test]
fn a_set_that_is_scanned_in_no_time_leaves_no_credit_for_a_large_one() {
    let mut regulator = Regulator::new(10);
    let mut host = Host::new(5.7, 250.0);
    host.advise(300, 0);
    for _ in 0..16 {
        host.advise(300, 0);
        host.regulate(&mut regulator, 1);
        assert!(regulator.is_busy());
    }
    host.advise(64 * GIB, 0);
    let share = host.regulate(&mut regulator, 5);
    assert!((0.085..=0.11).contains(&share), "{share}");
}

#[test]
fn what_a_crowd_keeps_it_from_is_made_good_little_by_little() {
    let mut regulator = Regulator::new(10);
    let mut host = Host { crowd: 5.0, ..Host::new(5.7, 250.0) };
    host.advise(1024 * GIB, 0);
    host.regulate(&mut regulator, 20);
    // 10 % of a core is half of what there is; uncorrected it would be 7.
    let share = host.regulate(&mut regulator, 20);
    assert!((0.085..=0.11).contains(&share), "{share}");
    host.crowd = 20.0;
    host.regulate(&mut regulator, 100);
    host.crowd = 1.0;
    let share = host.regulate(&mut regulator, 20);
    assert!((0.09..=0.12).contains(&share), "{share}");
}

#[test]
fn without_a_clock_it_goes_by_the_cost_it_knows() {
    let mut regulator = Regulator::new(20);
    let mut host = Host::new(5.7, 1000.0);
    (host.shows_cpu, host.counts_pages) = (false, false);
    host.advise(16 * GIB, 0);
    let share = host.regulate(&mut regulator, 30);
    assert!((0.18..=0.22).contains(&share), "{share}");
}

#[test]
fn a_clock_that_steps_back_or_jumps_breaks_nothing() {
    let mut regulator = Regulator::new(10);
    let seconds = [0, 5, 2, 2, 1_000_000, 3];
    for (at, second) in seconds.into_iter().enumerate() {
        let look = Look {
            time: Duration::from_secs(second),
            waiting_pages: u64::MAX - at as u64,
            merged_pages: u64::MAX,
            full_scans: u64::MAX,
            pages_scanned: Some(u64::MAX - second),
            cpu_time: Some(Duration::from_secs(second * 7)),
        };
        regulator = regulator.next(&look);
        let pace = regulator.pace().expect("something waits");
        let most_seconds = COSTS.1 / REST_SHARE;
        assert!(pace.pages_to_scan >= 1 && f64::from(pace.sleep_millisecs) <= most_seconds * 1e3, "{pace:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_budget_is_kept_within_a_tenth(
        cpu_percent in 1_u8..=90,
        cost_us in 0.5_f64..50.0,
        tick_hz in prop::sample::select(vec![100.0, 250.0, 1000.0]),
        counts_pages: bool,
    ) {
        let mut regulator = Regulator::new(cpu_percent);
        let mut host = Host { counts_pages, ..Host::new(cost_us, tick_hz) };
        host.advise(1024 * GIB, 0);
        host.regulate(&mut regulator, 20);
        for _ in 0..3 {
            let share = host.regulate(&mut regulator, 20) * 100.0 / f64::from(cpu_percent);
            prop_assert!((0.9..=1.1).contains(&share), "{share} of the budget, {regulator:?}");
        }
    }

    #[test]
    fn it_comes_to_rest_and_writes_seldom(
        cpu_percent in 1_u8..=100,
        cost_us in 0.5_f64..20.0,
        pages in 256_u64..100_000,
        more in 0_u64..100_000,
        counts_pages: bool,
    ) {
        let mut regulator = Regulator::new(cpu_percent);
        let mut host = Host { counts_pages, ..Host::new(cost_us, 250.0) };
        host.advise(pages, pages / 2);
        host.regulate(&mut regulator, 3);
        host.advise(more, more / 2);
        host.regulate(&mut regulator, 1);
        host.regulate_to_rest(&mut regulator);
        let writes = host.writes;
        let share = host.regulate(&mut regulator, 100);
        prop_assert!(!regulator.is_busy() && share <= 0.0015, "{share} {regulator:?}");
        // What a page costs is approached by halves.
        prop_assert!(host.writes <= writes + 8, "{} writes at rest", host.writes - writes);
    }
}
