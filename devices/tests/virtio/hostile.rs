//! A hostile driver: random registers and random chains. The device may break; nothing else may.
//!
//! A million steps a device where it is built for release, a quick count else; `HOSTILE_STEPS` says otherwise, and
//! `HOSTILE_SEED` repeats a run: the seed is printed when one fails.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cistern_devices::virtio::balloon::Balloon;
use cistern_devices::virtio::block::Block;
use cistern_devices::virtio::device::VirtioDevice;
use cistern_devices::virtio::net::Net;
use cistern_devices::virtio::rng::Rng;
use cistern_memory::Balloon as _;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_mmio as reg;

use crate::guest::{
    BUFFERS, Buffer, DRIVER_OK, EVENT_IDX, Guest, INDIRECT, NEEDS_RESET, NEXT, RAM, Ring, VERSION_1, WRITE, readable,
    writable,
};
use crate::ledger::Ledger;
use crate::network::{self, HostEnd};

/// Of so many pins one is refused.
const REFUSE_EVERY: u64 = 50;

/// Steps between two checks that the device still serves a good driver.
const CHECK_EVERY: u64 = 1000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: not a number")))
}

/// SplitMix64: a few lines, and the same numbers for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Mostly RAM, often its edges, sometimes anything.
    fn address(&mut self) -> u64 {
        match self.below(20) {
            0 => self.next(),
            1 => u64::MAX - self.below(64),
            2 => self.pick(&[RAM[0].end, RAM[1].start, RAM[1].end, 0]).wrapping_add(self.below(64)).wrapping_sub(32),
            3..6 => RAM[1].start + self.below(RAM[1].end - RAM[1].start),
            _ => BUFFERS + self.below(RAM[0].end - BUFFERS),
        }
    }

    fn bytes(&mut self) -> u32 {
        match self.below(40) {
            0 => self.next() as u32,
            1 => u32::MAX - self.below(16) as u32,
            2 => self.below(0x10_0000) as u32,
            3..10 => self.below(64) as u32,
            10..20 => 16,
            _ => 512 * self.below(5) as u32 + self.pick(&[0, 0, 0, 1]),
        }
    }

    fn word(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(4) as u32,
            1 => self.below(1 << 12) as u32,
            2 => 1 << self.below(32),
            _ => self.next() as u32,
        }
    }

    fn buffer(&mut self) -> Buffer {
        let flags = match self.below(60) {
            0 => self.next() as u16,
            1 => INDIRECT,
            2 => INDIRECT | NEXT,
            _ => self.pick(&[0, WRITE]),
        };
        Buffer { address: self.address(), bytes: self.bytes(), flags }
    }
}

/// One device under attack.
struct Attack<'a> {
    guest: Guest,
    random: Random,
    /// What a driver of the device might write at the start of a request on a queue.
    headers: &'a dyn Fn(&mut Random, usize) -> Vec<u8>,
    /// Chains handed back, which tells how far the attack gets.
    answers: u64,
}

