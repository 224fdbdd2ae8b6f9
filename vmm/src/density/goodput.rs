//! Goodput: what a guest gets done, against what it gets done alone with all the memory it wants.

use std::time::{Duration, Instant};

use super::record::{Phase, PhaseKind};

/// A touch now and then is in time if it takes at most so many times what nearly all take that are alone ...
pub const IN_TIME_FACTOR: u32 = 10;

/// ... or this part of the time between two: a guest is not slower for what it would have slept through. Alone a touch of
/// 1 MiB takes 20 us, a third of what a single page needs to come back from anywhere.
pub const IN_TIME_DIVISOR: u32 = 100;

/// Of so many touches or more of a guest the slowest is left out: one in a hundred is slower alone, too, and of ten or
/// twenty a single one would decide for the guest, and the guest for all.
const TOUCHES_OF_WHICH_ONE_MAY_FAIL: usize = 10;

/// A span of time in which a guest is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its beginning.
    pub start: Instant,
    /// Its end.
    pub end: Instant,
}

impl Window {
    /// How long it is.
    pub fn length(&self) -> Duration {
        self.end.saturating_duration_since(self.start)
    }

    /// The part of a phase that is in it, 0 to 1. A phase is printed when it ends.
    pub fn part_of(&self, phase: &Phase) -> f64 {
        let start = phase.at.checked_sub(phase.length).unwrap_or(self.start);
        if phase.length.is_zero() {
            return if (self.start..self.end).contains(&phase.at) { 1.0 } else { 0.0 };
        }
        let shared = phase.at.min(self.end).saturating_duration_since(start.max(self.start));
        shared.as_secs_f64() / phase.length.as_secs_f64()
    }
}

/// Touches a second of all walks in a window. Time of which nothing was heard counts: a guest that hangs does nothing.
pub fn walk_rate(phases: &[Phase], window: &Window) -> f64 {
    let walks = phases.iter().filter(|phase| phase.kind == PhaseKind::Walk);
    let touches = walks.fold(0.0, |touches, phase| touches + phase.touches as f64 * window.part_of(phase));
    touches / window.length().as_secs_f64().max(f64::MIN_POSITIVE)
}

/// How long each touch now and then took that ended in a window.
pub fn touch_times(phases: &[Phase], window: &Window) -> Vec<Duration> {
    let touches = phases.iter().filter(|phase| phase.kind == PhaseKind::Touch);
    touches.filter(|phase| (window.start..=window.end).contains(&phase.at)).map(|phase| phase.length).collect()
}

/// What a guest of a program does that has the host to itself and all the memory it wants.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Alone {
    /// Touches a second of its walks; 0 if it has none.
    pub touches_per_s: f64,
    /// How long a touch now and then may take; zero if it has none.
    pub in_time: Duration,
    /// How far apart these are.
    pub touch_interval: Duration,
}

impl Alone {
    /// From what it did in a window.
    pub fn of(phases: &[Phase], window: &Window, touch_interval: Option<Duration>) -> Self {
        let mut times = touch_times(phases, window);
        times.sort_unstable();
        // The value that 99 % do not exceed, by nearest rank: of few, the longest.
        let p99 = times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
        let touch_interval = touch_interval.unwrap_or_default();
        Self {
            touches_per_s: walk_rate(phases, window),
            in_time: (p99 * IN_TIME_FACTOR).max(touch_interval / IN_TIME_DIVISOR),
            touch_interval,
        }
    }

    /// Whether there is anything to measure others against.
    pub fn is_known(&self) -> bool {
        self.touches_per_s > 0.0 || !self.touch_interval.is_zero()
    }

    /// The goodput of a guest of the same program, 1 where it is as good as alone: its rate, or the share of its touches
    /// that were in time; the lower of both where it does both. `None` where neither is known.
    pub fn goodput(&self, phases: &[Phase], window: &Window) -> Option<f64> {
        let walks = (self.touches_per_s > 0.0).then(|| walk_rate(phases, window) / self.touches_per_s);
        let touches = (!self.touch_interval.is_zero()).then(|| {
            let mut times = touch_times(phases, window);
            // One that takes for ever is never heard of. A touch that is under way at the end is none.
            let due = (window.length().as_secs_f64() / (self.touch_interval + self.in_time).as_secs_f64()) as usize;
            let missing = due.saturating_sub(times.len() + 1);
            if times.len() >= TOUCHES_OF_WHICH_ONE_MAY_FAIL {
                times.sort_unstable();
                times.pop();
            }
            let in_time = times.iter().filter(|&&time| time <= self.in_time).count();
            in_time as f64 / (times.len() + missing).max(1) as f64
        });
        match (walks, touches) {
            (Some(walks), Some(touches)) => Some(walks.min(touches)),
            (walks, touches) => walks.or(touches),
        }
    }
}

/// The middle and the worst of several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Half are at least as good.
    pub median: f64,
    /// The least.
    pub worst: f64,
}

