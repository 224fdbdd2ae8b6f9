//! The balloon's driver (virtio 1.2, section 5.5): does what the host asks in the background of everything else. It
//! gives freed pages first, then never touched ones, never filled ones, and stops short when there are none.

use core::cell::UnsafeCell;

use cistern_probe::PAGE_SIZE;
use cistern_probe::cmdline;
use cistern_probe::holdings::{Holding, Holdings, Pages};
use cistern_probe::pool::{Pool, Range};

use crate::apic;
use crate::clock::Clock;
use crate::cpu::{Cpu, event};
use crate::memory::PageTables;
use crate::virtio::{Buffer, CONFIGURATION_CHANGED, QUEUE_SIZE, Queue, QueueMemory, Registers};

const DEVICE_ID: u32 = 5;

const FEATURE_MUST_TELL_HOST: u64 = 1 << 0;
const FEATURE_STATISTICS: u64 = 1 << 1;
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_FREE_PAGE_HINT: u64 = 1 << 3;
const FEATURE_REPORTING: u64 = 1 << 5;

/// Configuration fields.
const TARGET: u64 = 0;
const ACTUAL: u64 = 4;

/// Page numbers in one request.
const BATCH: u32 = 256;
/// How long a device may take for one request before the probe goes on without it.
const PATIENCE_NANOSECONDS: u64 = 10_000_000_000;
/// Longest piece of memory in one buffer of a report.
const MAX_REPORT_PAGES: u32 = 1 << 18;

/// Tags of the statistics the probe knows.
const STATISTIC_FREE: u16 = 4;
const STATISTIC_TOTAL: u16 = 5;
const STATISTIC_AVAILABLE: u16 = 6;

/// One statistic as the device reads it.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Statistic {
    tag: u16,
    value: u64,
}

/// Memory the device reads requests from.
struct Requests {
    page_numbers: UnsafeCell<[u32; BATCH as usize]>,
    statistics: UnsafeCell<[Statistic; 3]>,
}

// SAFETY: used by the boot processor alone, and not while the device reads it.
unsafe impl Sync for Requests {}

static REQUESTS: Requests = Requests {
    page_numbers: UnsafeCell::new([0; BATCH as usize]),
    statistics: UnsafeCell::new([Statistic { tag: 0, value: 0 }; 3]),
};
static QUEUES: [QueueMemory; 4] = [const { QueueMemory::new() }; 4];

/// The request the device is working on.
#[derive(Clone, Copy)]
enum Flight {
    Inflate(Pages),
    Deflate(Pages),
}

/// The balloon device, driven.
pub struct Balloon {
    registers: Registers,
    inflate: Queue,
    deflate: Queue,
    statistics: Option<Queue>,
    reporting: Option<Queue>,
    deflate_on_oom: bool,
    ram_bytes: u64,
    flight: Option<Flight>,
    /// While pages are taken back or reported, no new request of the host's is begun.
    paused: bool,
    /// What it gives until it is told anew; `None` if it gives as fast as it can.
    allowance_pages: Option<u32>,
    target_pages: u32,
    inflated_pages: u32,
    reported_pages: u64,
}

impl Balloon {
    /// Starts the first balloon among the devices on the command line; `None` if there is none that works.
    pub fn find(command_line: &str, tables: &mut PageTables, ram_bytes: u64) -> Option<Self> {
        let mut devices = cmdline::mmio_devices(command_line).filter_map(|device| {
            let end = device.base.checked_add(device.bytes)?;
            let mapped = device.base % 4 == 0 && tables.map(Range { start: device.base, end });
            Some((device, mapped.then(|| Registers::of(&device, DEVICE_ID))??))
        });
        let (device, registers) = devices.next()?;
        let wanted = FEATURE_MUST_TELL_HOST | FEATURE_STATISTICS | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING;
        let (offered, agreed) = registers.negotiate(wanted)?;
        // Queues are numbered without gaps, by what the device offers.
        let mut number = 2;
        let mut optional = |feature, memory| {
            if offered & feature == 0 {
                return None;
            }
            number += 1;
            if agreed & feature == 0 { None } else { Queue::new(registers, number - 1, memory) }
        };
        let statistics = optional(FEATURE_STATISTICS, &QUEUES[2]);
        optional(FEATURE_FREE_PAGE_HINT, &QUEUES[3]);
        let reporting = optional(FEATURE_REPORTING, &QUEUES[3]);
        let balloon = Self {
            registers,
            inflate: Queue::new(registers, 0, &QUEUES[0])?,
            deflate: Queue::new(registers, 1, &QUEUES[1])?,
            statistics,
            reporting,
            deflate_on_oom: agreed & FEATURE_DEFLATE_ON_OOM != 0,
            ram_bytes,
            flight: None,
            paused: false,
            allowance_pages: None,
            target_pages: 0,
            inflated_pages: 0,
            reported_pages: 0,
        };
        // Without its interrupt the balloon is served whenever something else wakes the processor.
        let _ = apic::route(device.irq, apic::id());
        registers.start();
        Some(balloon)
    }

