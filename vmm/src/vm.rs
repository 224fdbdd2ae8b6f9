//! The VM as KVM knows it: memory slots, interrupt controllers, eventfds.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cistern_devices::virtio::mmio::QUEUE_NOTIFY_OFFSET;
use cistern_memory::GuestRam;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
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
        let fd = create_vm(&host.kvm).map_err(VmError::new("KVM_CREATE_VM"))?;
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

/// How often KVM_CREATE_VM is tried when it is interrupted, and how long after the last time.
const CREATE_VM_TRIES: u32 = 100;
const CREATE_VM_PAUSE: Duration = Duration::from_millis(1);

/// A new VM. KVM_CREATE_VM registers a notifier with the address space, which the kernel gives up with EINTR where any signal is
/// pending (`mm_take_all_locks`), and a process that is stopped and goes on has one: it is tried again, as QEMU does.
fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    for _ in 1..CREATE_VM_TRIES {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => thread::sleep(CREATE_VM_PAUSE),
            done => return done,
        }
    }
    kvm.create_vm()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

    use super::*;

    #[test]
    fn a_vm_is_made_while_signals_arrive() {
        extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        // Thirty milliseconds of nothing but signals, and as long without any, in which even a busy machine makes one.
        const BURST: Duration = Duration::from_millis(30);
        const PAUSE: Duration = Duration::from_millis(30);
        let signal = SIGRTMIN() + 5;
        register_signal_handler(signal, nothing).expect("a handler");
        let done = Arc::new(AtomicBool::new(false));
        let maker = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let kvm = Kvm::new().expect("/dev/kvm");
                let made = (0..100).try_for_each(|_| create_vm(&kvm).map(drop));
                done.store(true, Ordering::Relaxed);
                made
            }
        });
        while !done.load(Ordering::Relaxed) {
            let burst = Instant::now();
            while burst.elapsed() < BURST {
                maker.kill(signal).expect("the thread is not joined yet");
                thread::sleep(Duration::from_micros(100));
            }
            thread::sleep(PAUSE);
        }
        maker.join().expect("no panic").expect("all are made");
    }
}
