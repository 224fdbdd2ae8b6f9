//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): the register block a driver sees, around one device.
//!
//! vCPU threads read and write registers, the event loop brings kicks and host events; both go through one lock around
//! the device and its queues. Only the interrupt registers and kicks stay outside of it.

mod queue_registers;
mod state;

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cistern_memory::GuestRam;
use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{DeviceError, VirtioDevice};
use super::interrupt::Interrupt;
use state::State;

/// Size of the register block in guest-physical memory: one page, most of it configuration space.
pub const MMIO_BYTES: u64 = 0x1000;

/// Offset of the register to bind [`MmioTransport::kicks`] to, 32 bits wide, the queue's number as value.
pub const QUEUE_NOTIFY_OFFSET: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"CSTN");
/// What the length and base of a shared memory region that does not exist read as (virtio 1.2, section 4.2.2.1).
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// Marks the events of the host descriptor; kicks carry their queue's number.
const HOST_EVENT: u32 = u32::MAX;

/// Takes the one line that says why a device broke.
pub type BreakReport = Box<dyn Fn(&str) + Send>;

/// A device on the virtio-mmio bus.
pub struct MmioTransport {
    name: String,
    device_id: u32,
    interrupt: Arc<Interrupt>,
    kicks: Vec<EventFd>,
    host_fd: Option<RawFd>,
    state: Mutex<State>,
}

impl MmioTransport {
    /// Puts `device` behind a register block. `report` is called from any thread, with one line each of the first few
    /// times the device breaks (a driver can break it as often as it likes); it must not call the transport.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn new(device: Box<dyn VirtioDevice>, ram: Arc<GuestRam>, report: BreakReport) -> io::Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let interrupt = Arc::new(Interrupt::new(eventfd()?));
        let kicks = device.queue_sizes().iter().map(|_| eventfd()).collect::<io::Result<_>>()?;
        Ok(Self {
            name: device.name().to_owned(),
            device_id: device.device_id(),
            interrupt: Arc::clone(&interrupt),
            kicks,
            host_fd: device.host_fd(),
            state: Mutex::new(State::new(device, ram, interrupt, report)),
        })
    }

    /// The device's name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interrupt: its line is to be registered as irqfd.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// One eventfd a queue, in the queues' order, to be registered as ioeventfd on [`QUEUE_NOTIFY_OFFSET`] with the
    /// queue's number to match. Writes of that register that reach [`MmioTransport::write`] have the same effect.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// True from the moment the device broke until the driver resets it.
    pub fn is_broken(&self) -> bool {
        self.lock().is_broken()
    }

    /// How often the device broke.
    pub fn breaks(&self) -> u64 {
        self.lock().breaks()
    }

    /// Why the device broke last; stays after a reset.
    pub fn last_error(&self) -> Option<String> {
        self.lock().last_error().map(str::to_owned)
    }

    /// The driver reads at `offset` of the register block. Registers are 32 bits wide and aligned: any other access, and
    /// any register that cannot be read, reads as zero. Configuration space takes any width.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(config_offset) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            self.lock().read_config(config_offset, data);
        } else if let (Some(register), Ok(word)) = (register(offset), <&mut [u8; 4]>::try_from(data)) {
            *word = self.read_register(register).to_le_bytes();
        }
    }

    /// The driver writes at `offset` of the register block. What is not an aligned 32-bit access to a register that can
    /// be written now is ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(config_offset) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            self.lock().write_config(config_offset, data);
        } else if let (Some(register), Ok(word)) = (register(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(word));
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device_id,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => self.lock().offered_features(),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self.lock().queue_size_max(),
            reg::VIRTIO_MMIO_QUEUE_READY => self.lock().queue_ready(),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            reg::VIRTIO_MMIO_STATUS => self.lock().status(),
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHARED_MEMORY,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => {
                // Under the lock: a device that is just changing its configuration has not raised it yet.
                let _state = self.lock();
                self.interrupt.config_generation()
            }
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        match register {
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value as usize),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => {
                let activated = self.lock().write_status(value);
                // Buffers may have been put on the queues before the device was ready to be kicked.
                if activated {
                    (0..self.kicks.len()).for_each(|queue| self.kick(queue));
                }
            }
            _ => self.lock().write_setup(register, value),
        }
    }

    /// Makes the event loop look at a queue; a queue that does not exist is ignored.
    fn kick(&self, queue: usize) {
        if let Some(kick) = self.kicks.get(queue) {
            // An eventfd write fails only when its counter is full: then the event is pending already.
            let _ = kick.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock; if something did, the state is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSubscriber for MmioTransport {
    fn init(&self, ops: &mut EventOps) {
        let kicks = self.kicks.iter().zip(0..).map(|(kick, queue)| Events::with_data(kick, queue, EventSet::IN));
        let host =
            self.host_fd.map(|fd| Events::with_data_raw(fd, HOST_EVENT, EventSet::IN | EventSet::EDGE_TRIGGERED));
        for events in kicks.chain(host) {
            if let Err(error) = ops.add(events) {
                let cause = io::Error::other(error.to_string());
                self.lock().mark_broken(&DeviceError::Host { object: "event loop".to_owned(), cause });
            }
        }
    }

    fn process(&self, events: Events, _ops: &mut EventOps) {
        let starved = if events.data() == HOST_EVENT {
            self.lock().host_event()
        } else {
            let queue = events.data() as usize;
            // Level-triggered: taken before the work, so that a kick during it is an event of its own.
            match self.kicks.get(queue).map(EventFd::read) {
                Some(Ok(_)) => self.lock().queue_event(queue),
                _ => return,
            }
        };
        starved.into_iter().for_each(|queue| self.kick(queue));
    }
}

/// The register at this offset, if registers can start there.
fn register(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|offset| offset.is_multiple_of(4))
}
