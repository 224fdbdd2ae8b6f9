//! The driver's side in guest memory: split virtqueues (virtio 1.2, section 2.7) and the virtio-mmio registers, with a
//! real event loop between them and the device.
#![allow(dead_code)] // Each test binary uses its part.

use std::collections::HashMap;
use std::sync::Arc;

use cistern_devices::virtio::device::VirtioDevice;
use cistern_devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY_OFFSET};
use cistern_memory::GuestRam;
use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK,
};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Bytes of guest memory to keep free for one ring of at most 256 entries.
pub const RING_BYTES: u64 = 0x4000;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub bytes: u32,
    pub writable: bool,
}

pub fn readable(address: u64, bytes: u32) -> Buffer {
    Buffer { address, bytes, writable: false }
}

pub fn writable(address: u64, bytes: u32) -> Buffer {
    Buffer { address, bytes, writable: true }
}

/// The driver's side of one ring.
pub struct Ring {
    ram: Arc<GuestRam>,
    base: u64,
    size: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    available: u16,
    used: u16,
}

impl Ring {
    pub fn new(ram: &Arc<GuestRam>, base: u64, size: u16) -> Self {
        Self {
            ram: ram.clone(),
            base,
            size,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            available: 0,
            used: 0,
        }
    }

    pub fn descriptor_table(&self) -> u64 {
        self.base
    }

    pub fn available_ring(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    /// Makes a chain available and returns its head, `None` when the ring is full.
    pub fn try_add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let chain: Vec<u16> = buffers.iter().map(|_| self.free.pop().unwrap()).collect();
        for (position, (&index, buffer)) in chain.iter().zip(buffers).enumerate() {
            let next = chain.get(position + 1).copied();
            let flags = if next.is_some() { NEXT } else { 0 } | if buffer.writable { WRITE } else { 0 };
            let at = self.descriptor_table() + u64::from(index) * 16;
            self.write(at, buffer.address);
            self.write(at + 8, buffer.bytes);
            self.write(at + 12, flags);
            self.write(at + 14, next.unwrap_or(0));
        }
        let head = chain[0];
        self.write(self.available_ring() + 4 + u64::from(self.available % self.size) * 2, head);
        self.available = self.available.wrapping_add(1);
        self.write(self.available_ring() + 2, self.available);
        self.chains.insert(head, chain);
        Some(head)
    }

    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        self.try_add(buffers).expect("ring full")
    }

    /// The next chain the device returned: its head and how much was written.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.ram.memory().read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let at = self.used_ring() + 4 + u64::from(self.used % self.size) * 8;
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.ram.memory().read_obj(GuestAddress(at)).unwrap();
        let written: u32 = self.ram.memory().read_obj(GuestAddress(at + 4)).unwrap();
        let chain = self.chains.remove(&(head as u16)).expect("the device returned a chain it was not given");
        self.free.extend(chain);
        Some((head as u16, written))
    }

    fn write<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.ram.memory().write_obj(value, GuestAddress(address)).unwrap();
    }
}

/// A device behind its transport, in an event loop that runs when told, and the driver's side of it.
pub struct Guest {
    pub transport: Arc<MmioTransport>,
    pub rings: Vec<Ring>,
    pub ram: Arc<GuestRam>,
    events: EventManager<Arc<MmioTransport>>,
    features: u64,
}

impl Guest {
    /// Rings from guest address `rings_at` on; the driver is not active yet.
    pub fn new(device: impl VirtioDevice + 'static, ram: Arc<GuestRam>, rings_at: u64, features: u64) -> Self {
        let rings = (rings_at..)
            .step_by(RING_BYTES as usize)
            .zip(device.queue_sizes())
            .map(|(base, &size)| Ring::new(&ram, base, size))
            .collect();
        let transport = Arc::new(MmioTransport::new(Box::new(device), ram.clone(), Box::new(|_| ())).unwrap());
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(transport.clone());
        Self { transport, rings, ram, events, features }
    }

    /// Goes through the driver's initialisation (virtio 1.2, section 3.1.1) to DRIVER_OK.
    pub fn activate(&mut self) {
        for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            self.write_register(reg::VIRTIO_MMIO_STATUS, status);
        }
        for (select, half) in [(0, self.features as u32), (1, (self.features >> 32) as u32 | 1)] {
            self.write_register(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write_register(reg::VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write_register(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for (index, ring) in (0..).zip(&self.rings) {
            for (register, value) in [
                (reg::VIRTIO_MMIO_QUEUE_SEL, index),
                (reg::VIRTIO_MMIO_QUEUE_NUM, ring.size.into()),
                (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptor_table() as u32),
                (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.available_ring() as u32),
                (reg::VIRTIO_MMIO_QUEUE_USED_LOW, ring.used_ring() as u32),
                (reg::VIRTIO_MMIO_QUEUE_READY, 1),
            ] {
                self.write_register(register, value);
            }
        }
        self.write_register(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        let mut status = [0; 4];
        self.transport.read(reg::VIRTIO_MMIO_STATUS.into(), &mut status);
        assert_eq!(u32::from_le_bytes(status), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.run();
    }

    /// Runs the event loop until nothing is left to do.
    pub fn run(&mut self) {
        let rests = (0..100_000).any(|_| self.events.run_with_timeout(0).unwrap() == 0);
        assert!(rests, "the device never rests");
    }

    /// Runs the event loop once, waiting for something to do. False when nothing came.
    pub fn wait(&mut self) -> bool {
        self.events.run_with_timeout(10_000).unwrap() > 0
    }

    /// The driver's notification, without running the event loop.
    pub fn kick(&self, queue: usize) {
        self.write_register(QUEUE_NOTIFY_OFFSET as u32, queue as u32);
    }

    /// Makes one chain available and has it served.
    pub fn give(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.rings[queue].add(buffers);
        self.kick(queue);
        self.run();
        head
    }

    pub fn is_broken(&self) -> bool {
        self.transport.is_broken()
    }

    /// The driver resets the device; the rings start anew.
    pub fn reset(&mut self) {
        self.write_register(reg::VIRTIO_MMIO_STATUS, 0);
        for ring in &mut self.rings {
            let zeroes = [0_u8; RING_BYTES as usize];
            self.ram.memory().write_slice(&zeroes, GuestAddress(ring.base)).unwrap();
            *ring = Ring::new(&self.ram, ring.base, ring.size);
        }
    }

    /// Reads and acknowledges the interrupt status.
    pub fn take_interrupt(&mut self) -> u32 {
        let mut status = [0; 4];
        self.transport.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS.into(), &mut status);
        self.write_register(reg::VIRTIO_MMIO_INTERRUPT_ACK, u32::from_le_bytes(status));
        u32::from_le_bytes(status)
    }

    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.transport.read(u64::from(reg::VIRTIO_MMIO_CONFIG) + offset, data);
    }

    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.transport.write(u64::from(reg::VIRTIO_MMIO_CONFIG) + offset, data);
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.ram.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    fn write_register(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }
}