impl Attack<'_> {
    fn step(&mut self) {
        // A device that is broken or not set up has little to attack: bring it back soon.
        if self.guest.status() & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK && self.random.chance(40) {
            self.handshake();
        }
        match self.random.below(100) {
            0..25 => self.registers(),
            25..28 => self.handshake(),
            28..31 => self.scribble(),
            31..92 => self.plausible_chain(),
            _ => self.wild_chain(),
        }
        if self.random.chance(60) {
            self.guest.settle();
            self.count_answers();
        }
    }

    fn count_answers(&mut self) {
        for number in 0..self.guest.rings.len() {
            let ring = self.guest.rings[number];
            let index = self.guest.get16(ring.used + 2);
            // More than the ring holds is a scribble of our own.
            let answers = index.wrapping_sub(ring.used_index);
            if answers <= ring.size {
                self.answers += u64::from(answers);
            }
            self.guest.rings[number].used_index = index;
        }
    }

    /// Any access anywhere in the register block.
    fn registers(&mut self) {
        let offset = match self.random.below(10) {
            0 => self.random.next(),
            1 => self.random.below(0x1000),
            2..4 => u64::from(reg::VIRTIO_MMIO_CONFIG) + self.random.below(0x50),
            _ => self.random.below(0x40) * 4,
        };
        let width = self.random.pick(&[1, 2, 4, 4, 4, 4, 4, 8, 0, 3, 16]);
        let value = if self.random.chance(30) { self.random.address() } else { self.random.word().into() };
        let mut data = [value.to_le_bytes(), self.random.next().to_le_bytes()].concat();
        data.truncate(width);
        if self.random.chance(40) {
            self.guest.transport.read(offset, &mut data);
        } else {
            self.guest.transport.write(offset, &data);
        }
    }

    /// A handshake that is right more often than not, with any rings.
    fn handshake(&mut self) {
        self.guest.reset();
        let offered = self.guest.offered();
        let features =
            if self.random.chance(90) { offered & self.random.next() | VERSION_1 } else { self.random.next() };
        self.guest.negotiate(features);
        for number in 0..4 {
            self.guest.write(reg::VIRTIO_MMIO_QUEUE_SEL, number as u32);
            let size_max = self.guest.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX) as u16;
            if size_max == 0 {
                break;
            }
            let mut ring = Ring::new(number, self.random.pick(&[size_max, 64, 16, 4, 1]).min(size_max));
            self.guest.put(ring.table, &[0; Ring::BYTES as usize]);
            self.guest.rings.push(ring);
            if self.random.chance(3) {
                let address = self.random.address() & !15;
                *self.random.pick(&[0, 1, 2]).into_ring_address(&mut ring) = address;
            }
            if self.random.chance(2) {
                ring.size = self.random.next() as u16;
            }
            if self.random.chance(97) {
                self.guest.enable(number, ring);
            }
        }
        self.guest.driver_ok();
    }

    /// Ring indices and descriptors changed under the device's feet.
    fn scribble(&mut self) {
        let address = 0x1000 + self.random.below(2 * Ring::BYTES);
        let value = self.random.next();
        self.guest.put(address & !7, &value.to_le_bytes());
        self.kick();
    }

    /// What a driver might send: a header the device knows, then buffers in the right order, mostly.
    fn plausible_chain(&mut self) {
        let Some(queue) = self.queue() else { return };
        let header = (self.headers)(&mut self.random, queue);
        let at = BUFFERS + self.random.below(0x1000);
        self.guest.put(at, &header);
        let mut buffers = vec![readable(at, header.len() as u32)];
        for _ in 0..self.random.below(5) {
            let address = RAM[1].start + self.random.below(0x8_0000);
            let bytes = self.random.pick(&[0, 1, 20, 512, 512, 1024, 1526, 4096, 0x1_0000]);
            let flags = if header.is_empty() { WRITE } else { self.random.pick(&[0, WRITE]) };
            buffers.push(Buffer { address, bytes, flags });
        }
        if header.is_empty() {
            buffers.remove(0);
        }
        buffers.sort_by_key(|buffer| buffer.flags);
        // A status byte, or a receive buffer.
        let bytes = if header.is_empty() { 1526 } else { 1 };
        buffers.push(writable(RAM[1].start + self.random.below(0x8_0000), bytes));
        if self.random.chance(4) {
            buffers.pop();
        }
        if !buffers.is_empty() {
            self.guest.submit(queue, &buffers);
        }
        self.kick();
    }

    /// Descriptors of any content, linked in any way.
    fn wild_chain(&mut self) {
        let Some(queue) = self.queue() else { return };
        let ring = self.guest.rings[queue];
        let table = if self.random.chance(80) { ring.table } else { BUFFERS & !15 };
        for _ in 0..=self.random.below(6) {
            let mut buffer = self.random.buffer();
            let index = self.random.below(ring.size.into()) as u16;
            let next = if self.random.chance(95) { self.random.below(ring.size.into()) } else { self.random.next() };
            if self.random.chance(50) {
                buffer.flags |= NEXT;
            }
            if buffer.flags & INDIRECT != 0 && self.random.chance(80) {
                buffer.address = BUFFERS & !15;
                buffer.bytes = 16 * self.random.below(20) as u32;
            }
            self.guest.put_descriptor(table, index, buffer, next as u16);
        }
        let head =
            if self.random.chance(98) { self.random.below(ring.size.into()) as u16 } else { self.random.next() as u16 };
        self.guest.make_available(queue, head);
        self.kick();
    }

    fn queue(&mut self) -> Option<usize> {
        let count = self.guest.rings.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn kick(&mut self) {
        let queue = if self.random.chance(95) { self.random.below(3) as u32 } else { self.random.next() as u32 };
        self.guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
}

trait RingAddress {
    fn into_ring_address(self, ring: &mut Ring) -> &mut u64;
}

impl RingAddress for usize {
    fn into_ring_address(self, ring: &mut Ring) -> &mut u64 {
        match self {
            0 => &mut ring.table,
            1 => &mut ring.available,
            _ => &mut ring.used,
        }
    }
}

/// Attacks a device, under a pager that refuses some of its pins; every now and then resets it and has `serve` check that
/// it still works for a good driver.
fn attack(
    device: Box<dyn VirtioDevice>,
    headers: &dyn Fn(&mut Random, usize) -> Vec<u8>,
    mut serve: impl FnMut(&mut Guest),
) {
    let steps = setting("HOSTILE_STEPS", if cfg!(debug_assertions) { 20_000 } else { 1_000_000 });
    let seed = setting("HOSTILE_SEED", 1);
    let guest = Guest::new(device);
    let ledger = Ledger::attach(&guest);
    let name = guest.transport.name().to_owned();
    let watched = Watchdog::new(format!("{name}: hangs with HOSTILE_SEED={seed}"));
    println!("{name}: to repeat: HOSTILE_SEED={seed} HOSTILE_STEPS={steps}");

    let mut attack = Attack { guest, random: Random(seed), headers, answers: 0 };
    let mut breaks_seen = 0;
    ledger.refuse_every(REFUSE_EVERY);
    for step in 1..=steps {
        attack.step();
        watched.progress.fetch_add(1, Ordering::Relaxed);
        if step % CHECK_EVERY == 0 || step == steps {
            attack.guest.settle();
            attack.guest.assert_nothing_outside();
            if attack.guest.transport.is_broken() {
                breaks_seen += 1;
            }
            attack.guest.reset();
            assert!(!attack.guest.transport.is_broken());
            ledger.refuse_every(0);
            serve(&mut attack.guest);
            ledger.refuse_every(REFUSE_EVERY);
            ledger.settled();
            assert!(!attack.guest.transport.is_broken(), "step {step}: broken by a good driver");
        }
    }
    assert!(attack.guest.transport.breaks() > 0, "no attack was noticed");
    assert!(breaks_seen > 0, "the broken flag was never seen");
    assert!(attack.guest.reports.lock().unwrap().len() <= 8, "unbounded reports");
    let (breaks, answers) = (attack.guest.transport.breaks(), attack.answers);
    println!("{name}: {steps} steps, broken {breaks} times, {answers} chains answered");
    assert!(answers > steps / 6, "the attack did not get far into the device");
}

/// Ends the process when nothing moves for a minute: a loop without end is a failure, not a wait.
struct Watchdog {
    progress: Arc<AtomicU64>,
}

impl Watchdog {
    fn new(message: String) -> Self {
        let progress = Arc::new(AtomicU64::new(0));
        let watched = Arc::downgrade(&progress);
        std::thread::spawn(move || {
            let mut last = None;
            while let Some(progress) = watched.upgrade() {
                let now = progress.load(Ordering::Relaxed);
                drop(progress);
                if last.replace(now) == Some(now) {
                    eprintln!("{message}, after step {now}");
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_secs(60));
            }
        });
        Self { progress }
    }
}

#[test]
fn rng() {
    attack(Box::new(Rng), &|_, _| Vec::new(), |guest| {
        guest.start(EVENT_IDX);
        assert_eq!(guest.request(0, &[writable(BUFFERS, 100)]), 100);
    });
}

#[test]
fn balloon() {
    let balloon = Balloon::new(true).unwrap();
    let handle = balloon.handle();
    let headers = |random: &mut Random, _: usize| {
        let mut numbers = Vec::new();
        for _ in 0..random.below(40) {
            // Page numbers for the first two queues; for statistics, tags and values of no meaning.
            let page = if random.chance(99) { 0x80 + random.below(0x80) as u32 } else { random.next() as u32 };
            numbers.extend(page.to_le_bytes());
        }
        numbers
    };
    attack(Box::new(balloon), &headers, |guest| {
        guest.start(EVENT_IDX | 1 << 1 | 1 << 5);
        assert_eq!(handle.inflated_bytes(), 0, "a reset empties the balloon");
        for (queue, pages) in [(0, 1), (1, 0)] {
            guest.put(BUFFERS, &0x90_u32.to_le_bytes());
            assert_eq!(guest.request(queue, &[readable(BUFFERS, 4)]), 0);
            assert_eq!(handle.inflated_bytes(), pages * 4096);
        }
    });
}

#[test]
fn block() {
    attack_block(|path| Block::open(path, false).unwrap());
}

#[test]
fn block_direct() {
    attack_block(|path| Block::open_direct(path, false).unwrap());
}

fn attack_block(open: impl FnOnce(&Path) -> Block) {
    // In memory: this is about the device, not about a million flushes of a real disk.
    let file = NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().set_len(64 << 10).unwrap();
    let headers = |random: &mut Random, _: usize| {
        let kind = random.pick(&[0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 14, 99]);
        let sector = if random.chance(90) { random.below(130) } else { random.next() };
        let mut header = [&u32::to_le_bytes(kind)[..], &[0; 4], &sector.to_le_bytes()].concat();
        if matches!(kind, 11 | 13) {
            header.extend(random.below(130).to_le_bytes());
            header.extend((random.below(130) as u32).to_le_bytes());
            header.extend(u32::to_le_bytes(random.pick(&[0, 0, 1, 2])));
        }
        header
    };
    attack(Box::new(open(file.path())), &headers, |guest| {
        guest.start(EVENT_IDX);
        for (kind, buffer) in [(1_u32, readable(BUFFERS + 0x1000, 512)), (0, writable(BUFFERS + 0x2000, 512))] {
            guest.put(BUFFERS, &[&kind.to_le_bytes()[..], &[0; 12], &[0xff]].concat());
            guest.put(BUFFERS + 0x1000, &[0x5a; 512]);
            guest.put(BUFFERS + 0x2000, &[0; 512]);
            guest.request(
                0,
                &[readable(BUFFERS, 16), buffer, writable(BUFFERS + 16, 1)].map(|mut buffer| {
                    buffer.flags &= WRITE;
                    buffer
                }),
            );
            assert_eq!(guest.get(BUFFERS + 16, 1), [0]);
        }
        assert_eq!(guest.get(BUFFERS + 0x2000, 512), [0x5a; 512]);
    });
    assert_eq!(file.as_file().metadata().unwrap().len(), 64 << 10, "written behind the end of the disk");
}

#[test]
fn net() {
    network::isolated(|| {
        network::make_tap("tap0");
        let net = Net::open("tap0", None).unwrap();
        let host = HostEnd::up("tap0");
        let headers = |random: &mut Random, queue: usize| {
            if queue == 0 && random.chance(98) {
                return Vec::new();
            }
            let mut header = vec![0; 12];
            if random.chance(30) {
                header[0] = random.word() as u8;
                header[1] = random.pick(&[0, 1, 3, 4, 5, 0x81]);
                header[2..10].copy_from_slice(&random.next().to_le_bytes());
            }
            header.extend(network::frame(random.word(), 14 + random.below(100) as usize));
            header.truncate(if random.chance(5) { random.pick(&[0, 11, 12, 13]) } else { 200 });
            header
        };
        // Frames for the guest keep coming while it is hostile, and the queue of the tap is emptied when it is not.
        let mut number = 0;
        for _ in 0..100 {
            host.send([0; 10], &network::frame(0, 1000));
        }
        attack(Box::new(net), &headers, |guest| {
            number += 1;
            guest.start(EVENT_IDX);
            // What the attack sent may have filled the socket.
            while !host.is_silent() {}
            let mut header_and_frame = vec![0; 12];
            header_and_frame.extend(network::frame(number, 100));
            guest.put(BUFFERS, &header_and_frame);
            guest.request(1, &[readable(BUFFERS, 112)]);
            while host.receive().1 != network::frame(number, 100) {}

            host.send([0; 10], &network::frame(number, 200));
            loop {
                guest.submit(0, &[writable(BUFFERS, 1526)]);
                guest.kick(0);
                guest.wait_used(0, 1);
                if guest.get(BUFFERS + 12, 200) == network::frame(number, 200) {
                    break;
                }
            }
            for _ in 0..100 {
                host.send([0; 10], &network::frame(0, 1000));
            }
        });
    });
}
