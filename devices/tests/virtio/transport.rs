//! The register block and the life of a device behind it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use cistern_devices::virtio::device::{DeviceError, Driver, VirtioDevice, copy_config};
use cistern_devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY_OFFSET};
use cistern_devices::virtio::rng::Rng;
use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest::{
    ACKNOWLEDGE, BUFFERS, Buffer, DRIVER, DRIVER_OK, EVENT_IDX, FEATURES_OK, Guest, INDIRECT, NEEDS_RESET, NEXT, Ring,
    VERSION_1, WRITE, readable, writable,
};

/// What makes the recorder's host side fail.
const FAIL: u64 = 1000;

/// A device that hands every chain back and writes down what happened to it.
struct Recorder {
    log: Arc<Mutex<Vec<String>>>,
    host: EventFd,
    config: u64,
}

impl VirtioDevice for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }

    fn device_id(&self) -> u32 {
        99
    }

    fn queue_sizes(&self) -> &[u16] {
        &[1024, 16]
    }

    fn features(&self) -> u64 {
        1
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log.lock().unwrap().push(format!("config {offset} {data:?}"));
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let memory = driver.ram.memory();
        let chains = &mut driver.queues[queue];
        let mut count = 0;
        loop {
            while let Some(buffers) = chains.pop_buffers(memory)? {
                chains.add_used(memory, buffers.head_index, 0)?;
                count += 1;
            }
            chains.notify(memory, &driver.interrupt)?;
            if !chains.enable_kicks(memory)? {
                break;
            }
        }
        self.log.lock().unwrap().push(format!("queue {queue}: {count}"));
        Ok(())
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.host.as_raw_fd())
    }

    fn host_event(&mut self, driver: Option<&mut Driver>) -> Result<(), DeviceError> {
        if self.host.read().unwrap_or(0) == FAIL {
            return Err(DeviceError::Host { object: "host side".to_owned(), cause: std::io::ErrorKind::Other.into() });
        }
        self.config += 1;
        let active = driver.is_some();
        if let Some(driver) = driver {
            driver.interrupt.signal_config();
        }
        self.log.lock().unwrap().push(format!("host {active}"));
        Ok(())
    }

    fn reset(&mut self) {
        self.log.lock().unwrap().push("reset".to_owned());
    }
}

/// The device in a guest, its log, and what wakes its host side.
fn recorder() -> (Guest, Arc<Mutex<Vec<String>>>, EventFd) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let host = EventFd::new(EFD_NONBLOCK).unwrap();
    let waker = host.try_clone().unwrap();
    (Guest::new(Box::new(Recorder { log: Arc::clone(&log), host, config: 7 })), log, waker)
}

#[test]
fn a_device_is_called_when_something_happens() {
    let (mut guest, log, host) = recorder();
    let taken = || std::mem::take(&mut *log.lock().unwrap());
    host.write(1).unwrap();
    guest.settle();
    assert_eq!(taken(), ["host false"]);
    guest.start(0);
    guest.settle();
    assert_eq!(taken(), ["reset", "host true", "queue 0: 0", "queue 1: 0"]);
    host.write(1).unwrap();
    guest.settle();
    assert_eq!(taken(), ["host true"]);
    guest.transport.write(0x102, &[1, 2]);
    guest.submit(1, &[writable(BUFFERS, 1)]);
    guest.kick(1);
    guest.settle();
    assert_eq!(taken(), ["config 2 [1, 2]", "queue 1: 1"]);
    // Broken, it hears of nothing until it is reset.
    guest.make_available(1, 99);
    guest.kick(1);
    guest.settle();
    assert!(guest.transport.is_broken());
    host.write(1).unwrap();
    guest.transport.write(0x100, &[1]);
    guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    guest.settle();
    assert_eq!(taken(), [""; 0]);
    guest.start(0);
    guest.settle();
    assert_eq!(taken(), ["reset", "host true", "queue 0: 0", "queue 1: 0"]);
}

#[test]
fn a_device_may_break_before_it_has_a_driver() {
    let (mut guest, _log, host) = recorder();
    host.write(FAIL).unwrap();
    guest.settle();
    assert!(guest.transport.is_broken());
    assert_eq!(guest.transport.last_error().unwrap(), "recorder: host side: other error");
    assert_eq!(guest.interrupts(), 0, "nobody to tell yet");
    assert!(!guest.negotiate(VERSION_1));
    assert_eq!(guest.status(), NEEDS_RESET);
    guest.start(0);
    guest.request(1, &[writable(BUFFERS, 1)]);
}

