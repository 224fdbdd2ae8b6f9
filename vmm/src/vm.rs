//! The VM as KVM knows it: memory slots, interrupt controllers, eventfds.

use std::sync::Arc;

use cistern_devices::virtio::mmio::QUEUE_NOTIFY_OFFSET;
use cistern_memory::GuestRam;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::dirty_log::KvmDirtyLog;
use crate::host::Host;
use crate::layout;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
#[error("/dev/kvm: {call}: {cause}: the kernel log may say why")]
pub struct VmError {
    call: &'static str,
    cause: kvm_ioctls::Error,
}

impl VmError {
    /// Wraps what KVM said to `call`.
    pub fn new(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |cause| Self { call, cause }
    }
}

/// A KVM VM. Guest RAM lives as long as it does: the kernel reads it through the memory slots.
pub struct Vm {
    fd: Arc<VmFd>,
    ram: Arc<GuestRam>,
}

impl Vm {
    /// Makes a VM with the in-kernel interrupt controllers and timer, and `ram` in its memory slots.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn new(host: &Host, ram: Arc<GuestRam>) -> Result<Self, VmError> {
        let fd = host.kvm.create_vm().map_err(VmError::new("KVM_CREATE_VM"))?;
        fd.set_tss_address(layout::KVM_TSS).map_err(VmError::new("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(VmError::new("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(VmError::new("KVM_CREATE_PIT2"))?;
        for (slot, region) in ram.regions().iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.guest_address,
                memory_size: region.bytes,
                userspace_addr: region.host_address,
            };
            // SAFETY: the region is mapped, and `self` keeps the mapping for as long as the VM.
            unsafe { fd.set_user_memory_region(region) }.map_err(VmError::new("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(Self { fd: Arc::new(fd), ram })
    }

    /// Makes virtual CPU number `id`.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, VmError> {
        self.fd.create_vcpu(u64::from(id)).map_err(VmError::new("KVM_CREATE_VCPU"))
    }

    /// Lets a write to `line` raise global interrupt `gsi`, edge-triggered.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn connect_interrupt(&self, line: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd.register_irqfd(line, gsi).map_err(VmError::new("KVM_IRQFD"))
    }

    /// Lets the guest's notifications of a virtio device's queues write these eventfds without leaving the kernel.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn connect_kicks(&self, kicks: &[EventFd], mmio_base: u64) -> Result<(), VmError> {
        let address = IoEventAddress::Mmio(mmio_base + QUEUE_NOTIFY_OFFSET);
        for (queue, kick) in kicks.iter().enumerate() {
            self.fd.register_ioevent(kick, &address, queue as u32).map_err(VmError::new("KVM_IOEVENTFD"))?;
        }
        Ok(())
    }

    /// The dirty log, where KVM can clear it in parts.
    pub fn dirty_log(&self) -> Option<KvmDirtyLog> {
        KvmDirtyLog::new(Arc::clone(&self.fd), Arc::clone(&self.ram))
    }

    /// A level-triggered line of global interrupt `gsi`.
    pub fn level_line(&self, gsi: u32) -> impl Fn(bool) + Send + Sync + 'static {
        let fd = Arc::clone(&self.fd);
        // Fails only without an interrupt controller, which `new` has made.
        move |active| {
            let _ = fd.set_irq_line(gsi, active);
        }
    }
}
