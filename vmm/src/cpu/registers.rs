//! The state a virtual CPU starts in.

use cistern_memory::Memory;
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::layout;

/// How the first CPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The Linux 64-bit boot protocol: long mode, low memory identity-mapped, RSI = zero page
    /// (kernel Documentation/arch/x86/boot.rst).
    Linux64 {
        /// Address of the entry point.
        address: u64,
    },
    /// The PVH boot protocol: 32-bit protected mode without paging, EBX = start info (Xen docs/misc/pvh.pandoc).
    Pvh {
        /// Address of the entry point.
        address: u64,
    },
}

/// Why a CPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// KVM refused.
    #[error("vCPU {id}: {call}: {cause}")]
    Kvm {
        /// Number of the CPU.
        id: u8,
        /// The KVM call.
        call: &'static str,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
    /// Guest RAM is too small for the boot structures.
    #[error("guest RAM is too small for the boot page tables")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

const CR0_PROTECTED_MODE: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// LAPIC registers and the delivery modes firmware leaves there: LINT0 takes the PIC, LINT1 the NMI.
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_MODE_EXTINT: u32 = 0x700;
const APIC_MODE_NMI: u32 = 0x400;

/// Brings up what every CPU needs: FPU, MSRs and the local interrupt pins.
///
/// # Errors
/// [`RegisterError::Kvm`].
pub fn set_up_common(vcpu: &VcpuFd, id: u8) -> Result<(), RegisterError> {
    let failed = |call| move |cause| RegisterError::Kvm { id, call, cause };
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(failed("KVM_SET_FPU"))?;

    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        msr(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        msr(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
    .expect("two entries fit");
    // KVM sets them in order and stops at one it lacks: both are comforts, not needs.
    vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;

    let mut lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    for (register, mode) in [(APIC_LVT_LINT0, APIC_MODE_EXTINT), (APIC_LVT_LINT1, APIC_MODE_NMI)] {
        for (slot, byte) in lapic.regs[register..register + 4].iter_mut().zip(mode.to_le_bytes()) {
            *slot = byte as i8;
        }
    }
    vcpu.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))
}

/// Puts the first CPU at the kernel's entry point. The others wait for a startup interrupt, as KVM makes them.
///
/// # Errors
/// [`RegisterError`].
pub fn set_up_entry(vcpu: &VcpuFd, memory: &Memory, entry: Entry) -> Result<(), RegisterError> {
    let failed = |call| move |cause| RegisterError::Kvm { id: 0, call, cause };
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let mut regs = kvm_regs { rflags: 2, ..Default::default() };

    let long_mode = matches!(entry, Entry::Linux64 { .. });
    let segments = Segments::new(long_mode);
    for (index, descriptor) in segments.descriptors().into_iter().enumerate() {
        memory.write_obj(descriptor, GuestAddress(layout::GDT + index as u64 * 8))?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (segments.descriptors().len() * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segments.code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) =
        (segments.data, segments.data, segments.data, segments.data, segments.data);
    sregs.tr = segments.task;

    match entry {
        Entry::Linux64 { address } => {
            write_page_tables(memory)?;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 |= CR0_PROTECTED_MODE | CR0_EXTENSION_TYPE | CR0_PAGING;
            sregs.efer |= EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
            regs.rip = address;
            regs.rsi = layout::ZERO_PAGE;
            regs.rsp = layout::BOOT_STACK;
            regs.rbp = layout::BOOT_STACK;
        }
        Entry::Pvh { address } => {
            sregs.cr0 = CR0_PROTECTED_MODE | CR0_EXTENSION_TYPE;
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rip = address;
            regs.rbx = layout::PVH_START_INFO;
        }
    }
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

/// Identity-maps the first GiB in 2 MiB pages.
fn write_page_tables(memory: &Memory) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const HUGE: u64 = 0x80;
    let (pml4, pdpt, pd) = (layout::PAGE_TABLES, layout::PAGE_TABLES + 0x1000, layout::PAGE_TABLES + 0x2000);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(pd | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    let mut entries = [0u8; 4096];
    for (index, entry) in entries.chunks_exact_mut(8).enumerate() {
        entry.copy_from_slice(&((index as u64) << 21 | HUGE | PRESENT_WRITABLE).to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(pd))
}

/// Flat segments at the selectors the Linux boot protocol fixes: code 0x10, data 0x18.
struct Segments {
    code: kvm_segment,
    data: kvm_segment,
    task: kvm_segment,
}

impl Segments {
    fn new(long_mode: bool) -> Self {
        let flat = |selector, type_| kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        let code = kvm_segment { l: u8::from(long_mode), db: u8::from(!long_mode), ..flat(0x10, 11) };
        let data = kvm_segment { db: 1, ..flat(0x18, 3) };
        let task = kvm_segment { limit: 0x67, s: 0, g: 0, ..flat(0x20, 11) };
        Self { code, data, task }
    }

    /// The GDT these segments come from.
    fn descriptors(&self) -> [u64; 5] {
        [0, 0, descriptor(&self.code), descriptor(&self.data), descriptor(&self.task)]
    }
}

/// A segment in its descriptor form (Intel SDM volume 3A, section 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags =
        u64::from(segment.avl) | u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(Segments::new(true).descriptors()[2..4], [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        assert_eq!(Segments::new(false).descriptors()[2], 0x00cf_9b00_0000_ffff);
    }
}