#[test]
fn a_changed_configuration_has_a_new_generation() {
    let (mut guest, _log, host) = recorder();
    guest.start(0);
    guest.settle();
    let generation = guest.read(reg::VIRTIO_MMIO_CONFIG_GENERATION);
    let config = guest.config(0, 8);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_CONFIG_GENERATION), generation);
    guest.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    host.write(1).unwrap();
    guest.settle();
    assert_ne!(guest.read(reg::VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_ne!(guest.config(0, 8), config);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), reg::VIRTIO_MMIO_INT_CONFIG);
    // Any width at any offset.
    assert_eq!(guest.config(0, 1), [9]);
    assert_eq!(guest.config(0, 3), [9, 0, 0]);
    assert_eq!(guest.config(7, 8), [0; 8]);
    assert_eq!(guest.config(0xef0, 4), [0; 4]);
}

#[test]
fn one_event_has_its_share_of_chains_and_the_next_one_follows() {
    let (mut guest, log, _host) = recorder();
    guest.start_sized(EVENT_IDX, 1024);
    guest.settle();
    log.lock().unwrap().clear();
    for _ in 0..1000 {
        guest.submit(0, &[writable(BUFFERS, 1)]);
    }
    guest.kick(0);
    guest.settle();
    assert_eq!(*log.lock().unwrap(), ["queue 0: 256", "queue 0: 256", "queue 0: 256", "queue 0: 232"]);
    assert_eq!(guest.take_used(0).len(), 1000);
    // The device asks to be kicked again.
    guest.request(0, &[writable(BUFFERS, 1)]);
}

fn rng() -> Guest {
    Guest::new(Box::new(Rng))
}

#[test]
fn identifies_itself() {
    let guest = rng();
    assert_eq!(guest.read(reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(guest.offered(), VERSION_1 | EVENT_IDX | 1 << 28);
    assert_eq!(guest.transport.name(), "rng");
}

#[test]
fn odd_accesses_read_zero_and_change_nothing() {
    let guest = rng();
    for (offset, width) in
        [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0, 0), (0x58, 4), (0xf0, 4), (u64::MAX, 4), (1 << 32, 4)]
    {
        let mut data = vec![0xaa; width];
        guest.transport.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x}, {width} bytes");
    }
    guest.transport.write(reg::VIRTIO_MMIO_STATUS.into(), &[1]);
    guest.transport.write(reg::VIRTIO_MMIO_STATUS.into(), &[1, 0, 0, 0, 0, 0, 0, 0]);
    guest.transport.write(u64::MAX, &[1, 0, 0, 0]);
    assert_eq!(guest.status(), 0);
}

#[test]
fn the_handshake_has_an_order() {
    let guest = rng();
    let status = |value| {
        guest.write(reg::VIRTIO_MMIO_STATUS, value);
        guest.status()
    };
    assert_eq!(status(DRIVER), 0, "DRIVER without ACKNOWLEDGE");
    assert_eq!(status(ACKNOWLEDGE), ACKNOWLEDGE);
    assert_eq!(status(ACKNOWLEDGE | FEATURES_OK), ACKNOWLEDGE, "FEATURES_OK without DRIVER");
    assert_eq!(status(ACKNOWLEDGE | DRIVER), ACKNOWLEDGE | DRIVER);
    assert_eq!(status(ACKNOWLEDGE), ACKNOWLEDGE | DRIVER, "a bit cannot be taken back");
    assert_eq!(status(ACKNOWLEDGE | DRIVER | DRIVER_OK), ACKNOWLEDGE | DRIVER, "DRIVER_OK without FEATURES_OK");
    assert_eq!(status(ACKNOWLEDGE | DRIVER | NEEDS_RESET), ACKNOWLEDGE | DRIVER, "only the device sets NEEDS_RESET");
    assert_eq!(status(0), 0);
}

#[test]
fn features_must_be_offered_and_modern() {
    let mut guest = rng();
    assert!(!guest.negotiate(0), "without VERSION_1");
    guest.reset();
    assert!(!guest.negotiate(VERSION_1 | 1 << 5), "with one that was not offered");
    guest.reset();
    assert!(guest.negotiate(VERSION_1));
    guest.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1 << 5);
    guest.driver_ok();
    assert_eq!(guest.status() & DRIVER_OK, DRIVER_OK, "features are closed after FEATURES_OK");
}

