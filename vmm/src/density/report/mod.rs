//! What is shown in the end, and what is written down.

pub mod chart;
pub mod html;
pub mod table;

use std::fs;
use std::mem;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cistern::host::host_memory_bytes;
use cistern_memory::ledger::Level;
use serde::Serialize;

use super::account::{Bytes, CpuUse};
use super::advice::{Advice, advise};
use super::fleet::Ended;
use super::goodput::IN_TIME_FACTOR;
use super::latency::Latency;
use super::options::Plan;
use super::verdict::{Goodput, Verdict, peaks};

/// The files in `--out`.
const JSON_FILE: &str = "report.json";
const HTML_FILE: &str = "report.html";

/// Where so much is stolen of a CPU while guests are measured, it may be what made them late.
const DISTURBED_PERCENT: f64 = 5.0;

/// Guests that keep less than this have more against them than that.
const HOPELESS_PERCENT: f64 = 25.0;

/// One number of guests that was tried.
#[derive(Debug, Clone, Serialize)]
pub struct Trial {
    /// How many guests.
    pub guests: usize,
    /// Of those, guests that nothing went wrong with.
    pub guests_ok: usize,
    /// Pages that were not what they must be.
    pub bad_pages: u64,
    /// Whether all kept the goodput that is asked for.
    pub has_passed: bool,
    /// Their goodput.
    pub goodput: Option<Goodput>,
    /// Their touches.
    pub latency_ns: Option<Latency>,
    /// The most host memory they took.
    pub peak_host_bytes: u64,
    /// What was paged out or shared at most.
    pub away_bytes: u64,
    /// CPU time used while they were measured.
    pub cpu: CpuUse,
    /// How often it was tried; all else is of the last time.
    pub attempts: u32,
}

impl Trial {
    /// Of a fleet.
    pub fn of(verdict: &Verdict, goodput: f64) -> Self {
        Self {
            guests: verdict.guests,
            guests_ok: verdict.guests_ok,
            bad_pages: verdict.bad_pages,
            has_passed: verdict.keeps(goodput),
            goodput: verdict.goodput,
            latency_ns: verdict.latency_ns,
            peak_host_bytes: verdict.peak_host_bytes,
            away_bytes: verdict.bytes.away(),
            cpu: verdict.cpu,
            attempts: 1,
        }
    }

    /// Whether it has failed, by nothing but late guests, while whoever runs this host kept CPU time from it: that tells
    /// nothing of so many guests.
    pub fn is_disturbed(&self) -> bool {
        let is_late_alone = !self.has_passed && self.bad_pages == 0 && self.guests_ok == self.guests;
        let is_near = self.goodput.as_ref().is_none_or(|goodput| goodput.worst_percent >= HOPELESS_PERCENT);
        is_late_alone && is_near && self.cpu.stolen_percent >= DISTURBED_PERCENT
    }

    /// Why it has not passed; `None` where it has.
    pub fn shortfall(&self) -> Option<String> {
        match (self.has_passed, self.bad_pages) {
            (true, _) => None,
            (false, 0) => Some("too many".to_owned()),
            (false, pages) => Some(format!("{pages} BAD PAGES")),
        }
    }
}

/// Where memory was at a moment.
#[derive(Debug, Clone, Serialize)]
pub struct Moment {
    /// Since the first start.
    pub seconds: f64,
    /// Guests that were there.
    pub guests: usize,
    /// What they took of the host.
    pub host_bytes: u64,
    /// Where their memory was.
    pub bytes: Bytes,
    /// The host memory that compressed pages took.
    pub compressed_held_bytes: u64,
}

/// The pool at a moment, as it is read without stopping anybody.
#[derive(Debug, Clone, Serialize)]
pub struct PoolMoment {
    /// Since the first start.
    pub seconds: f64,
    /// The level.
    pub level: Option<Level>,
    /// What was left of the budget.
    pub free_bytes: Option<i64>,
    /// What all guests had resident.
    pub resident_bytes: u64,
}

/// The machine it was measured on.
#[derive(Debug, Clone, Serialize)]
pub struct HostReport {
    /// The kernel's release.
    pub kernel: String,
    /// CPUs.
    pub cpus: usize,
    /// Memory.
    pub memory_bytes: u64,
    /// Load averages at the end of the measurement: of 1, 5 and 15 minutes.
    pub load: String,
    /// When: `2026-11-29 03:04 UTC`.
    pub date: String,
}

impl HostReport {
    fn read() -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let load = line("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            kernel: line("/proc/sys/kernel/osrelease"),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get()),
            memory_bytes: host_memory_bytes().map_or(0, |(memory_bytes, _)| memory_bytes),
            load,
            date: date(since.as_secs()),
        }
    }
}

