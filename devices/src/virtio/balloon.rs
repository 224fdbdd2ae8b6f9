//! Memory balloon (virtio 1.2, section 5.5): inflate, deflate, statistics, deflate on OOM, free page reporting.
//!
//! The device gives pages back to the host as the guest names them. What it should ask of the guest is set from outside
//! through [`BalloonHandle`], the device's implementation of [`cistern_memory::Balloon`].

use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cistern_memory::{BalloonStatistics, GuestRam, PAGE_SIZE, RamError, RamRegion};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{ByteValued, Le16, Le64};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::balloon_pages::PageSet;
use super::chain::{Chain, QueueError};
use super::device::{DeviceError, Driver, VirtioDevice, copy_config};
use super::scatter::{Buffers, MAX_SEGMENTS, Scatter};

/// Feature bit: the driver reports statistics.
pub const VIRTIO_BALLOON_F_STATS_VQ: u32 = 1;
/// Feature bit: the guest may take pages out of the balloon when it runs out of memory.
pub const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
/// Feature bit: the driver reports pages that are free.
pub const VIRTIO_BALLOON_F_PAGE_REPORTING: u32 = 5;

const INFLATE_QUEUE: usize = 0;
const DEFLATE_QUEUE: usize = 1;
const STATISTICS_QUEUE: usize = 2;
const QUEUE_SIZES: [u16; 5] = [128; 5];

/// Page numbers in one chain: a list of 64 KiB that names 64 MiB. Linux sends 256, FreeBSD 1024.
const MAX_PAGES_PER_CHAIN: usize = 16384;
/// Chains of one event before the other devices get their turn: each may give back as many pages as the kernel takes a
/// tenth of a second for.
const CHAINS_PER_EVENT: usize = 8;
/// Statistics read from one buffer; the specification knows 10 kinds, newer drivers send 16.
const MAX_STATISTICS: usize = 64;

/// A balloon as its users see it. What they ask for is noted here and the device is woken; what the guest did is counted
/// here.
#[derive(Debug)]
pub struct BalloonHandle {
    // Each value stands alone (no reader concludes from one of them that another has changed), so Relaxed is enough.
    // That a request is seen after the wake-up it caused follows from the eventfd: write and read order what is before
    // and after them.
    target_bytes: AtomicU64,
    inflated_bytes: AtomicU64,
    reported_bytes: AtomicU64,
    given_bytes: AtomicU64,
    has_driver: AtomicBool,
    discard_failures: AtomicU64,
    statistics_wanted: AtomicBool,
    /// Held for a copy only.
    statistics: Mutex<Option<BalloonStatistics>>,
    wake: EventFd,
}

impl BalloonHandle {
    /// Ranges the guest gave that the host's kernel refused to take. The guest does not use them either way; the host
    /// has not got their memory.
    pub fn discard_failures(&self) -> u64 {
        self.discard_failures.load(Ordering::Relaxed)
    }

    fn set_statistics(&self, statistics: Option<BalloonStatistics>) {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }

    fn wake(&self) {
        // Fails only when the eventfd's counter is full: then the device is awake already.
        let _ = self.wake.write(1);
    }
}

impl cistern_memory::Balloon for BalloonHandle {
    fn set_target_bytes(&self, bytes: u64) {
        if self.target_bytes.swap(bytes, Ordering::Relaxed) != bytes {
            self.wake();
        }
    }

    fn target_bytes(&self) -> u64 {
        self.target_bytes.load(Ordering::Relaxed)
    }

    fn inflated_bytes(&self) -> u64 {
        self.inflated_bytes.load(Ordering::Relaxed)
    }

    fn has_driver(&self) -> bool {
        self.has_driver.load(Ordering::Relaxed)
    }

    fn given_bytes(&self) -> u64 {
        self.given_bytes.load(Ordering::Relaxed)
    }

    fn reported_bytes(&self) -> u64 {
        self.reported_bytes.load(Ordering::Relaxed)
    }

