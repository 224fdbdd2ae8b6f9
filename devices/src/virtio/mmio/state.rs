//! What is behind the transport's lock: the device, what its driver set up, and the life of the two from reset over
//! DRIVER_OK to the next reset.

use std::sync::Arc;

use cistern_memory::GuestRam;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::BreakReport;
use super::queue_registers::QueueRegisters;
use crate::virtio::device::{DeviceError, Driver, VirtioDevice};
use crate::virtio::interrupt::Interrupt;

/// Features of the transport and of the rings, offered for every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Chains a device may take from each queue in one event before the other devices get their turn.
const CHAINS_PER_EVENT: u32 = 256;

/// Breaks that are reported; a driver could go on for ever.
const REPORTED_BREAKS: u64 = 8;

pub(super) struct State {
    device: Box<dyn VirtioDevice>,
    ram: Arc<GuestRam>,
    interrupt: Arc<Interrupt>,
    report: BreakReport,
    /// The driver while it is active: from DRIVER_OK until it resets or breaks the device.
    driver: Option<Driver>,
    /// The next event must look at the host descriptor too: an edge may have passed unseen.
    host_event_due: bool,
    queues: Vec<QueueRegisters>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: usize,
    breaks: u64,
    last_error: Option<String>,
}

impl State {
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        interrupt: Arc<Interrupt>,
        report: BreakReport,
    ) -> Self {
        let queues = device.queue_sizes().iter().map(|size| QueueRegisters::new(*size)).collect();
        Self {
            device,
            ram,
            interrupt,
            report,
            driver: None,
            host_event_due: false,
            queues,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            breaks: 0,
            last_error: None,
        }
    }

    pub fn is_broken(&self) -> bool {
        self.status & NEEDS_RESET != 0
    }

    pub fn breaks(&self) -> u64 {
        self.breaks
    }

    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Stops the device until the driver resets it, and tells the driver.
    pub fn mark_broken(&mut self, error: &DeviceError) {
        self.driver = None;
        self.status |= NEEDS_RESET;
        let line = format!("{}: {error}", self.device.name());
        if self.breaks < REPORTED_BREAKS {
            (self.report)(&line);
        }
        self.breaks += 1;
        self.last_error = Some(line);
        // A driver hears of it only once it said it is ready (virtio 1.2, section 2.1.2).
        if self.status & DRIVER_OK != 0 {
            self.interrupt.signal_config();
        }
    }

    pub fn status(&self) -> u32 {
        self.status
    }

    /// The half of the offered features that the driver selected.
    pub fn offered_features(&self) -> u32 {
        let features = self.device.features() | TRANSPORT_FEATURES;
        match self.device_features_select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        }
    }

    pub fn queue_size_max(&self) -> u32 {
        self.queues.get(self.queue_select).map_or(0, |queue| queue.size_max.into())
    }

    pub fn queue_ready(&self) -> u32 {
        self.queues.get(self.queue_select).is_some_and(|queue| queue.ready).into()
    }

    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & DRIVER != 0 && !self.is_broken() {
            self.device.write_config(offset, data);
        }
    }

    /// A write of the Status register. True when it made the driver active.
    pub fn write_status(&mut self, value: u32) -> bool {
        if value == 0 {
            self.reset();
            return false;
        }
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
        let cleared = self.status & known & !value != 0;
        let in_order = [(DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)]
            .iter()
            .all(|(later, earlier)| value & later == 0 || value & earlier != 0);
        if self.is_broken() || cleared || !in_order {
            return false;
        }
        let added = value & known & !self.status;
        self.status |= added & (ACKNOWLEDGE | DRIVER | FAILED);
        if added & FEATURES_OK != 0 && self.features_acceptable() {
            self.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            match self.activate() {
                Ok(()) => return true,
                Err(error) => self.mark_broken(&error),
            }
        }
        false
    }

    /// A write of a register that sets something up. Ignored at the wrong time.
    pub fn write_setup(&mut self, register: u32, value: u32) {
        if self.is_broken() {
            return;
        }
        let negotiating = self.status & (DRIVER | FEATURES_OK) == DRIVER;
        let configuring = self.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        match register {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES if negotiating => match self.driver_features_select {
                0 => self.driver_features = self.driver_features & !u64::from(u32::MAX) | u64::from(value),
                1 => self.driver_features = self.driver_features & u64::from(u32::MAX) | u64::from(value) << 32,
                _ => {}
            },
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value as usize,
            reg::VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value != 0, configuring),
            _ if configuring => {
                // The specification forbids changing a queue that is enabled.
                if let Some(queue) = self.queues.get_mut(self.queue_select).filter(|queue| !queue.ready) {
                    queue.write(register, value);
                }
            }
            _ => {}
        }
    }

    /// The driver put buffers on a queue. Returns the queues that need another event.
    pub fn queue_event(&mut self, queue: usize) -> Vec<usize> {
        if self.driver.is_some() && std::mem::take(&mut self.host_event_due) {
            let mut starved = self.run(|device, driver| device.host_event(Some(driver)));
            starved.extend(self.run(|device, driver| device.queue_event(queue, driver)));
            return starved;
        }
        self.run(|device, driver| device.queue_event(queue, driver))
    }

    /// The device's host descriptor is ready. Returns the queues that need another event.
    pub fn host_event(&mut self) -> Vec<usize> {
        if self.driver.is_none() && !self.is_broken() {
            if let Err(error) = self.device.host_event(None) {
                self.mark_broken(&error);
            }
            return Vec::new();
        }
        self.run(|device, driver| device.host_event(Some(driver)))
    }

    /// Runs one event of the device, if it has an active driver.
    fn run(&mut self, event: impl FnOnce(&mut dyn VirtioDevice, &mut Driver) -> Result<(), DeviceError>) -> Vec<usize> {
        let Some(driver) = &mut self.driver else { return Vec::new() };
        driver.queues.iter_mut().for_each(|queue| queue.set_budget(CHAINS_PER_EVENT));
        if let Err(error) = event(self.device.as_mut(), driver) {
            self.mark_broken(&error);
            return Vec::new();
        }
        let queues = driver.queues.iter().enumerate();
        queues.filter(|(_, queue)| queue.is_starved()).map(|(number, _)| number).collect()
    }

    fn features_acceptable(&self) -> bool {
        let offered = self.device.features() | TRANSPORT_FEATURES;
        self.driver_features & !offered == 0 && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) -> Result<(), DeviceError> {
        let memory = self.ram.memory();
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues = self.queues.iter().map(|queue| queue.build(memory, event_idx)).collect::<Result<_, _>>()?;
        let mut driver = Driver {
            features: self.driver_features,
            queues,
            ram: Arc::clone(&self.ram),
            interrupt: Arc::clone(&self.interrupt),
        };
        self.device.activate(&mut driver)?;
        self.driver = Some(driver);
        self.host_event_due = true;
        Ok(())
    }

    fn write_queue_ready(&mut self, ready: bool, configuring: bool) {
        let Some(registers) = self.queues.get_mut(self.queue_select) else { return };
        if configuring {
            registers.ready = ready;
        } else if !ready && let Some(driver) = &mut self.driver {
            // Taking a queue away from an active device is allowed; giving it back takes a reset.
            registers.ready = false;
            driver.queues[self.queue_select].disable();
        }
    }

    fn reset(&mut self) {
        self.driver = None;
        self.host_event_due = false;
        self.device.reset();
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.size_max);
        }
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.interrupt.acknowledge(u32::MAX);
    }
}