/// A moment, in seconds since 1970, as a date.
fn date(seconds: u64) -> String {
    let seconds = libc::time_t::try_from(seconds).unwrap_or(0);
    // SAFETY: all zeroes is a valid tm, which the call overwrites.
    let time = unsafe {
        let mut time: libc::tm = mem::zeroed();
        libc::gmtime_r(&seconds, &mut time);
        time
    };
    let (year, month) = (1900 + time.tm_year, time.tm_mon + 1);
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", time.tm_mday, time.tm_hour, time.tm_min)
}

/// Everything. Serialized, it is report.json.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The fleet that is reported: the largest that kept its goodput, where that was looked for; the smallest where none did.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Whether all of its guests kept the goodput that is asked for.
    pub has_passed: bool,
    /// It was looked for the largest.
    pub is_max: bool,
    /// What each guest must get done of what it does alone.
    pub required_goodput_percent: f64,
    /// A touch now and then is in time within so many times what it takes alone, or a hundredth of the time between two.
    pub in_time_factor: u32,
    /// What a guest believes it has.
    pub memory_bytes: u64,
    /// Guests were in no pool.
    pub unmanaged: bool,
    /// Guests were stopped after their time: they have no end.
    pub is_timed: bool,
    /// Time before the measurement.
    pub warmup_s: f64,
    /// Time of the measurement.
    pub secs: f64,
    /// Flags that each guest got.
    pub flags: Vec<String>,
    /// The machine.
    pub host: HostReport,
    /// What each kind of guest should be given.
    pub advice: Vec<Option<Advice>>,
    /// All numbers of guests that were tried, in that order.
    pub trials: Vec<Trial>,
    /// The reported fleet over time.
    pub moments: Vec<Moment>,
    /// Its pool over time.
    pub pool: Vec<PoolMoment>,
}

impl Report {
    /// Of the fleet that is reported, and of all that were tried.
    pub fn of(plan: &Plan, ended: &Ended, verdict: Verdict, trials: Vec<Trial>) -> Self {
        let kinds = peaks(ended, plan.roles.len());
        let seconds = |at: Instant| at.saturating_duration_since(ended.start).as_secs_f64();
        let moments = ended.account.samples.iter().map(|sample| Moment {
            seconds: seconds(sample.at),
            guests: sample.guests,
            host_bytes: sample.host_bytes,
            bytes: sample.bytes,
            compressed_held_bytes: sample.compressed_held_bytes,
        });
        let pool = ended.pool.samples.iter().map(|sample| PoolMoment {
            seconds: seconds(sample.at),
            level: sample.level,
            free_bytes: sample.free_bytes,
            resident_bytes: sample.resident_bytes,
        });
        Self {
            has_passed: verdict.keeps(plan.goodput),
            is_max: plan.count.is_max(),
            required_goodput_percent: plan.goodput * 100.0,
            in_time_factor: IN_TIME_FACTOR,
            memory_bytes: plan.memory.bytes,
            unmanaged: plan.is_unmanaged,
            is_timed: plan.is_timed(),
            warmup_s: plan.warmup.as_secs_f64(),
            secs: plan.time.as_secs_f64(),
            flags: plan.arguments.iter().map(|flag| flag.to_string_lossy().into_owned()).collect(),
            host: HostReport::read(),
            advice: advise(&kinds, plan.memory.bytes, verdict.budget_bytes),
            moments: moments.collect(),
            pool: pool.collect(),
            trials,
            verdict,
        }
    }

    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("names are text and numbers are numbers") + "\n"
    }

    /// Writes both files to a folder.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for (file, text) in [(JSON_FILE, self.json()), (HTML_FILE, html::render(self))] {
            let path = folder.join(file);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// Bytes as MiB.
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", (bytes + (1 << 19)) >> 20)
}

#[cfg(test)]
pub mod tests {
    use super::super::verdict::{AloneReport, KindReport};
    use super::*;