    fn request_statistics(&self) {
        self.statistics_wanted.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn statistics(&self) -> Option<BalloonStatistics> {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

/// The balloon device.
#[derive(Debug)]
pub struct Balloon {
    handle: Arc<BalloonHandle>,
    page_reporting: bool,
    /// Pages the guest says it holds, as the driver writes it into the configuration space. Its own account: nothing
    /// here depends on it.
    actual_pages: [u8; 4],
    pages: PageSet,
    announced_target_bytes: u64,
    /// The statistics buffer: the driver gives it filled and gets it back when the next statistics are wanted.
    statistics_head: Option<u16>,
}

impl Balloon {
    /// A balloon with target 0. With `page_reporting` the guest is offered free page reporting.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new(page_reporting: bool) -> Result<Self, DeviceError> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|cause| DeviceError::Host { object: "balloon: eventfd".into(), cause })?;
        Ok(Self {
            handle: Arc::new(BalloonHandle {
                target_bytes: AtomicU64::new(0),
                inflated_bytes: AtomicU64::new(0),
                reported_bytes: AtomicU64::new(0),
                given_bytes: AtomicU64::new(0),
                has_driver: AtomicBool::new(false),
                discard_failures: AtomicU64::new(0),
                statistics_wanted: AtomicBool::new(false),
                statistics: Mutex::new(None),
                wake,
            }),
            page_reporting,
            actual_pages: [0; 4],
            pages: PageSet::default(),
            announced_target_bytes: 0,
            statistics_head: None,
        })
    }

    /// The handle by which others use this balloon.
    pub fn handle(&self) -> Arc<BalloonHandle> {
        self.handle.clone()
    }

    /// The queues' numbers are the specification's (reporting is 4) or, as Linux lays them out, without gaps for queues
    /// whose feature was not negotiated (reporting is 2 or 3). Nothing else can be on those numbers here, since free page
    /// hinting, which would be 3, is never offered: so both are served, whichever the driver chose.
    fn role(queue: usize, driver: &Driver) -> Option<Role> {
        match queue {
            INFLATE_QUEUE => Some(Role::Inflate),
            DEFLATE_QUEUE => Some(Role::Deflate),
            STATISTICS_QUEUE if driver.has_feature(VIRTIO_BALLOON_F_STATS_VQ) => Some(Role::Statistics),
            _ if driver.has_feature(VIRTIO_BALLOON_F_PAGE_REPORTING) => Some(Role::Reporting),
            _ => None,
        }
    }

    /// Serves one chain and names the chain to return: this one, or for statistics the one it replaces.
    fn serve(&mut self, role: Role, chain: Chain<'_>, ram: &GuestRam) -> Result<Option<u16>, DeviceError> {
        let head = chain.head_index();
        let readable = |chain| Buffers::gather(ram.memory(), chain).map(|buffers| buffers.readable);
        match role {
            Role::Inflate => for_each_run(readable(chain)?, ram, |frames| {
                self.pages.insert(frames.clone());
                let given_bytes = self.discard(ram, frames.start * PAGE_SIZE..frames.end * PAGE_SIZE)?;
                self.handle.given_bytes.fetch_add(given_bytes.unwrap_or(0), Ordering::Relaxed);
                Ok(())
            })?,
            // The memory itself comes back on first touch.
            Role::Deflate => for_each_run(readable(chain)?, ram, |frames| {
                self.pages.remove(frames);
                Ok(())
            })?,
            Role::Reporting => self.take_reported(chain, ram)?,
            Role::Statistics => {
                self.read_statistics(readable(chain)?);
                // A driver has one such buffer. Should there be more, only the last is kept.
                return Ok(self.statistics_head.replace(head));
            }
        }
        self.publish_inflated();
        Ok(Some(head))
    }

    fn publish_inflated(&self) {
        self.handle.inflated_bytes.store(self.pages.count() * PAGE_SIZE, Ordering::Relaxed);
    }

    /// The buffers of the chain are the free pages themselves; the guest takes none of them into use before the chain is
    /// returned.
    fn take_reported(&mut self, chain: Chain<'_>, ram: &GuestRam) -> Result<(), DeviceError> {
        // The iterator ends in silence where a chain is malformed; a chain is whole when its last descriptor says so.
        let mut whole = false;
        let mut left_bytes = ram.size_bytes();
        for (count, buffer) in chain.enumerate() {
            // No page is free twice. Beyond that a chain could keep the device busy for minutes.
            let left = left_bytes.checked_sub(buffer.len().into());
            let Some(left) = left.filter(|_| count < MAX_SEGMENTS) else {
                return Err(QueueError::ChainTooLong.into());
            };
            left_bytes = left;
            whole = !buffer.has_next();
            if !buffer.is_write_only() {
                continue;
            }
            let start = buffer.addr().0;
            let end = start
                .checked_add(buffer.len().into())
                .filter(|&end| {
                    ram.regions().iter().any(|region| region.guest_address <= start && end <= end_of(region))
                })
                .ok_or(DeviceError::Request("reported range outside RAM"))?;
            // Only whole pages: what shares a page with the ends of the range may be in use.
            let pages = start.next_multiple_of(PAGE_SIZE)..end - end % PAGE_SIZE;
            if pages.start < pages.end {
                let bytes = pages.end - pages.start;
                if self.discard(ram, pages)?.is_some() {
                    self.handle.reported_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
            }
        }
        if whole { Ok(()) } else { Err(QueueError::ChainBroken.into()) }
    }

    /// Gives a range back to the host. A kernel that refuses costs the host memory and the guest nothing: counted, and on
    /// we go. Returns the host memory this freed, as far as it is known; `None` when the kernel refused.
    fn discard(&self, ram: &GuestRam, range: Range<u64>) -> Result<Option<u64>, DeviceError> {
        match ram.discard(range.start, range.end - range.start) {
            Ok(given_bytes) => Ok(Some(given_bytes)),
            Err(RamError::NotRam { .. }) => Err(DeviceError::Request("range outside RAM")),
            Err(_) => {
                self.handle.discard_failures.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    /// A list of (tag, value) pairs; unknown tags are skipped.
    fn read_statistics(&mut self, mut list: Scatter<'_>) {
        let mut statistics = BalloonStatistics::default();
        let mut entry = Statistic::default();
        for _ in 0..MAX_STATISTICS {
            if list.read(entry.as_mut_slice()) < size_of::<Statistic>() {
                break;
            }
            let field = match entry.tag.to_native() {
                0 => &mut statistics.swap_in_bytes,
                1 => &mut statistics.swap_out_bytes,
                2 => &mut statistics.major_faults,
                3 => &mut statistics.minor_faults,
                4 => &mut statistics.free_bytes,
                5 => &mut statistics.total_bytes,
                6 => &mut statistics.available_bytes,
                7 => &mut statistics.disk_caches_bytes,
                8 => &mut statistics.hugetlb_allocations,
                9 => &mut statistics.hugetlb_failures,
                _ => continue,
            };
            *field = Some(entry.value.to_native());
        }
        self.handle.set_statistics(Some(statistics));
    }

    /// Asks for statistics by returning the buffer. A driver that still has it is already at work on the answer.
    fn return_statistics_buffer(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(head) = self.statistics_head.take() else { return Ok(()) };
        let Some(queue) = driver.queues.get_mut(STATISTICS_QUEUE).filter(|queue| queue.is_ready()) else {
            return Ok(());
        };
        queue.add_used(driver.ram.memory(), head, 0)?;
        queue.notify(driver.ram.memory(), &driver.interrupt)?;
        Ok(())
    }

    fn announce_target(&mut self, driver: &Driver) {
        let target = self.handle.target_bytes.load(Ordering::Relaxed);
        if target != self.announced_target_bytes {
            self.announced_target_bytes = target;
            driver.interrupt.signal_config();
        }
    }
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &str {
        "balloon"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_BALLOON_F_STATS_VQ)
            | (1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM)
            | (u64::from(self.page_reporting) << VIRTIO_BALLOON_F_PAGE_REPORTING)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `num_pages` and `actual`.
        let pages = self.handle.target_bytes.load(Ordering::Relaxed) / PAGE_SIZE;
        let mut config = [0; 8];
        config[..4].copy_from_slice(&u32::try_from(pages).unwrap_or(u32::MAX).to_le_bytes());
        config[4..].copy_from_slice(&self.actual_pages);
        copy_config(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (position, value) in (0..).zip(data) {
            // Only `actual` is the driver's to write.
            let index = offset.checked_add(position).and_then(|address| address.checked_sub(4));
            let index = index.and_then(|index| usize::try_from(index).ok());
            if let Some(byte) = index.and_then(|index| self.actual_pages.get_mut(index)) {
                *byte = *value;
            }
        }
    }

    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let end = driver.ram.regions().iter().map(end_of).max().unwrap_or(0);
        self.pages = PageSet::new(end / PAGE_SIZE);
        self.handle.has_driver.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(role) = Self::role(queue, driver) else { return Ok(()) };
        let ram = Arc::clone(&driver.ram);
        let Some(ring) = driver.queues.get_mut(queue) else { return Ok(()) };
        let mut chains = 0;
        loop {
            while let Some(chain) = ring.pop(ram.memory())? {
                if let Some(head) = self.serve(role, chain, &ram)? {
                    ring.add_used(ram.memory(), head, 0)?;
                }
                chains += 1;
                if chains == CHAINS_PER_EVENT {
                    ring.yield_event();
                }
            }
            ring.notify(ram.memory(), &driver.interrupt)?;
            if !ring.enable_kicks(ram.memory())? {
                return Ok(());
            }
        }
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.handle.wake.as_raw_fd())
    }

    fn host_event(&mut self, driver: Option<&mut Driver>) -> Result<(), DeviceError> {
        // Empty when the event was spurious; what there is to do is read from the state.
        let _ = self.handle.wake.read();
        let Some(driver) = driver else { return Ok(()) };
        self.announce_target(driver);
        if self.handle.statistics_wanted.swap(false, Ordering::Relaxed) {
            self.return_statistics_buffer(driver)?;
        }
        Ok(())
    }

    /// The guest's side starts anew: it has no pages in the balloon and has said nothing. What is asked of it stands.
    fn reset(&mut self) {
        self.handle.has_driver.store(false, Ordering::Relaxed);
        self.actual_pages = [0; 4];
        self.pages = PageSet::default();
        self.announced_target_bytes = 0;
        self.statistics_head = None;
        self.handle.set_statistics(None);
        self.publish_inflated();
    }
}

/// One entry of the statistics buffer, as it lies there.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, packed)]
struct Statistic {
    tag: Le16,
    value: Le64,
}

// SAFETY: plain integers without padding, valid for any bytes.
unsafe impl ByteValued for Statistic {}

/// Reads a list of page numbers and calls `each` for every run of adjacent ones, ascending, none across the end of a RAM
/// region. Drivers list pages in any order; the fewer runs, the fewer system calls.
fn for_each_run(
    mut list: Scatter<'_>,
    ram: &GuestRam,
    mut each: impl FnMut(Range<u64>) -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    if !list.len().is_multiple_of(size_of::<u32>()) || list.len() > MAX_PAGES_PER_CHAIN * size_of::<u32>() {
        return Err(DeviceError::Request("odd or overlong list of page numbers"));
    }
    // Copied first: the list may lie in the very pages it names.
    let mut bytes = vec![0; list.len()];
    list.read(&mut bytes);
    let (numbers, _) = bytes.as_chunks();
    let mut frames: Vec<u64> = numbers.iter().map(|&number| u32::from_le_bytes(number).into()).collect();
    frames.sort_unstable();

    let mut rest = frames.as_slice();
    while let Some(&start) = rest.first() {
        let region = ram
            .regions()
            .iter()
            .find(|region| (region.guest_address / PAGE_SIZE..end_of(region) / PAGE_SIZE).contains(&start))
            .ok_or(DeviceError::Request("page number outside RAM"))?;
        let mut end = start;
        let length = rest
            .iter()
            .take_while(|&&frame| {
                // A number that is listed twice stays in its run.
                let adjacent = frame <= end && frame < end_of(region) / PAGE_SIZE;
                if adjacent {
                    end = frame + 1;
                }
                adjacent
            })
            .count();
        each(start..end)?;
        rest = &rest[length..];
    }
    Ok(())
}

fn end_of(region: &RamRegion) -> u64 {
    region.guest_address + region.bytes
}
