//! What came of a fleet, in numbers.

use cistern_memory::ledger::Level;
use serde::Serialize;

use super::account::{Bytes, CpuUse};
use super::fleet::Ended;
use super::goodput::{Alone, Spread};
use super::latency::{Latency, Mixture};
use super::pool::Peak;
use super::record::{Ending, Record};

/// Failures that are told one by one.
const FAILURES_TOLD: usize = 5;

/// The status of a VMM that could not start or keep its guest, as where a reservation does not fit.
const REFUSED: Option<i32> = Some(cistern::outcome::STATUS_ERROR as i32);

/// Goodput of many guests, in percent of what each does alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goodput {
    /// Half of the guests have at least so much.
    pub median_percent: f64,
    /// The guest with the least.
    pub worst_percent: f64,
}

impl From<Spread> for Goodput {
    fn from(spread: Spread) -> Self {
        Self { median_percent: spread.median * 100.0, worst_percent: spread.worst * 100.0 }
    }
}

/// Guests of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct KindReport {
    /// Its program, or the kernel's command line.
    pub program: String,
    /// How many there were.
    pub guests: usize,
    /// Their goodput.
    pub goodput: Option<Goodput>,
    /// Their touches.
    pub latency_ns: Option<Latency>,
    /// What one does alone.
    pub alone: Option<AloneReport>,
}

/// What a guest does alone.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AloneReport {
    /// Touches a second of its walks.
    pub touches_per_s: f64,
    /// How long a touch now and then may take to be in time.
    pub in_time_ns: u64,
    /// How long its touches take.
    pub latency_ns: Option<Latency>,
}

/// A fleet.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// Guests that were started.
    pub guests: usize,
    /// Of those, guests that nothing went wrong with.
    pub guests_ok: usize,
    /// Times a guest compared all its pages with what they must be.
    pub verify_lines: u64,
    /// Pages that these looks compared.
    pub verified_pages: u64,
    /// Pages that were not what they must be.
    pub bad_pages: u64,
    /// What the pool might use.
    pub budget_bytes: u64,
    /// What all guests believe they have.
    pub size_bytes: u64,
    /// The most host memory their processes took: PSS, all at one moment.
    pub peak_host_bytes: u64,
    /// Times that was looked at.
    pub looks: usize,
    /// The most they had resident, read more often and without stopping them: RSS, in which a merged page counts often.
    pub peak_resident_bytes: u64,
    /// Times that was read.
    pub resident_samples: u64,
    /// What a guest took then, on average.
    pub host_bytes_per_guest: u64,
    /// What the one took that ever took the most.
    pub host_bytes_worst_guest: u64,
    /// Where guest memory was when most of it was away.
    pub bytes: Bytes,
    /// The host memory that compressed pages took then.
    pub compressed_held_bytes: u64,
    /// Of what guests held then, the part that cost no host memory, the VMMs' own set against it.
    pub reclaimed_percent: f64,
    /// What guests believe they have, in budgets.
    pub overcommit: f64,
    /// The worst level of the pool.
    pub worst_level: Option<Level>,
    /// Goodput of all whose goodput is known.
    pub goodput: Option<Goodput>,
    /// All touches of the measured time.
    pub latency_ns: Option<Latency>,
    /// CPU time used while it was measured.
    pub cpu: CpuUse,
    /// By kind of guest.
    pub kinds: Vec<KindReport>,
    /// What went wrong first with each of some guests.
    pub failures: Vec<String>,
    /// From the first start to the end of the measurement.
    pub seconds: f64,
    /// A guest crashed, or was killed.
    #[serde(skip)]
    pub has_crashed: bool,
}

/// What a kind of guest does alone, and how that is told.
#[derive(Debug, Clone, Default)]
pub struct Yardstick {
    /// What goodput is measured against.
    pub alone: Alone,
    /// How long its touches take.
    pub latency: Option<Latency>,
}