#[test]
fn queues_are_closed_until_features_are_agreed_and_after_the_driver_is_ready() {
    let mut guest = rng();
    guest.enable(0, Ring::new(0, 64));
    assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    guest.start(0);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 0, "queue 1 does not exist");
    guest.write(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    // New addresses are ignored: the old ones still work.
    guest.write(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x8_0000);
    assert_eq!(guest.request(0, &[writable(BUFFERS, 16)]), 16);
    // A queue can be taken away, and not be given back.
    guest.write(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    guest.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    guest.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    guest.submit(0, &[writable(BUFFERS, 16)]);
    guest.kick(0);
    guest.settle();
    assert_eq!(guest.take_used(0), []);
    assert!(!guest.transport.is_broken());
}

#[test]
fn impossible_queues_break_the_device() {
    let good = Ring::new(0, 64);
    for (ring, what) in [
        (Ring { size: 0, ..good }, "size 0"),
        (Ring { size: 63, ..good }, "size not a power of two"),
        (Ring { size: 128, ..good }, "size over the maximum"),
        (Ring { table: 0x1008, ..good }, "table misaligned"),
        (Ring { available: 0x2001, ..good }, "available ring misaligned"),
        (Ring { used: 0x3002, ..good }, "used ring misaligned"),
        (Ring { table: (1 << 20) - 16, ..good }, "table over the end of RAM"),
        (Ring { available: 2 << 20, ..good }, "available ring in the hole"),
        (Ring { used: u64::MAX - 3, ..good }, "used ring at the end of the address space"),
    ] {
        let mut guest = rng();
        assert!(guest.negotiate(VERSION_1));
        guest.enable(0, ring);
        guest.driver_ok();
        assert!(guest.transport.is_broken(), "{what}");
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
        assert_eq!(guest.transport.interrupt().status(), reg::VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(guest.interrupts(), 1);
        guest.start(0);
        assert_eq!(guest.request(0, &[writable(BUFFERS, 16)]), 16, "works after reset: {what}");
    }
}

#[test]
fn malformed_chains_break_the_device_until_reset() {
    type Setup = fn(&mut Guest);
    let cases: &[(&str, Setup)] = &[
        ("buffer in the hole", |guest| _ = guest.submit(0, &[writable(2 << 20, 16)])),
        ("buffer over the end of RAM", |guest| _ = guest.submit(0, &[writable((1 << 20) - 8, 16)])),
        ("buffer over the end of the address space", |guest| _ = guest.submit(0, &[writable(u64::MAX - 8, 16)])),
        ("absurd length", |guest| _ = guest.submit(0, &[writable(BUFFERS, u32::MAX)])),
        ("nothing to write", |guest| _ = guest.submit(0, &[readable(BUFFERS, 16)])),
        ("readable after writable", |guest| _ = guest.submit(0, &[writable(BUFFERS, 16), readable(BUFFERS, 16)])),
        ("loop", |guest| {
            let buffer = Buffer { address: BUFFERS, bytes: 16, flags: WRITE | NEXT };
            guest.put_descriptor(guest.rings[0].table, 5, buffer, 5);
            guest.make_available(0, 5);
        }),
        ("next past the table", |guest| {
            let buffer = Buffer { address: BUFFERS, bytes: 16, flags: WRITE | NEXT };
            guest.put_descriptor(guest.rings[0].table, 5, buffer, 64);
            guest.make_available(0, 5);
        }),
        ("head past the table", |guest| guest.make_available(0, 64)),
        ("index jumps", |guest| guest.put16(guest.rings[0].available + 2, 65)),
        ("indirect table in an indirect table", |guest| {
            let table = Buffer { address: BUFFERS, bytes: 16, flags: INDIRECT };
            guest.put_descriptor(BUFFERS, 0, table, 0);
            guest.put_descriptor(guest.rings[0].table, 0, table, 0);
            guest.make_available(0, 0);
        }),
        ("indirect table outside RAM", |guest| {
            guest.submit(0, &[Buffer { address: 2 << 20, bytes: 16, flags: INDIRECT }]);
        }),
        ("indirect table of an odd length", |guest| {
            guest.submit(0, &[Buffer { address: BUFFERS, bytes: 17, flags: INDIRECT }]);
        }),
        ("too many descriptors", |guest| {
            for index in 0..1025 {
                let buffer = Buffer { address: BUFFERS, bytes: 1, flags: WRITE | if index < 1024 { NEXT } else { 0 } };
                guest.put_descriptor(BUFFERS + 0x1000, index, buffer, index + 1);
            }
            guest.submit(0, &[Buffer { address: BUFFERS + 0x1000, bytes: 1025 * 16, flags: INDIRECT }]);
        }),
    ];
    let mut guest = rng();
    for (number, (what, setup)) in cases.iter().enumerate() {
        guest.start(EVENT_IDX);
        guest.interrupts();
        setup(&mut guest);
        guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        guest.settle();
        assert!(guest.transport.is_broken(), "{what}");
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET, "{what}");
        assert_eq!(guest.interrupts(), 1, "{what}");
        assert_eq!(guest.transport.breaks(), number as u64 + 1);
        assert_eq!(guest.take_used(0), [], "{what}");
        // Nothing works until it is reset.
        guest.submit(0, &[writable(BUFFERS, 16)]);
        guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        guest.settle();
        assert_eq!(guest.take_used(0), [], "{what}");
    }
    guest.start(0);
    assert!(!guest.transport.is_broken());
    assert_eq!(guest.request(0, &[writable(BUFFERS, 16)]), 16);
    // One line a break, and not for ever.
    let reports = guest.reports.lock().unwrap();
    assert_eq!(reports.len(), 8);
    assert_eq!(reports[0], "rng: malformed virtqueue: buffer outside guest memory at 0x200000, 16 bytes");
    assert_eq!(guest.transport.last_error().unwrap(), "rng: malformed virtqueue: descriptor chain too long");
}

#[test]
fn a_whole_indirect_table_is_one_chain() {
    let mut guest = rng();
    guest.start(1 << 28);
    for index in 0..1024 {
        let buffer = Buffer { address: BUFFERS, bytes: 1, flags: WRITE | if index < 1023 { NEXT } else { 0 } };
        guest.put_descriptor(BUFFERS + 0x1000, index, buffer, index + 1);
    }
    assert_eq!(guest.request(0, &[Buffer { address: BUFFERS + 0x1000, bytes: 1024 * 16, flags: INDIRECT }]), 1024);
}

#[test]
fn buffers_put_before_the_driver_was_ready_are_seen() {
    let mut guest = rng();
    assert!(guest.negotiate(VERSION_1 | EVENT_IDX));
    guest.enable(0, Ring::new(0, 64));
    guest.rings.push(Ring::new(0, 64));
    guest.submit(0, &[writable(BUFFERS, 16)]);
    guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    guest.settle();
    assert_eq!(guest.take_used(0), [], "not before DRIVER_OK");
    guest.driver_ok();
    guest.settle();
    assert_eq!(guest.take_used(0), [(0, 16)]);
}

#[test]
fn interrupts_only_when_asked_for() {
    let mut guest = rng();
    guest.start(EVENT_IDX);
    guest.request(0, &[writable(BUFFERS, 16)]);
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), reg::VIRTIO_MMIO_INT_VRING);
    guest.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, reg::VIRTIO_MMIO_INT_VRING);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    // The driver asks again only after the third from now.
    let ring = guest.rings[0];
    guest.put16(ring.available + 4 + 2 * u64::from(ring.size), 3);
    for expected in [0, 0, 1] {
        guest.submit(0, &[writable(BUFFERS, 16)]);
        guest.kick(0);
        guest.settle();
        assert_eq!(guest.interrupts(), expected);
    }
    // A kick with nothing behind it is answered with nothing.
    guest.start(0);
    guest.settle();
    guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    guest.settle();
    assert_eq!(guest.interrupts(), 0);
}