    /// A report in which all is known.
    pub fn report() -> Report {
        let bytes = Bytes {
            resident: 20 << 20,
            shared: 5 << 20,
            zero: 4 << 20,
            ballooned: 3 << 20,
            compressed: 12 << 20,
            swapped: 2 << 20,
            untouched: 18 << 20,
        };
        let latency = Some(Latency { p50: 120, p99: 65_000, max: 9_000_000 });
        let goodput = Some(Goodput { median_percent: 99.4, worst_percent: 96.1 });
        let alone = AloneReport { touches_per_s: 5_000.0, in_time_ns: 20_000_000, latency_ns: latency };
        let kind = KindReport {
            program: "fill:16M;<&>".to_owned(),
            guests: 2,
            goodput,
            latency_ns: latency,
            alone: Some(alone),
        };
        let verdict = Verdict {
            guests: 2,
            guests_ok: 1,
            verify_lines: 7,
            verified_pages: 28_672,
            bad_pages: 0,
            budget_bytes: 40 << 20,
            size_bytes: 64 << 20,
            peak_host_bytes: 38 << 20,
            looks: 30,
            peak_resident_bytes: 39 << 20,
            resident_samples: 160,
            host_bytes_per_guest: 19 << 20,
            host_bytes_worst_guest: 20 << 20,
            bytes,
            compressed_held_bytes: 6 << 20,
            reclaimed_percent: 11.6,
            overcommit: 1.6,
            worst_level: Some(Level::Hard),
            goodput,
            latency_ns: latency,
            cpu: CpuUse { guests_percent: 30.0, managers_percent: 4.5, ksm_percent: 0.5, stolen_percent: 0.0 },
            kinds: vec![kind],
            failures: vec!["guest 2: ended with a signal".to_owned()],
            seconds: 41.5,
            has_crashed: true,
        };
        let moment =
            |seconds| Moment { seconds, guests: 2, host_bytes: 38 << 20, bytes, compressed_held_bytes: 6 << 20 };
        let trials =
            vec![Trial::of(&verdict, 0.95), Trial { guests: 4, has_passed: false, ..Trial::of(&verdict, 0.95) }];
        Report {
            verdict,
            has_passed: true,
            is_max: true,
            required_goodput_percent: 95.0,
            in_time_factor: IN_TIME_FACTOR,
            memory_bytes: 32 << 20,
            unmanaged: false,
            is_timed: true,
            warmup_s: 10.0,
            secs: 30.0,
            flags: vec!["--swap=/var/tmp".to_owned()],
            host: HostReport {
                kernel: "6.18".to_owned(),
                cpus: 2,
                memory_bytes: 24 << 30,
                load: "1 2 3".to_owned(),
                date: date(1_796_000_000),
            },
            advice: vec![Some(Advice {
                peak_active_bytes: 10 << 20,
                peak_held_bytes: 16 << 20,
                memory_bytes: 14 << 20,
                reservation_bytes: 9 << 20,
                is_sampled: true,
            })],
            trials,
            moments: vec![moment(1.0), moment(2.0), moment(30.0)],
            pool: vec![PoolMoment {
                seconds: 1.0,
                level: Some(Level::Soft),
                free_bytes: Some(2 << 20),
                resident_bytes: 37 << 20,
            }],
        }
    }

    #[test]
    fn a_date_is_one() {
        assert_eq!([0, 1_796_000_000].map(date), ["1970-01-01 00:00 UTC", "2026-11-30 00:53 UTC"]);
    }

    #[test]
    fn a_trial_is_disturbed_where_guests_were_late_and_the_cpu_was_stolen() {
        let passed = report().trials.remove(0);
        let with = |stolen_percent: f64| Trial { cpu: CpuUse { stolen_percent, ..passed.cpu }, ..passed.clone() };
        let late = |stolen_percent| Trial { has_passed: false, guests_ok: passed.guests, ..with(stolen_percent) };
        assert!(late(5.0).is_disturbed());
        assert!(!late(4.9).is_disturbed());
        assert!(!with(80.0).is_disturbed(), "it has passed");
        assert!(!Trial { bad_pages: 1, ..late(80.0) }.is_disturbed(), "a bad page is one");
        assert!(!Trial { guests_ok: 1, ..late(80.0) }.is_disturbed(), "a guest has failed");
        let hopeless = passed.goodput.map(|goodput| Goodput { worst_percent: 24.9, ..goodput });
        assert!(!Trial { goodput: hopeless, ..late(80.0) }.is_disturbed(), "that is not for what was stolen");
    }

    #[test]
    fn json_has_the_names_users_rely_on() {
        let json: serde_json::Value = serde_json::from_str(&report().json()).expect("JSON");
        for name in [
            "guests",
            "guests_ok",
            "verify_lines",
            "bad_pages",
            "budget_bytes",
            "peak_host_bytes",
            "reclaimed_percent",
            "overcommit",
            "trials",
            "moments",
            "advice",
            "host",
        ] {
            assert!(!json[name].is_null(), "{name}");
        }
        for name in ["resident", "shared", "ballooned", "compressed", "swapped", "zero", "untouched"] {
            assert!(json["bytes"][name].is_u64(), "{name}");
        }
        assert_eq!((&json["goodput"]["worst_percent"], &json["latency_ns"]["p99"]), (&96.1.into(), &65_000.into()));
    }
}
