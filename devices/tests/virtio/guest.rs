//! A driver in a test: what a guest does with a virtio-mmio device, well behaved unless told otherwise.

use std::sync::{Arc, Mutex};

use cistern_devices::virtio::device::VirtioDevice;
use cistern_devices::virtio::mmio::MmioTransport;
use cistern_memory::GuestRam;
use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// Two pieces of RAM with a hole between them. Neither is a multiple of 2 MiB, so the host's mapping goes on behind each
/// of them, out of the guest's reach: see [`Guest::assert_nothing_outside`].
pub const RAM: [std::ops::Range<u64>; 2] = [0..1 << 20, 4 << 20..5 << 20];
/// Where buffers may go: below are the rings.
pub const BUFFERS: u64 = 0x4_0000;
/// Turns of the event loop after which a device that still has work is taken for one that never ends.
const TURNS_MAX: usize = 10_000;

/// One queue from the driver's side.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    pub size: u16,
    pub table: u64,
    pub available: u64,
    pub used: u64,
    pub next_descriptor: u16,
    pub available_index: u16,
    pub kicked_index: u16,
    pub used_index: u16,
}

impl Ring {
    /// From the table to behind the used ring, for up to 1024 descriptors.
    pub const BYTES: u64 = 0x8000;

    pub fn new(number: usize, size: u16) -> Self {
        let table = 0x1000 + number as u64 * Self::BYTES;
        Self {
            size,
            table,
            available: table + 0x4000,
            used: table + 0x5000,
            next_descriptor: 0,
            available_index: 0,
            kicked_index: 0,
            used_index: 0,
        }
    }
}

/// A piece of guest RAM in a request.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub bytes: u32,
    pub flags: u16,
}

pub fn readable(address: u64, bytes: u32) -> Buffer {
    Buffer { address, bytes, flags: 0 }
}

pub fn writable(address: u64, bytes: u32) -> Buffer {
    Buffer { address, bytes, flags: WRITE }
}

pub struct Guest {
    pub ram: Arc<GuestRam>,
    pub transport: Arc<MmioTransport>,
    pub reports: Arc<Mutex<Vec<String>>>,
    pub rings: Vec<Ring>,
    pub features: u64,
    events: EventManager<Arc<MmioTransport>>,
}