#[test]
fn kicks_arrive_through_eventfd_and_register_alike() {
    assert_eq!(QUEUE_NOTIFY_OFFSET, 0x50);
    let mut guest = rng();
    guest.start(0);
    guest.submit(0, &[writable(BUFFERS, 16)]);
    guest.transport.kicks()[0].write(1).unwrap();
    guest.settle();
    assert_eq!(guest.take_used(0).len(), 1);
    guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    guest.settle();
    assert!(!guest.transport.is_broken());
}

#[test]
fn rings_wrap_around() {
    let mut guest = rng();
    guest.start_sized(EVENT_IDX, 4);
    for _ in 0..0x1_0010 {
        assert_eq!(guest.request(0, &[writable(BUFFERS, 4)]), 4);
    }
}

#[test]
fn vcpus_and_the_event_loop_may_race() {
    let mut guest = rng();
    let transport: Arc<MmioTransport> = Arc::clone(&guest.transport);
    let vcpu = std::thread::spawn(move || {
        let write = |register: u32, value: u32| transport.write(register.into(), &value.to_le_bytes());
        for round in 0..5_000_u32 {
            write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            if round % 7 == 0 {
                write(reg::VIRTIO_MMIO_STATUS, 0);
            }
            write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 3);
            assert_eq!(transport.interrupt().status() & !3, 0);
        }
    });
    let vcpu_done = || vcpu.is_finished();
    while !vcpu_done() {
        if guest.negotiate(VERSION_1) {
            let ring = Ring::new(0, 64);
            guest.enable(0, ring);
            guest.rings = vec![ring];
            guest.driver_ok();
            guest.submit(0, &[writable(BUFFERS, 16)]);
        }
        guest.settle();
        guest.write(reg::VIRTIO_MMIO_STATUS, 0);
    }
    vcpu.join().unwrap();
    guest.start(0);
    assert_eq!(guest.request(0, &[writable(BUFFERS, 16)]), 16);
}
