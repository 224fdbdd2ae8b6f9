//! The interrupt line of a virtio-mmio device.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

/// `InterruptStatus` and the eventfd that raises the line (an irqfd, edge-triggered). Outside the device's lock, so that
/// a guest that acknowledges an interrupt never waits for a device at work.
#[derive(Debug)]
pub struct Interrupt {
    // The status is written before the eventfd; the guest reads it after the interrupt. Both are full barriers in
    // practice (system call, VM entry); SeqCst says so at no cost that matters here.
    status: AtomicU32,
    config_generation: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `line`.
    pub fn new(line: EventFd) -> Self {
        Self { status: AtomicU32::new(0), config_generation: AtomicU32::new(0), line }
    }

    /// The eventfd to register as irqfd.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Used buffers are waiting.
    pub fn signal_queue(&self) {
        self.signal(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration space or the device status changed. Call it in the same device call that made the change: the
    /// generation and the content then change together for the driver.
    pub fn signal_config(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.signal(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The `ConfigGeneration` register: differs when the configuration space may have changed between two reads.
    pub fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    /// A write of `bits` to the `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    fn signal(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        // An eventfd write fails only when its counter is full: then the line is raised already.
        let _ = self.line.write(1);
    }
}
