//! A guest that sends anything: the device answers, or is broken until the guest resets it, and never grows.
#![allow(clippy::unwrap_used)]

#[path = "common/ring.rs"]
mod ring;
#[path = "common/vsock_driver.rs"]
mod vsock_driver;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Mutex, PoisonError};

use cistern_devices::virtio::vsock::packet::{Header, op};
use tempfile::TempDir;
use vsock_driver::{GUEST_CID, RAM_BYTES, RX, Stream, TX, VsockDriver, packet};

/// Packets the guest sends; fewer without optimisation, where each takes ten times as long.
const PACKETS: usize = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

/// As for the other devices, `HOSTILE_STEPS` says how far the attack goes.
fn packets() -> usize {
    match std::env::var("HOSTILE_STEPS") {
        Ok(text) => text.parse().expect("HOSTILE_STEPS is a number"),
        Err(_) => PACKETS,
    }
}
/// Processes of the host that talk to the guest at a time.
const PROCESSES: usize = 40;

/// The tests here count what the process holds: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// Mostly close to what makes sense, so that it gets far.
    fn header(&mut self, data: u64, host_ports: &[u32]) -> Header {
        let any = self.next();
        Header {
            src_cid: if self.one_in(50) { any } else { GUEST_CID },
            dst_cid: if self.one_in(50) { any } else { 2 },
            src_port: self.below(6) as u32,
            dst_port: self.pick(host_ports),
            len: if self.one_in(3000) { any as u32 } else { data as u32 },
            socket_type: if self.one_in(50) { any as u16 } else { 1 },
            op: if self.one_in(50) { any as u16 } else { self.pick(&[1, 1, 2, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7]) },
            flags: if self.one_in(10) { any as u32 } else { self.below(4) as u32 },
            buf_alloc: if self.one_in(10) { any as u32 } else { 1 << 18 },
            fwd_cnt: if self.one_in(10) { any as u32 } else { self.below(10_000) as u32 },
        }
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Memory of this process that is not the guest's, roughly.
fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn random_packets_are_harmless() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = TempDir::new().unwrap();
    let uds = directory.path().join("v.sock");
    let service = UnixListener::bind(directory.path().join("v.sock_80")).unwrap();
    service.set_nonblocking(true).unwrap();
    let mut driver = VsockDriver::started(&uds);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut processes: Vec<UnixStream> = Vec::new();
    // What a port of a process's may be: the first ones given out.
    let host_ports: Vec<u32> = (0..4).map(|_| 80).chain([81]).chain((0..20).map(|port| (1 << 30) + port)).collect();
    let noise: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
    let (mut sent, mut breaks, mut answers, mut accepted) = (0, 0, 0, 0);
    let resident_before = resident_bytes();

    while sent < packets() {
        for _ in 0..random.below(32) {
            let data = if random.one_in(2) { 0 } else { random.below(noise.len() as u64) };
            let header = random.header(data, &host_ports);
            sent += usize::from(driver.try_queue(&header, &noise[..data as usize]));
        }
        if random.one_in(200) {
            // A chain of anything, on any queue.
            let chain: Vec<ring::Buffer> = (0..=random.below(6))
                .map(|_| ring::Buffer {
                    address: random.below(RAM_BYTES + 100),
                    bytes: random.below(70_000) as u32,
                    writable: random.one_in(2),
                })
                .collect();
            let queue = random.below(3) as usize;
            if driver.guest.rings[queue].try_add(&chain).is_some() {
                // The helper does not know this chain: it starts over below.
                driver.guest.kick(queue);
                driver.guest.run();
                breaks += usize::from(driver.guest.is_broken());
                driver.reset();
                driver.start();
                continue;
            }
        }
        driver.guest.kick(TX);
        driver.guest.kick(RX);
        driver.guest.run();
        if driver.guest.is_broken() {
            breaks += 1;
            driver.reset();
            driver.start();
        }
        // Receive buffers are short now and then.
        driver.refill = !random.one_in(4);
        while driver.poll().is_some() {
            answers += 1;
        }
        if let Ok((stream, _)) = service.accept() {
            stream.set_nonblocking(true).unwrap();
            processes.push(stream);
            accepted += 1;
        }
        if random.one_in(10) {
            let mut process = UnixStream::connect(&uds).unwrap();
            process.set_nonblocking(true).unwrap();
            let _ = process.write_all(random.pick(&[&b"CONNECT 3\n"[..], b"CONNECT 4\nmore", b"CONN", b"\xff\n", b""]));
            processes.push(process);
        }
        for process in &mut processes {
            match random.below(12) {
                0 => drop(process.write(&noise[..random.below(4096) as usize])),
                1 | 2 => drop(process.read(&mut [0; 30_000])),
                3 if random.one_in(10) => drop(process.shutdown(Shutdown::Write)),
                4 if random.one_in(10) => drop(process.shutdown(Shutdown::Read)),
                _ => {}
            }
        }
        while processes.len() > PROCESSES {
            let index = random.below(processes.len() as u64) as usize;
            processes.swap_remove(index);
        }
        if random.one_in(500) {
            // Our processes, the connections that the guest keeps to processes that are gone, and what tests hold.
            assert!(descriptors() < 1300, "{} descriptors", descriptors());
        }
    }
    let grown = resident_bytes().saturating_sub(resident_before);
    println!(
        "{sent} packets, {answers} answers, {accepted} accepted, {breaks} times broken, {grown} bytes more resident"
    );
    // 16 MiB of guest RAM, and up to 64 KiB for each connection whose process does not read.
    assert!(grown < 32 << 20, "{grown} bytes");
    assert!(breaks > 0 && answers > packets() / 100 && accepted > 100, "the guest did not get far");

    // And still there.
    drop(processes);
    driver.refill = true;
    driver.reset();
    driver.start();
    let mut process = UnixStream::connect(&uds).unwrap();
    process.write_all(b"CONNECT 3\nhello").unwrap();
    let mut stream = Stream::accept(&mut driver);
    stream.read(&mut driver, 5);
    assert_eq!(stream.received, b"hello");
}

/// Connections that come and go while the guest takes no packets leave nothing behind.
#[test]
fn a_guest_that_takes_nothing_costs_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = TempDir::new().unwrap();
    let uds = directory.path().join("v.sock");
    let service = UnixListener::bind(directory.path().join("v.sock_80")).unwrap();
    let mut driver = VsockDriver::new(&uds);
    // No receive buffers.
    driver.guest.activate();
    let round = |driver: &mut VsockDriver| {
        // A process that gives up, and a request of the guest's that it takes back.
        UnixStream::connect(&uds).unwrap().write_all(b"CONNECT 3\n").unwrap();
        driver.guest.run();
        driver.send(&packet(op::REQUEST, 1, 80), &[]);
        driver.send(&packet(op::RST, 1, 80), &[]);
        service.accept().unwrap();
    };
    (0..1000).for_each(|_| round(&mut driver));
    let (descriptors_before, resident_before) = (descriptors(), resident_bytes());
    (0..20_000).for_each(|_| round(&mut driver));
    assert_eq!(descriptors(), descriptors_before);
    let grown = resident_bytes().saturating_sub(resident_before);
    assert!(grown < 1 << 20, "{grown} bytes");
    // None of them is told of.
    driver.give_rx();
    assert_eq!(driver.poll(), None);
}