impl Spread {
    /// Of these, in any order; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (&worst, middle) = (values.first()?, values.len() / 2);
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, worst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A window of 10 s that begins 1 s after this moment.
    fn window(start: Instant) -> Window {
        Window { start: start + ms(1_000), end: start + ms(11_000) }
    }

    fn phase(kind: PhaseKind, at: Instant, length: Duration, touches: u64) -> Phase {
        Phase { kind, at, length, touches, latency_ns: [0; 4] }
    }

    #[test]
    fn a_walk_counts_as_far_as_it_is_in_the_window() {
        let start = Instant::now();
        let walk = |end_ms, length_ms| phase(PhaseKind::Walk, start + ms(end_ms), ms(length_ms), 1000);
        let rate = |walks: &[Phase]| (walk_rate(walks, &window(start)) * 10.0).round() as u64;
        assert_eq!(rate(&[walk(1_000, 1_000)]), 0, "all before");
        assert_eq!(rate(&[walk(2_000, 2_000)]), 500);
        assert_eq!(rate(&[walk(3_000, 1_000), walk(4_000, 1_000)]), 2000);
        assert_eq!(rate(&[walk(11_500, 1_000)]), 500);
        assert_eq!(rate(&[walk(12_500, 1_000)]), 0, "all after");
        assert_eq!(rate(&[walk(16_000, 20_000)]), 500, "it is in there all the time");
        assert_eq!(rate(&[walk(2_000, 0)]), 1000);
        assert_eq!(rate(&[phase(PhaseKind::Touch, start + ms(2_000), ms(1), 1000)]), 0);
    }

    #[test]
    fn half_as_many_touches_are_half_as_good() {
        let start = Instant::now();
        let walks = |touches| (2..=12).map(move |s| phase(PhaseKind::Walk, start + ms(s * 1000), ms(1000), touches));
        let alone = Alone::of(&walks(100).collect::<Vec<_>>(), &window(start), None);
        assert!((alone.touches_per_s - 100.0).abs() < 1e-9);
        let goodput = |walks: Vec<Phase>| alone.goodput(&walks, &window(start)).expect("it walks");
        assert!((goodput(walks(50).collect()) - 0.5).abs() < 1e-9);
        assert!((goodput(walks(100).take(5).collect()) - 0.5).abs() < 1e-9, "then it hung");
    }

    #[test]
    fn touches_are_in_time_or_not() {
        let start = Instant::now();
        let touch = |end_ms, length| phase(PhaseKind::Touch, start + ms(end_ms), length, 256);
        let every = |length: Duration| (1..=5).map(move |nth| touch(nth * 2000, length)).collect::<Vec<_>>();
        let alone = |length| Alone::of(&every(length), &window(start), Some(ms(2000)));
        assert_eq!(alone(ms(1)).in_time, ms(20), "a hundredth of the time between two");
        assert_eq!(alone(ms(5)).in_time, ms(50));
        let goodput = |phases: &[Phase]| alone(ms(1)).goodput(phases, &window(start)).expect("it touches");
        assert_eq!(goodput(&every(ms(20))), 1.0);
        assert_eq!(goodput(&every(ms(21))), 0.0);
        let mut one_late = every(ms(3));
        one_late[2].length = ms(500);
        assert!((goodput(&one_late) - 0.8).abs() < 1e-9);
        assert!(goodput(&every(ms(3))[..2]) <= 0.7, "then it hung");
        let mut many: Vec<_> = (1..=20).map(|nth| touch(1000 + nth * 500, ms(3))).collect();
        let alone = Alone { touch_interval: ms(500), in_time: ms(20), ..Alone::default() };
        let mut goodput_with_late = |nth: usize| {
            many[nth].length = ms(400);
            (alone.goodput(&many, &window(start)).expect("it touches") * 19.0).round()
        };
        assert_eq!([3, 9, 15].map(&mut goodput_with_late), [19.0, 18.0, 17.0], "one of many may be late");
        assert_eq!(goodput(&[]), 0.0);
    }

    #[test]
    fn who_does_both_is_as_good_as_the_worse() {
        let start = Instant::now();
        let alone = Alone { touches_per_s: 10.0, in_time: ms(20), touch_interval: ms(2000) };
        let walk = phase(PhaseKind::Walk, start + ms(2000), ms(1), 90);
        let touches = (1..=5).map(|nth| phase(PhaseKind::Touch, start + ms(nth * 2000), ms(1), 256));
        let both: Vec<_> = touches.chain([walk]).collect();
        assert_eq!(alone.goodput(&both, &window(start)).map(|goodput| (goodput * 100.0).round()), Some(90.0));
        assert_eq!(Alone::default().goodput(&both, &window(start)), None);
    }

    #[test]
    fn the_middle_and_the_worst() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![3.0]), Some(Spread { median: 3.0, worst: 3.0 }));
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, worst: 1.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 8.0]), Some(Spread { median: 3.0, worst: 1.0 }));
    }
}
