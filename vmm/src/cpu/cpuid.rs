//! CPUID as the guest sees it: what KVM supports, with the topology of this VM.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Cap;

use crate::host::{Host, Virtualization};

/// Leaf 1 ECX.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// A guest that runs guests of its own lets the host's kernel hold pages of its memory behind the page tables, where the
/// pager does not see them in use.
const VMX: u32 = 1 << 5;
/// Leaf 0x8000_0001 ECX: as above.
const SVM: u32 = 1 << 2;
/// Leaf 1 EDX.
const HTT: u32 = 1 << 28;

/// KVM's supported CPUID, cut down where the host's KVM cannot keep the promise.
///
/// # Errors
/// What KVM said.
pub fn supported(host: &Host) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = host.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let deadline_timer = host.kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        if entry.function == 1 {
            entry.ecx = entry.ecx & !VMX | HYPERVISOR;
            if deadline_timer {
                entry.ecx |= TSC_DEADLINE;
            }
        }
        if entry.function == 0x8000_0001 {
            entry.ecx &= !SVM;
        }
        if host.virtualization == Virtualization::Pvm {
            mask_for_interpreter(entry);
        }
    }
    Ok(cpuid)
}

/// Takes away what PVM's interpreter of kernel-mode code cannot run. The guest's own CPUID instruction is not
/// intercepted there, so Linux is told by `clearcpuid=` as well.
fn mask_for_interpreter(entry: &mut kvm_cpuid_entry2) {
    const LEAF1_ECX_FMA_CX16_XSAVE_OSXSAVE_AVX_F16C: u32 = 1 << 12 | 1 << 13 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29;
    const LEAF7_EBX_AVX2_AVX512_SMAP: u32 = 1 << 5 | 1 << 16 | 1 << 17 | 1 << 20 | 1 << 30 | 1 << 31;
    match entry.function {
        1 => entry.ecx &= !LEAF1_ECX_FMA_CX16_XSAVE_OSXSAVE_AVX_F16C,
        7 => {
            entry.ebx &= !LEAF7_EBX_AVX2_AVX512_SMAP;
            entry.ecx = 0;
            entry.edx = 0;
        }
        0xd => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// The CPUID of one virtual CPU: `cpus` single-threaded cores in one package, APIC ids counted from 0 (Intel SDM volume
/// 2A, CPUID; AMD APM volume 3, appendix E).
pub fn for_vcpu(supported: &CpuId, apic_id: u8, cpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let core_bits = u32::from(cpus).next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ebx = (entry.ebx & 0xffff) | u32::from(cpus) << 16 | u32::from(apic_id) << 24;
                entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            0x4 => {
                let cache_level = entry.eax >> 5 & 7;
                let sharing = if cache_level >= 3 { u32::from(cpus) - 1 } else { 0 };
                if entry.eax & 0x1f != 0 {
                    entry.eax = (entry.eax & 0x3fff) | sharing << 14 | (u32::from(cpus) - 1).min(0x3f) << 26;
                }
            }
            0xb | 0x1f => {
                let (shift, count, kind) = match entry.index {
                    0 => (0, 1, 1),
                    1 => (core_bits, u32::from(cpus), 2),
                    _ => (0, 0, 0),
                };
                entry.eax = shift;
                entry.ebx = count;
                entry.ecx = kind << 8 | (entry.index & 0xff);
                entry.edx = u32::from(apic_id);
            }
            0x8000_0008 => {
                entry.ecx = (entry.ecx & !0xf0ff) | (u32::from(cpus) - 1) | core_bits << 12;
            }
            0x8000_001d => {
                let cache_level = entry.eax >> 5 & 7;
                let sharing = if cache_level >= 3 { u32::from(cpus) - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | sharing << 14;
            }
            0x8000_001e => {
                entry.eax = u32::from(apic_id);
                entry.ebx = u32::from(apic_id);
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    cpuid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index)).expect("leaf")
    }

    #[test]
    fn each_vcpu_sees_its_apic_id_and_the_number_of_cpus() {
        let entries: Vec<_> = [(1, 0), (0xb, 0), (0xb, 1), (0x8000_0008, 0)]
            .map(|(function, index)| kvm_cpuid_entry2 { function, index, ..Default::default() })
            .to_vec();
        let supported = CpuId::from_entries(&entries).expect("few entries");
        let cpuid = for_vcpu(&supported, 2, 3);
        assert_eq!(leaf(&cpuid, 1, 0).ebx, 2 << 24 | 3 << 16);
        assert_eq!(leaf(&cpuid, 1, 0).edx & HTT, HTT);
        assert_eq!((leaf(&cpuid, 0xb, 0).ebx, leaf(&cpuid, 0xb, 0).edx), (1, 2));
        assert_eq!((leaf(&cpuid, 0xb, 1).eax, leaf(&cpuid, 0xb, 1).ebx), (2, 3));
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 2 << 12 | 2);
        assert_eq!(leaf(&for_vcpu(&supported, 0, 1), 1, 0).edx & HTT, 0);
    }
}