impl Verdict {
    /// Of guests of `size_bytes`. `programs` are those of all kinds, `yardsticks` what each does alone, where that is known.
    pub fn of(ended: &Ended, programs: &[String], yardsticks: &[Option<Yardstick>], size_bytes: u64) -> Self {
        let sum = |number: fn(&Record) -> u64| ended.records.iter().map(number).sum();
        let guests = ended.records.len();
        let account = &ended.account;
        let fullest = account.fullest();
        let bytes = fullest.map(|sample| sample.bytes).unwrap_or_default();
        let peak = account.samples.iter().max_by_key(|sample| sample.host_bytes);
        let kinds: Vec<_> =
            (0..programs.len()).map(|kind| kind_report(ended, kind, &programs[kind], &yardsticks[kind])).collect();
        let all: Vec<_> = (0..programs.len()).flat_map(|kind| goodputs(ended, kind, &yardsticks[kind])).collect();
        let failed =
            |(index, record): (usize, &Record)| Some(format!("guest {}: {}", index + 1, record.failure.as_deref()?));
        let size_bytes = size_bytes * guests as u64;
        Self {
            guests,
            guests_ok: ended.records.iter().filter(|record| record.is_good()).count(),
            verify_lines: sum(|record| record.verify_lines),
            verified_pages: sum(|record| record.verified_pages),
            bad_pages: sum(|record| record.bad_pages),
            budget_bytes: ended.budget_bytes,
            size_bytes,
            peak_host_bytes: account.peak_bytes(),
            looks: account.samples.len(),
            peak_resident_bytes: ended.resident.bytes,
            resident_samples: ended.resident.samples,
            host_bytes_per_guest: peak.map_or(0, |sample| sample.host_bytes / sample.guests.max(1) as u64),
            host_bytes_worst_guest: account.samples.iter().map(|sample| sample.host_most_bytes).max().unwrap_or(0),
            bytes,
            compressed_held_bytes: fullest.map_or(0, |sample| sample.compressed_held_bytes),
            reclaimed_percent: fullest.map_or(0.0, |sample| reclaimed_percent(bytes.held(), sample.host_bytes)),
            overcommit: size_bytes as f64 / ended.budget_bytes.max(1) as f64,
            worst_level: ended.pool.worst_level(),
            goodput: Spread::of(all).map(Goodput::from),
            latency_ns: latency(ended, |_| true),
            cpu: account.cpu_use(&ended.window),
            kinds,
            failures: ended.records.iter().enumerate().filter_map(failed).take(FAILURES_TOLD).collect(),
            seconds: ended.window.end.saturating_duration_since(ended.start).as_secs_f64(),
            has_crashed: ended.records.iter().any(has_crashed),
        }
    }

    /// Whether nothing went wrong.
    pub fn is_good(&self) -> bool {
        self.guests_ok == self.guests && self.bad_pages == 0
    }

    /// Whether nothing went wrong, and no guest has less than this goodput, 0 to 1.
    pub fn keeps(&self, goodput: f64) -> bool {
        let worst = self.goodput.map_or(0.0, |goodput| goodput.worst_percent);
        self.is_good() && worst >= goodput * 100.0
    }
}

/// Whether it ended in a way that no lack of memory is an excuse for.
fn has_crashed(record: &Record) -> bool {
    match record.ending {
        Some(Ending::Status(Some(0)) | Ending::Stopped) | None => !record.is_good(),
        Some(Ending::Status(REFUSED)) => false,
        Some(Ending::Status(_)) => true,
    }
}

/// The part of held memory that costs the host nothing.
fn reclaimed_percent(held_bytes: u64, host_bytes: u64) -> f64 {
    if held_bytes == 0 { 0.0 } else { held_bytes.saturating_sub(host_bytes) as f64 * 100.0 / held_bytes as f64 }
}

fn goodputs(ended: &Ended, kind: usize, yardstick: &Option<Yardstick>) -> Vec<f64> {
    let Some(yardstick) = yardstick else { return Vec::new() };
    let of = |index: usize| yardstick.alone.goodput(&ended.records[index].phases, &ended.windows[index]);
    (0..ended.records.len()).filter(|&index| ended.roles[index] == kind).filter_map(of).collect()
}

/// Latency of all guests whose kind is wanted.
pub fn latency(ended: &Ended, is_wanted: impl Fn(usize) -> bool) -> Option<Latency> {
    let mut mixture = Mixture::default();
    for ((record, window), &role) in ended.records.iter().zip(&ended.windows).zip(&ended.roles) {
        if is_wanted(role) {
            mixture.add(&record.phases, window);
        }
    }
    mixture.latency()
}

fn kind_report(ended: &Ended, kind: usize, program: &str, yardstick: &Option<Yardstick>) -> KindReport {
    KindReport {
        program: program.to_owned(),
        guests: ended.roles.iter().filter(|&&role| role == kind).count(),
        goodput: Spread::of(goodputs(ended, kind, yardstick)).map(Goodput::from),
        latency_ns: latency(ended, |role| role == kind),
        alone: yardstick.as_ref().map(|yardstick| AloneReport {
            touches_per_s: yardstick.alone.touches_per_s,
            in_time_ns: yardstick.alone.in_time.as_nanos() as u64,
            latency_ns: yardstick.latency,
        }),
    }
}

