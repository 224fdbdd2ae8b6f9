//! Where the guests' memory was, what it took of the host, and the CPU time that cost, look by look.

use std::time::{Duration, Instant};

use cistern_memory::sharing::ksm::Ksmd;
use serde::Serialize;
use serde_json::Value;

use super::goodput::Window;
use super::stolen::stolen_time;
use crate::guest_process::cpu::CpuTime;
use crate::guest_process::held::Held;
use crate::guest_process::still::Taken;
use crate::guest_process::watch::{Look, Observer};

/// Guest memory by where it is, in bytes of guest memory: each page in one, all together what the guests believe they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// In host memory, a page for a page.
    pub resident: u64,
    /// Merged with equal pages, or stored once for several.
    pub shared: u64,
    /// Zero pages that are not kept.
    pub zero: u64,
    /// In balloons.
    pub ballooned: u64,
    /// Compressed in host memory.
    pub compressed: u64,
    /// On disk.
    pub swapped: u64,
    /// Never touched, or given back.
    pub untouched: u64,
}

impl Bytes {
    /// Of one guest, from its VMM's answer to `GET /memory` and what the kernel says of the process: only that knows where
    /// pages are that the VMM has not classified yet, which are all of a VM whose faults the kernel answers.
    pub fn of(memory: &Value, taken: Option<Taken>) -> Self {
        let (held, taken) = (Held::of(memory), taken.unwrap_or_default());
        let unknown = held.unclassified_bytes;
        let known = held.resident_bytes - unknown;
        let in_host = taken.pss_bytes.saturating_sub(known + held.compressed_held_bytes).min(unknown);
        let in_host_swap = taken.swap_bytes.min(unknown - in_host);
        let unwritten = held.untouched_bytes + unknown - in_host - in_host_swap;
        let ballooned = held.ballooned_bytes.min(unwritten);
        let merged = held.merged_bytes.min(known);
        Self {
            resident: known - merged + in_host,
            shared: merged + held.duplicate_bytes,
            zero: held.zero_bytes,
            ballooned,
            compressed: held.compressed_bytes,
            swapped: held.swapped_bytes + in_host_swap,
            untouched: unwritten - ballooned,
        }
    }

    /// All guest memory.
    #[cfg(test)]
    fn total(&self) -> u64 {
        self.held() + self.ballooned + self.untouched
    }

    /// What guests hold: they wrote it and may read it again.
    pub fn held(&self) -> u64 {
        self.resident + self.away()
    }

    /// Of that, what is not in host memory as it is.
    pub fn away(&self) -> u64 {
        self.shared + self.zero + self.compressed + self.swapped
    }

    fn add(&mut self, other: &Self) {
        self.resident += other.resident;
        self.shared += other.shared;
        self.zero += other.zero;
        self.ballooned += other.ballooned;
        self.compressed += other.compressed;
        self.swapped += other.swapped;
        self.untouched += other.untouched;
    }
}

/// All guests at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// Guests that were there.
    pub guests: usize,
    /// What their processes took of the host's memory: PSS.
    pub host_bytes: u64,
    /// What that was where most of it was taken by one guest.
    pub host_most_bytes: u64,
    /// Where their memory was.
    pub bytes: Bytes,
    /// Host memory that compressed pages took.
    pub compressed_held_bytes: u64,
    /// CPU time of all so far.
    pub cpu: CpuTime,
    /// CPU time of ksmd since the host started.
    pub ksmd: Duration,
    /// CPU time that this host was kept from since it started.
    pub stolen: Duration,
}

/// CPU time used, in percent of one CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct CpuUse {
    /// By guests themselves.
    pub guests_percent: f64,
    /// By their VMMs: pagers, managers, scanners, devices.
    pub managers_percent: f64,
    /// By ksmd.
    pub ksm_percent: f64,
    /// By others on the machine that this host is a guest of, while it had work to do.
    pub stolen_percent: f64,
}

/// All looks.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// As they were.
    pub samples: Vec<Sample>,
    /// Of each guest, when last seen.
    cpu: Vec<CpuTime>,
    ksmd: Option<Option<Ksmd>>,
}

impl Observer for Account {
    fn take(&mut self, look: &Look) {
        let at = Instant::now();
        self.cpu.resize(self.cpu.len().max(look.cpu.len()), CpuTime::default());
        for (last, now) in self.cpu.iter_mut().zip(&look.cpu) {
            *last = now.unwrap_or(*last);
        }
        let mut cpu = CpuTime::default();
        for guest in &self.cpu {
            cpu.guest += guest.guest;
            cpu.vmm += guest.vmm;
        }
        let (mut bytes, mut compressed_held_bytes) = (Bytes::default(), 0);
        for (memory, taken) in look.answers.iter().zip(&look.taken) {
            if let Some(memory) = memory {
                bytes.add(&Bytes::of(memory, *taken));
                compressed_held_bytes += Held::of(memory).compressed_held_bytes;
            }
        }
        let taken = || look.taken.iter().flatten().map(|taken| taken.pss_bytes);
        let ksmd = self.ksmd.get_or_insert_with(Ksmd::find).as_ref().and_then(Ksmd::cpu_time).unwrap_or_default();
        self.samples.push(Sample {
            at,
            guests: taken().count(),
            host_bytes: taken().sum(),
            host_most_bytes: taken().max().unwrap_or(0),
            bytes,
            compressed_held_bytes,
            cpu,
            ksmd,
            stolen: stolen_time(),
        });
    }
}

