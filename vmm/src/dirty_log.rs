//! The dirty log of KVM, cleared and read in parts.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use cistern_memory::activity::DirtyLog;
use cistern_memory::{GuestRam, RamRegion};
use kvm_bindings::{
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVMIO,
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iowr_nr;

/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` (kernel Documentation/virt/kvm/api.rst, 7.18).
const MANUAL_PROTECT2: u32 = 168;

#[allow(missing_docs, reason = "the macro makes the function")]
mod call {
    use super::*;
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
}
use call::KVM_CLEAR_DIRTY_LOG;

/// Over the memory slots that are the regions of RAM, in their order.
pub struct KvmDirtyLog {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
}

impl KvmDirtyLog {
    /// `None` where KVM cannot clear the log in parts, or would write-protect all of memory to begin with.
    pub fn new(vm: Arc<VmFd>, ram: Arc<GuestRam>) -> Option<Self> {
        let flags = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        let capability = kvm_enable_cap { cap: MANUAL_PROTECT2, args: [flags, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&capability).ok()?;
        Some(Self { vm, ram })
    }

    fn set_flags(&self, flags: u32) -> io::Result<()> {
        for (slot, region) in self.ram.regions().iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags,
                guest_phys_addr: region.guest_address,
                memory_size: region.bytes,
                userspace_addr: region.host_address,
            };
            // SAFETY: the slot is as it was but for the flags; `ram` keeps the mapping.
            unsafe { self.vm.set_user_memory_region(region) }.map_err(system_error)?;
        }
        Ok(())
    }

    /// The slot a page is in, and the slot's region.
    fn slot(&self, gfn: u64) -> io::Result<(usize, &RamRegion)> {
        let mut regions = self.ram.regions().iter().enumerate();
        regions.find(|(_, region)| region.gfns().contains(&gfn)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl DirtyLog for KvmDirtyLog {
    fn start(&self) -> io::Result<()> {
        self.set_flags(KVM_MEM_LOG_DIRTY_PAGES)
    }

    fn stop(&self) -> io::Result<()> {
        self.set_flags(0)
    }

    fn clear(&self, gfns: Range<u64>) -> io::Result<()> {
        let (slot, region) = self.slot(gfns.start)?;
        let pages = gfns.end - gfns.start;
        let bitmap = if pages < 64 { (1_u64 << pages) - 1 } else { u64::MAX };
        let request = kvm_clear_dirty_log {
            slot: slot as u32,
            num_pages: pages.min(64) as u32,
            first_page: gfns.start - region.gfns().start,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: (&raw const bitmap).cast_mut().cast() },
        };
        // SAFETY: the kernel reads the request and one word of bitmap, which live here.
        match unsafe { ioctl_with_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG(), &request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn written_pages(&self, granules: &[Range<u64>]) -> io::Result<Vec<u64>> {
        let mut logs: Vec<Option<Vec<u64>>> = vec![None; self.ram.regions().len()];
        let mut written = Vec::with_capacity(granules.len());
        for gfns in granules {
            let (slot, region) = self.slot(gfns.start)?;
            if logs[slot].is_none() {
                logs[slot] = Some(self.vm.get_dirty_log(slot as u32, region.bytes as usize).map_err(system_error)?);
            }
            let log = logs[slot].as_deref().unwrap_or_default();
            let is_written = |gfn: u64| {
                let page = gfn - region.gfns().start;
                log.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0)
            };
            written.push(gfns.clone().filter(|&gfn| is_written(gfn)).count() as u64);
        }
        Ok(written)
    }
}

fn system_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