/// The peaks of the guests of each kind.
pub fn peaks(ended: &Ended, kinds: usize) -> Vec<Vec<Peak>> {
    let mut peaks = vec![Vec::new(); kinds];
    for (peak, &role) in ended.pool.peaks.iter().zip(&ended.roles) {
        // One that never reported has none.
        if peak.touched_bytes > 0 {
            peaks[role].push(*peak);
        }
    }
    peaks
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::account::Account;
    use super::super::goodput::Window;
    use super::super::pool::PoolRecord;
    use super::*;
    use crate::guest_process::resident::ResidentPeak;

    fn guest(lines: &[String], ending: Ending, at: Instant) -> Record {
        let mut record = Record::default();
        lines.iter().for_each(|line| record.take_line(at, line, true));
        record.end(ending);
        record
    }

    fn walk(touches: u64) -> String {
        format!(r#"{{"phase":"walk","touches":{touches},"p50_ns":1,"p99_ns":2,"p999_ns":3,"max_ns":4,"ns":1000}}"#)
    }

    fn ended(records: Vec<Record>, roles: Vec<usize>, start: Instant) -> Ended {
        let window = Window { start, end: start + Duration::from_secs(10) };
        Ended {
            roles,
            windows: vec![window; records.len()],
            records,
            window,
            start,
            account: Account::default(),
            pool: PoolRecord::default(),
            resident: ResidentPeak::default(),
            budget_bytes: 64 << 20,
        }
    }

    #[test]
    fn guests_are_counted_and_measured_by_kind() {
        let start = Instant::now();
        let at = start + Duration::from_secs(5);
        let verified = r#"{"phase":"verify","pages":16,"bad":0}"#.to_owned();
        let stopped = |lines: &[String]| guest(lines, Ending::Stopped, at);
        let records = vec![stopped(&[walk(1000), verified.clone()]), stopped(&[verified]), stopped(&[walk(900)])];
        let ended = ended(records, vec![0, 1, 0], start);
        let alone = Alone { touches_per_s: 100.0, ..Alone::default() };
        let yardsticks = [Some(Yardstick { alone, latency: None }), None];
        let programs = ["walk".to_owned(), "verify".to_owned()];
        let verdict = Verdict::of(&ended, &programs, &yardsticks, 32 << 20);
        assert_eq!((verdict.guests, verdict.guests_ok, verdict.bad_pages, verdict.verify_lines), (3, 3, 0, 2));
        assert_eq!((verdict.verified_pages, verdict.overcommit), (32, 1.5));
        let goodput = verdict.goodput.expect("two walk");
        assert!((goodput.median_percent - 95.0).abs() < 1e-6 && (goodput.worst_percent - 90.0).abs() < 1e-6);
        assert!(verdict.keeps(0.89) && !verdict.keeps(0.91) && !verdict.has_crashed);
        assert_eq!(verdict.kinds.iter().map(|kind| kind.guests).collect::<Vec<_>>(), [2, 1]);
        assert!(verdict.kinds[1].goodput.is_none() && verdict.kinds[1].alone.is_none());
        assert_eq!(verdict.latency_ns, Some(Latency { p50: 1, p99: 2, max: 4 }));
    }

    #[test]
    fn what_goes_wrong_is_told() {
        let start = Instant::now();
        let bad = r#"{"phase":"verify","pages":16,"bad":2}"#.to_owned();
        for (ending, lines, crashes) in [
            (Ending::Status(Some(3)), vec![], true),
            (Ending::Status(None), vec![], true),
            (Ending::Status(Some(1)), vec![], false),
            (Ending::Stopped, vec![bad], true),
        ] {
            let ended = ended(vec![guest(&lines, ending, start)], vec![0], start);
            let verdict = Verdict::of(&ended, &[String::new()], &[None], 1 << 20);
            assert_eq!((verdict.guests_ok, verdict.has_crashed), (0, crashes), "{ending:?}");
            assert!(verdict.failures[0].starts_with("guest 1: ") && !verdict.keeps(0.0), "{verdict:?}");
            assert_eq!(verdict.bad_pages, if ending == Ending::Stopped { 2 } else { 0 });
        }
    }

    #[test]
    fn what_costs_nothing_is_a_part_of_what_is_held() {
        assert_eq!(reclaimed_percent(0, 10), 0.0);
        assert_eq!(reclaimed_percent(100, 25), 75.0);
        assert_eq!(reclaimed_percent(100, 125), 0.0, "the VMMs have memory of their own");
    }
}
