//! The driver side of virtio-mmio and split virtqueues (virtio 1.2, sections 2.7 and 4.2). A queue has one request at a
//! time.

use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, fence};

use cistern_probe::cmdline::MmioDevice;

use crate::cpu::{read_register, write_register};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const MODERN: u32 = 2;

/// Register offsets.
mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub const QUEUE_AVAILABLE: u64 = 0x090;
    pub const QUEUE_USED: u64 = 0x0a0;
    pub const CONFIGURATION: u64 = 0x100;
}

/// Bits of the device status.
mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
}

/// The interrupt says that the device configuration changed.
pub const CONFIGURATION_CHANGED: u32 = 2;

const FEATURE_VERSION_1: u64 = 1 << 32;

/// A device's registers.
#[derive(Clone, Copy)]
pub struct Registers {
    base: u64,
}

impl Registers {
    /// The registers of a device, if it is a modern one of this kind. They must be mapped.
    pub fn of(device: &MmioDevice, device_id: u32) -> Option<Self> {
        let registers = Self { base: device.base };
        let is = |register, value| registers.read(register) == value;
        (is(register::MAGIC, MAGIC) && is(register::VERSION, MODERN) && is(register::DEVICE_ID, device_id))
            .then_some(registers)
    }

    fn read(&self, register: u64) -> u32 {
        // SAFETY: a mapped device, by the contract of `of`; reading has no effect on memory.
        unsafe { read_register(self.base + register) }
    }

    fn write(&self, register: u64, value: u32) {
        // SAFETY: as above; the device is told only about memory that is its to use.
        unsafe { write_register(self.base + register, value) };
    }

    fn write_address(&self, register: u64, address: u64) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    /// Resets the device and agrees on features: version 1 and those of `wanted` it offers. Answers what it offers
    /// and what was agreed; `None` if the device does not agree.
    pub fn negotiate(&self, wanted: u64) -> Option<(u64, u64)> {
        self.write(register::STATUS, 0);
        self.write(register::STATUS, status::ACKNOWLEDGE);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let offered_word = |select| {
            self.write(register::DEVICE_FEATURES_SELECT, select);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        let offered = offered_word(0) | offered_word(1) << 32;
        let agreed = offered & (wanted | FEATURE_VERSION_1);
        for select in [0, 1] {
            self.write(register::DRIVER_FEATURES_SELECT, select);
            self.write(register::DRIVER_FEATURES, (agreed >> (32 * select)) as u32);
        }
        let status = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(register::STATUS, status);
        let complete = agreed & FEATURE_VERSION_1 != 0 && self.read(register::STATUS) & status::FEATURES_OK != 0;
        complete.then_some((offered, agreed))
    }

    /// Lets the device go, after its queues were made.
    pub fn start(&self) {
        let status = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.write(register::STATUS, status);
    }

    /// Takes the reasons the device interrupted for.
    pub fn take_interrupts(&self) -> u32 {
        let reasons = self.read(register::INTERRUPT_STATUS);
        if reasons != 0 {
            self.write(register::INTERRUPT_ACKNOWLEDGE, reasons);
        }
        reasons
    }

    /// Reads a 32-bit field of the device's configuration.
    pub fn configuration(&self, offset: u64) -> u32 {
        self.read(register::CONFIGURATION + offset)
    }

    /// Writes a 32-bit field of the device's configuration.
    pub fn set_configuration(&self, offset: u64, value: u32) {
        self.write(register::CONFIGURATION + offset, value);
    }
}

/// Most descriptors a queue uses.
pub const QUEUE_SIZE: usize = 16;

const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_DEVICE_WRITES: u16 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
struct Available {
    flags: u16,
    index: u16,
    ring: [u16; QUEUE_SIZE],
}

#[repr(C)]
struct Used {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; QUEUE_SIZE],
}

/// What a queue shares with its device.
#[repr(C, align(4096))]
pub struct QueueMemory {
    descriptors: UnsafeCell<[Descriptor; QUEUE_SIZE]>,
    available: UnsafeCell<Available>,
    used: UnsafeCell<Used>,
}

// SAFETY: used by the boot processor alone, through the one `Queue` made of it.
unsafe impl Sync for QueueMemory {}

impl QueueMemory {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            descriptors: UnsafeCell::new([Descriptor { address: 0, bytes: 0, flags: 0, next: 0 }; QUEUE_SIZE]),
            available: UnsafeCell::new(Available { flags: 0, index: 0, ring: [0; QUEUE_SIZE] }),
            used: UnsafeCell::new(Used { flags: 0, index: 0, ring: [[0; 2]; QUEUE_SIZE] }),
        }
    }
}

/// A piece of memory in a request.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length.
    pub bytes: u32,
    /// Whether the device may write there.
    pub device_writes: bool,
}

/// A virtqueue with at most one request in it.
pub struct Queue {
    registers: Registers,
    number: u32,
    size: u16,
    memory: &'static QueueMemory,
    /// Requests made so far, as the ring counts.
    made: u16,
}

impl Queue {
    /// Gives the device its queue `number`; `None` if it has none. Each memory is used for one queue only.
    pub fn new(registers: Registers, number: u32, memory: &'static QueueMemory) -> Option<Self> {
        registers.write(register::QUEUE_SELECT, number);
        let max = registers.read(register::QUEUE_SIZE_MAX).min(QUEUE_SIZE as u32);
        let size = 1u16 << max.checked_ilog2()?;
        registers.write(register::QUEUE_SIZE, size.into());
        registers.write_address(register::QUEUE_DESCRIPTORS, memory.descriptors.get() as u64);
        registers.write_address(register::QUEUE_AVAILABLE, memory.available.get() as u64);
        registers.write_address(register::QUEUE_USED, memory.used.get() as u64);
        registers.write(register::QUEUE_READY, 1);
        Some(Self { registers, number, size, memory, made: 0 })
    }

    /// Most buffers a request may have.
    pub const fn size(&self) -> usize {
        self.size as usize
    }

    /// Whether the device has answered everything.
    pub fn is_done(&self) -> bool {
        // SAFETY: ours to read at any time; volatile because the device writes it.
        let done = unsafe { (&raw const (*self.memory.used.get()).index).read_volatile() } == self.made;
        fence(Ordering::Acquire);
        done
    }

    /// Makes a request of at most [`Queue::size`] buffers, at least one, after the last was done.
    pub fn request(&mut self, buffers: &[Buffer]) {
        for (at, buffer) in buffers.iter().enumerate() {
            let next = if at + 1 < buffers.len() { DESCRIPTOR_NEXT } else { 0 };
            let flags = next | if buffer.device_writes { DESCRIPTOR_DEVICE_WRITES } else { 0 };
            let descriptor = Descriptor { address: buffer.address, bytes: buffer.bytes, flags, next: at as u16 + 1 };
            // SAFETY: the device is done with all descriptors; `at` is below the queue's size.
            unsafe { (*self.memory.descriptors.get())[at] = descriptor };
        }
        let available = self.memory.available.get();
        // SAFETY: the driver's to write; every request starts at descriptor 0, as all ring entries have it.
        unsafe {
            fence(Ordering::Release);
            self.made = self.made.wrapping_add(1);
            (&raw mut (*available).index).write_volatile(self.made);
        }
        fence(Ordering::SeqCst);
        self.registers.write(register::QUEUE_NOTIFY, self.number);
    }
}
