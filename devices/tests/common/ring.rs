//! The driver's side of a split virtqueue in guest memory, written from the specification (virtio 1.2, section 2.7).
#![allow(dead_code)] // Each test binary uses its part.

use std::collections::HashMap;
use std::sync::Arc;

use cistern_devices::virtio::device::{DeviceError, Driver, VirtioDevice};
use cistern_devices::virtio::interrupt::Interrupt;
use cistern_devices::virtio::queue::VirtQueue;
use cistern_memory::GuestRam;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

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

    /// The device's side.
    pub fn queue(&self) -> VirtQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_size(self.size);
        queue.set_desc_table_address(Some(self.descriptor_table() as u32), Some(0));
        queue.set_avail_ring_address(Some(self.available_ring() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_ring() as u32), Some(0));
        queue.set_ready(true);
        VirtQueue::new(queue)
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

/// A device with a driver that plays by hand.
pub struct Guest<D> {
    pub device: D,
    pub driver: Driver,
    pub rings: Vec<Ring>,
    pub ram: Arc<GuestRam>,
    pub line: EventFd,
}

impl<D: VirtioDevice> Guest<D> {
    /// Rings from guest address `rings_at` on; the device is not active yet.
    pub fn new(device: D, ram: Arc<GuestRam>, rings_at: u64, features: u64) -> Self {
        let rings: Vec<Ring> = (rings_at..)
            .step_by(RING_BYTES as usize)
            .zip(device.queue_sizes())
            .map(|(base, &size)| Ring::new(&ram, base, size))
            .collect();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
        let queues = rings.iter().map(Ring::queue).collect();
        let driver = Driver { features, queues, ram: ram.clone(), interrupt };
        Self { device, driver, rings, ram, line }
    }

    pub fn activate(&mut self) -> Result<(), DeviceError> {
        self.device.activate(&mut self.driver)
    }

    pub fn kick(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.device.queue_event(queue, &mut self.driver)
    }

    /// Makes one chain available and kicks.
    pub fn give(&mut self, queue: usize, buffers: &[Buffer]) -> Result<u16, DeviceError> {
        let head = self.rings[queue].add(buffers);
        self.kick(queue).map(|()| head)
    }

    pub fn host_event(&mut self) -> Result<(), DeviceError> {
        self.device.host_event(Some(&mut self.driver))
    }

    /// Resets the device and sets the rings up anew.
    pub fn reset(&mut self) {
        self.device.reset();
        for ring in &mut self.rings {
            let zeroes = [0_u8; RING_BYTES as usize];
            self.ram.memory().write_slice(&zeroes, GuestAddress(ring.base)).unwrap();
            *ring = Ring::new(&self.ram, ring.base, ring.size);
        }
        self.driver.queues = self.rings.iter().map(Ring::queue).collect();
    }

    /// Takes the interrupt line down and tells what was up.
    pub fn take_interrupt(&mut self) -> u32 {
        let _ = self.line.read();
        let status = self.driver.interrupt.status();
        self.driver.interrupt.acknowledge(status);
        status
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.ram.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}