impl Guest {
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let ram = GuestRam::new(&RAM).unwrap();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&reports);
        let report = Box::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
        let transport = Arc::new(MmioTransport::new(device, Arc::clone(&ram), report).unwrap());
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(Arc::clone(&transport));
        Self { ram, transport, reports, rings: Vec::new(), features: 0, events }
    }

    pub fn read(&self, register: u32) -> u32 {
        let mut word = [0xaa; 4];
        self.transport.read(register.into(), &mut word);
        u32::from_le_bytes(word)
    }

    pub fn write(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_STATUS)
    }

    pub fn config(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0xaa; bytes];
        self.transport.read(u64::from(reg::VIRTIO_MMIO_CONFIG) + offset, &mut data);
        data
    }

    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    pub fn reset(&mut self) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        self.rings.clear();
    }

    /// Negotiates; true when the device agreed.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.features = features;
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// Describes a queue to the device and enables it.
    pub fn enable(&mut self, number: usize, ring: Ring) {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, number as u32);
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, ring.size.into());
        for (register, address) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, ring.table),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.available),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, ring.used),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub fn driver_ok(&self) {
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Everything a driver does up to DRIVER_OK, on empty rings of this size.
    pub fn start_sized(&mut self, features: u64, size: u16) {
        self.reset();
        assert!(self.negotiate(features | VERSION_1), "features refused");
        for number in 0.. {
            self.write(reg::VIRTIO_MMIO_QUEUE_SEL, number);
            let size = (self.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX) as u16).min(size);
            if size == 0 {
                break;
            }
            let ring = Ring::new(number as usize, size);
            self.put(ring.table, &[0; Ring::BYTES as usize]);
            self.enable(number as usize, ring);
            self.rings.push(ring);
        }
        self.driver_ok();
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn start(&mut self, features: u64) {
        self.start_sized(features, 256);
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.ram.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    pub fn put16(&self, address: u64, value: u16) {
        self.put(address, &value.to_le_bytes());
    }

    pub fn get16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address, 2).try_into().unwrap())
    }

    pub fn put_descriptor(&self, table: u64, index: u16, buffer: Buffer, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&buffer.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available without telling the device. Descriptors are taken round robin: a test that has more in
    /// flight than the queue holds would overwrite its own.
    pub fn submit(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let ring = self.rings[queue];
        let slot = |position: usize| (ring.next_descriptor + position as u16) % ring.size;
        for (position, buffer) in buffers.iter().enumerate() {
            let more = if position + 1 < buffers.len() { NEXT } else { 0 };
            let chained = Buffer { flags: buffer.flags | more, ..*buffer };
            self.put_descriptor(ring.table, slot(position), chained, slot(position + 1));
        }
        self.rings[queue].next_descriptor = slot(buffers.len());
        self.make_available(queue, slot(0));
        slot(0)
    }

    pub fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let element = ring.available + 4 + 2 * u64::from(ring.available_index % ring.size);
        ring.available_index = ring.available_index.wrapping_add(1);
        let (index_address, index) = (ring.available + 2, ring.available_index);
        self.put16(element, head);
        self.put16(index_address, index);
    }

    /// Tells the device about new chains, if it wants to know: a kick that the device did not ask for is not given, so
    /// that a test sees what a device forgets to ask for.
    pub fn kick(&mut self, queue: usize) {
        let ring = &mut self.rings[queue];
        let (old, new) = (ring.kicked_index, ring.available_index);
        ring.kicked_index = new;
        let ring = *ring;
        let wanted = if self.features & EVENT_IDX != 0 {
            let event = self.get16(ring.used + 4 + 8 * u64::from(ring.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.get16(ring.used) & 1 == 0
        };
        if wanted {
            self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        }
    }

    /// One turn of the event loop: each descriptor that is ready has one event.
    pub fn turn(&mut self) {
        self.events.run_with_timeout(0).unwrap();
    }

    /// Lets the event loop run until there is nothing left to do.
    pub fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("{} does not come to rest", self.transport.name());
    }

    /// Lets the event loop run until this many chains were handed back: what the host sends may take its time.
    pub fn wait_used(&mut self, queue: usize, count: usize) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        for _ in 0..TURNS_MAX {
            used.extend(self.take_used(queue));
            if used.len() >= count {
                return used;
            }
            self.events.run_with_timeout(1).unwrap();
        }
        panic!("{} of {count} chains handed back, error: {:?}", used.len(), self.transport.last_error());
    }

    /// The chains handed back since the last call: head and bytes written. Asks to be interrupted at the next one.
    pub fn take_used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let ring = self.rings[queue];
        let index = self.get16(ring.used + 2);
        let mut used = Vec::new();
        let mut position = ring.used_index;
        while position != index {
            let element = self.get(ring.used + 4 + 8 * u64::from(position % ring.size), 8);
            let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
            used.push((word(0) as u16, word(4)));
            position = position.wrapping_add(1);
        }
        self.rings[queue].used_index = index;
        self.put16(ring.available + 4 + 2 * u64::from(ring.size), index);
        used
    }

    /// One request from start to end; what the device wrote, in bytes.
    pub fn request(&mut self, queue: usize, buffers: &[Buffer]) -> u32 {
        let head = self.submit(queue, buffers);
        self.kick(queue);
        self.settle();
        let used = self.take_used(queue);
        assert_eq!(used.len(), 1, "one answer expected, error: {:?}", self.transport.last_error());
        assert_eq!(used[0].0, head);
        used[0].1
    }

    /// How often the interrupt line was raised since the last call.
    pub fn interrupts(&self) -> u64 {
        self.transport.interrupt().line().read().unwrap_or(0)
    }

    /// Fails when anything was written to the host's mapping behind the guest's RAM.
    pub fn assert_nothing_outside(&self) {
        for region in self.ram.regions() {
            let end = region.host_address + region.bytes;
            let bytes = (end.next_multiple_of(2 << 20) - end) as usize;
            assert!(bytes > 0);
            // SAFETY: GuestRam maps each region up to the next 2 MiB border, and nobody else uses what is behind it.
            let behind = unsafe { std::slice::from_raw_parts(end as *const u64, bytes / 8) };
            assert!(behind.iter().all(|word| *word == 0), "written outside guest RAM");
        }
    }
}
