//! The dirty log of KVM, cleared and read in parts.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use cistern_memory::activity::DirtyLog;
use cistern_memory::{GuestRam, PAGE_SIZE, RamRegion};
use kvm_bindings::{
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVMIO,
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iowr_nr;

/// Pages of a word of the log. A part that is cleared starts with a word, and ends with one or with its slot (kernel
/// Documentation/virt/kvm/api.rst, 4.117).
const WORD_PAGES: u64 = 64;

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

    /// Slots, their regions, and the pages in them; slots without any are left out.
    fn by_slot<'a>(&'a self, gfns: &'a [u64]) -> impl Iterator<Item = (usize, &'a RamRegion, &'a [u64])> {
        self.ram.regions().iter().enumerate().filter_map(move |(slot, region)| {
            let border = |gfn: u64| gfns.partition_point(|&other| other < gfn);
            let here = &gfns[border(region.gfns().start)..border(region.gfns().end)];
            (!here.is_empty()).then_some((slot, region, here))
        })
    }
}

impl DirtyLog for KvmDirtyLog {
    fn start(&self) -> io::Result<()> {
        self.set_flags(KVM_MEM_LOG_DIRTY_PAGES)
    }

    fn stop(&self) -> io::Result<()> {
        self.set_flags(0)
    }

    fn clear(&self, gfns: &[u64]) -> io::Result<()> {
        self.by_slot(gfns).try_for_each(|(slot, region, gfns)| {
            let pages = page_numbers(region, gfns);
            // One call for all of a slot: each may have every CPU of the guest flush its translations.
            let first_page = pages.start / WORD_PAGES * WORD_PAGES;
            let end_page = (pages.end.next_multiple_of(WORD_PAGES)).min(region.bytes / PAGE_SIZE);
            let mut bitmap = vec![0_u64; (end_page - first_page).div_ceil(WORD_PAGES) as usize];
            for gfn in gfns {
                let page = gfn - region.gfns().start - first_page;
                bitmap[(page / WORD_PAGES) as usize] |= 1 << (page % WORD_PAGES);
            }
            let request = kvm_clear_dirty_log {
                slot: slot as u32,
                num_pages: (end_page - first_page) as u32,
                first_page,
                __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
            };
            // SAFETY: the kernel reads the request and a bit of the bitmap for each of its pages, which live here.
            match unsafe { ioctl_with_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG(), &request) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }

    fn written_pages(&self, gfns: &[u64]) -> io::Result<u64> {
        let mut written = 0;
        for (slot, region, gfns) in self.by_slot(gfns) {
            let log = self.vm.get_dirty_log(slot as u32, region.bytes as usize).map_err(system_error)?;
            let is_written = |gfn: &&u64| {
                let page = *gfn - region.gfns().start;
                log.get((page / WORD_PAGES) as usize).is_some_and(|word| word >> (page % WORD_PAGES) & 1 != 0)
            };
            written += gfns.iter().filter(is_written).count() as u64;
        }
        Ok(written)
    }
}

/// From the first to the last of some pages of a region, at least one, numbered from its start.
fn page_numbers(region: &RamRegion, gfns: &[u64]) -> Range<u64> {
    let number = |gfn: Option<&u64>| gfn.map_or(0, |gfn| gfn - region.gfns().start);
    number(gfns.first())..number(gfns.last()) + 1
}

fn system_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