    /// Begins to serve: the host may have had wishes before we came.
    pub fn begin(&mut self, holdings: &mut Holdings, pool: &Pool) {
        self.target_pages = self.registers.configuration(TARGET);
        self.send_statistics(holdings);
        self.proceed(holdings, pool);
    }

    /// What the host wants in the balloon.
    pub const fn target_pages(&self) -> u32 {
        self.target_pages
    }

    /// What is in it.
    pub const fn inflated_pages(&self) -> u32 {
        self.inflated_pages
    }

    /// Pages reported as free so far.
    pub const fn reported_pages(&self) -> u64 {
        self.reported_pages
    }

    /// Gives at most so many pages until this is called again.
    pub fn allow(&mut self, pages: u32, holdings: &mut Holdings, pool: &Pool) {
        self.allowance_pages = Some(pages);
        self.proceed(holdings, pool);
    }

    /// Answers an interrupt.
    pub fn serve(&mut self, holdings: &mut Holdings, pool: &Pool) {
        if self.registers.take_interrupts() & CONFIGURATION_CHANGED != 0 {
            self.target_pages = self.registers.configuration(TARGET);
        }
        if self.statistics.as_ref().is_some_and(Queue::is_done) {
            self.send_statistics(holdings);
        }
        self.proceed(holdings, pool);
    }

    /// Notes what the device has finished, and asks for the next.
    pub fn proceed(&mut self, holdings: &mut Holdings, pool: &Pool) {
        match self.flight {
            Some(Flight::Inflate(pages)) if self.inflate.is_done() => self.inflated_pages += pages.count,
            Some(Flight::Deflate(pages)) if self.deflate.is_done() => {
                holdings.set(pages, Holding::Clean);
                self.inflated_pages -= pages.count;
            }
            Some(_) => return,
            None if self.paused => return,
            None => return self.begin_next(holdings, pool),
        }
        self.flight = None;
        self.registers.set_configuration(ACTUAL, self.inflated_pages);
        if !self.paused {
            self.begin_next(holdings, pool);
        }
    }

    fn begin_next(&mut self, holdings: &mut Holdings, pool: &Pool) {
        if self.inflated_pages < self.target_pages {
            let allowed = self.allowance_pages.unwrap_or(BATCH);
            let limit = BATCH.min(self.target_pages - self.inflated_pages).min(allowed);
            let Some(pages) = holdings.for_balloon(limit).filter(|pages| pages.count > 0) else { return };
            self.allowance_pages = self.allowance_pages.map(|left| left - pages.count);
            holdings.set(pages, Holding::Ballooned);
            self.flight = Some(Flight::Inflate(pages));
            self.inflate.request(&[page_numbers(pages, pool)]);
        } else if self.inflated_pages > self.target_pages {
            let limit = BATCH.min(self.inflated_pages - self.target_pages);
            let Some(pages) = holdings.lowest(Holding::Ballooned, limit) else { return };
            self.begin_deflate(pages, pool);
        }
    }

    fn begin_deflate(&mut self, pages: Pages, pool: &Pool) {
        self.flight = Some(Flight::Deflate(pages));
        self.deflate.request(&[page_numbers(pages, pool)]);
    }