impl Account {
    /// The most the host gave them.
    pub fn peak_bytes(&self) -> u64 {
        self.samples.iter().map(|sample| sample.host_bytes).max().unwrap_or(0)
    }

    /// When most was away; where nothing was, when most was held.
    pub fn fullest(&self) -> Option<&Sample> {
        self.samples.iter().max_by_key(|sample| (sample.bytes.away(), sample.bytes.held()))
    }

    /// CPU time used between the first and the last look in a window; none where there are no two.
    pub fn cpu_use(&self, window: &Window) -> CpuUse {
        let mut inside = self.samples.iter().filter(|sample| (window.start..=window.end).contains(&sample.at));
        let (Some(first), Some(last)) = (inside.next(), inside.next_back()) else { return CpuUse::default() };
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        let percent = |used: fn(&Sample) -> Duration| {
            used(last).saturating_sub(used(first)).as_secs_f64() * 100.0 / seconds.max(f64::MIN_POSITIVE)
        };
        CpuUse {
            guests_percent: percent(|sample| sample.cpu.guest),
            managers_percent: percent(|sample| sample.cpu.vmm),
            ksm_percent: percent(|sample| sample.ksmd),
            stolen_percent: percent(|sample| sample.stolen),
        }
    }
}

#[cfg(test)]
mod tests {
    use cistern_memory::PAGE_SIZE;
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({
            "pages": {"untouched": 10, "zero": 2, "duplicate": 3, "compressed": 4, "swapped": 5, "resident": 20, "aside": 6},
            "compressed": {"held_bytes": 7}, "balloon_inflated_bytes": 4 * PAGE_SIZE,
            "sharing": {"merging": {"merged_pages": 8}},
        })
    }

    #[test]
    fn every_page_is_in_one_place() {
        let bytes = Bytes::of(&answer(), None);
        let pages = |pages: u64| pages * PAGE_SIZE;
        let expected = Bytes {
            resident: pages(18),
            shared: pages(11),
            zero: pages(2),
            ballooned: pages(4),
            compressed: pages(4),
            swapped: pages(5),
            untouched: pages(6),
        };
        assert_eq!((bytes, bytes.total()), (expected, pages(50)));
        assert_eq!((bytes.held(), bytes.away()), (pages(40), pages(22)));
    }

    #[test]
    fn of_an_open_vm_the_kernel_knows() {
        let open = json!({"pages": {"unknown": 50}, "balloon_inflated_bytes": 4 * PAGE_SIZE});
        let taken = Taken { pss_bytes: 30 * PAGE_SIZE, swap_bytes: 10 * PAGE_SIZE };
        let bytes = Bytes::of(&open, Some(taken));
        assert_eq!((bytes.resident, bytes.swapped, bytes.ballooned), (30 * PAGE_SIZE, 10 * PAGE_SIZE, 4 * PAGE_SIZE));
        assert_eq!(bytes.total(), 50 * PAGE_SIZE);
        let more = Taken { pss_bytes: 70 * PAGE_SIZE, swap_bytes: 10 * PAGE_SIZE };
        assert_eq!(Bytes::of(&open, Some(more)).total(), 50 * PAGE_SIZE, "the process has memory of its own");
    }

    #[test]
    fn what_a_process_has_of_its_own_is_no_guest_memory_of_an_armed_vm() {
        let armed = json!({"armed": true, "pages": {"unknown": 50, "resident": 20}});
        let bytes = Bytes::of(&armed, Some(Taken { pss_bytes: 30 * PAGE_SIZE, swap_bytes: 0 }));
        assert_eq!((bytes.resident, bytes.untouched), (20 * PAGE_SIZE, 50 * PAGE_SIZE));
    }

    #[test]
    fn cpu_time_is_of_the_window_and_outlives_its_process() {
        let look = |milliseconds: [Option<u64>; 2]| Look {
            cpu: milliseconds
                .map(|ms| ms.map(|ms| CpuTime { guest: Duration::from_millis(ms), vmm: Duration::from_millis(ms / 2) }))
                .to_vec(),
            taken: vec![Some(Taken { pss_bytes: 5, swap_bytes: 0 }), None],
            answers: vec![Some(answer()), None],
        };
        let mut account = Account::default();
        for milliseconds in [[Some(100), Some(0)], [Some(200), Some(100)], [Some(300), None]] {
            account.take(&look(milliseconds));
        }
        let start = account.samples[0].at;
        for (sample, second) in account.samples.iter_mut().zip(0..) {
            sample.at = start + Duration::from_secs(second);
        }
        let window = |end| Window { start, end: start + Duration::from_secs(end) };
        let used = account.cpu_use(&window(2));
        assert!((used.guests_percent - 15.0).abs() < 1e-9 && (used.managers_percent - 7.5).abs() < 1e-9, "{used:?}");
        assert_eq!(account.cpu_use(&window(0)), CpuUse::default());
        assert_eq!((account.peak_bytes(), account.samples[2].guests), (5, 1));
        assert_eq!(account.fullest().map(|sample| sample.compressed_held_bytes), Some(7));
    }
}