    fn send_statistics(&mut self, holdings: &Holdings) {
        let Some(queue) = &mut self.statistics else { return };
        let free_bytes = u64::from(holdings.count(Holding::Clean) + holdings.count(Holding::Freed)) * PAGE_SIZE;
        let values =
            [(STATISTIC_FREE, free_bytes), (STATISTIC_TOTAL, self.ram_bytes), (STATISTIC_AVAILABLE, free_bytes)];
        let statistics = REQUESTS.statistics.get();
        // SAFETY: the device is done with the last statistics.
        unsafe { *statistics = values.map(|(tag, value)| Statistic { tag, value }) };
        let bytes = size_of::<[Statistic; 3]>() as u32;
        queue.request(&[Buffer { address: statistics as u64, bytes, device_writes: false }]);
    }

    /// Takes pages below `border` back from the balloon, so that they can be filled; false if the host does not allow
    /// it or does not answer.
    #[must_use]
    pub fn take_back(&mut self, border: u32, holdings: &mut Holdings, pool: &Pool, cpu: &Cpu, clock: &Clock) -> bool {
        self.paused = true;
        let mut answered = self.wait(holdings, pool, cpu, clock);
        while answered
            && let Some(pages) = holdings.lowest(Holding::Ballooned, BATCH).filter(|pages| pages.first < border)
        {
            if self.inflated_pages <= self.target_pages && !self.deflate_on_oom {
                answered = false;
                break;
            }
            self.begin_deflate(Pages { count: pages.count.min(border - pages.first), ..pages }, pool);
            answered = self.wait(holdings, pool, cpu, clock);
        }
        self.paused = false;
        answered
    }

    /// Waits until the device has answered the request in flight; false if it does not.
    fn wait(&mut self, holdings: &mut Holdings, pool: &Pool, cpu: &Cpu, clock: &Clock) -> bool {
        clock.wait(cpu, clock.after(PATIENCE_NANOSECONDS), || {
            if cpu.take_events(event::DEVICE) != 0 {
                self.serve(holdings, pool);
            } else {
                self.proceed(holdings, pool);
            }
            self.flight.is_none()
        })
    }

    /// Tells the host that freed pages are free; afterwards they are clean. Nothing happens without the feature; pages
    /// the host does not answer for stay freed.
    pub fn report(&mut self, freed: Pages, holdings: &mut Holdings, pool: &Pool, cpu: &Cpu, clock: &Clock) {
        self.paused = true;
        let mut next = freed.first;
        while next < freed.end() && self.reporting.is_some() {
            let first = next;
            let mut buffers = [Buffer { address: 0, bytes: 0, device_writes: true }; QUEUE_SIZE];
            let mut used = 0;
            let size = self.reporting.as_ref().map_or(0, Queue::size);
            while used < size && next < freed.end() {
                let count = pool.run(next).min(freed.end() - next).min(MAX_REPORT_PAGES);
                buffers[used].address = pool.address(next);
                buffers[used].bytes = count * PAGE_SIZE as u32;
                next += count;
                used += 1;
            }
            if let Some(queue) = &mut self.reporting {
                queue.request(&buffers[..used]);
            }
            let answered = clock.wait(cpu, clock.after(PATIENCE_NANOSECONDS), || {
                if cpu.take_events(event::DEVICE) != 0 {
                    self.serve(holdings, pool);
                }
                self.reporting.as_ref().is_none_or(Queue::is_done)
            });
            if !answered {
                // The device may still answer into a request it should have forgotten: never use the queue again.
                self.reporting = None;
                break;
            }
            holdings.set(Pages { first, count: next - first }, Holding::Clean);
            self.reported_pages += u64::from(next - first);
        }
        self.paused = false;
    }
}

/// The request that names these pages.
fn page_numbers(pages: Pages, pool: &Pool) -> Buffer {
    let numbers = REQUESTS.page_numbers.get();
    for at in 0..pages.count.min(BATCH) {
        // SAFETY: only one request is in flight at a time, so the device is done with the numbers.
        unsafe { (*numbers)[at as usize] = (pool.address(pages.first + at) / PAGE_SIZE) as u32 };
    }
    Buffer { address: numbers as u64, bytes: pages.count * 4, device_writes: false }
}
