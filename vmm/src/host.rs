//! What this host's KVM is and can do.

use std::io;
use std::path::Path;

use cistern_memory::Meminfo;
use kvm_ioctls::{Cap, Kvm};

/// KVM's device node.
const KVM_DEVICE: &str = "/dev/kvm";

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The device does not open.
    #[error("{KVM_DEVICE}: {}: {advice}", plain(.cause))]
    Open {
        /// What the kernel said.
        cause: io::Error,
        /// What the user can do about it.
        advice: &'static str,
    },
    /// KVM lacks something Cistern stands on.
    #[error("{KVM_DEVICE}: this host's KVM lacks {0}: a kernel of 5.10 or later has it")]
    Lacks(&'static str),
}

/// The message without Rust's ` (os error N)`.
fn plain(cause: &io::Error) -> String {
    let text = cause.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// The kind of virtualization under KVM, where it makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Virtualization {
    /// VT-x or AMD-V.
    Hardware,
    /// PVM: a software KVM. User mode runs natively, kernel mode is interpreted, and CPUID is not intercepted.
    Pvm,
}

/// An opened and checked KVM.
pub struct Host {
    /// The system handle.
    pub kvm: Kvm,
    /// What runs underneath.
    pub virtualization: Virtualization,
    /// Width of guest-physical addresses in bits.
    pub physical_address_bits: u32,
}

/// Guest-physical address width under PVM, whatever CPUID says.
const PVM_PHYSICAL_ADDRESS_BITS: u32 = 43;

impl Host {
    /// Opens `/dev/kvm` and checks what is needed.
    ///
    /// # Errors
    /// [`HostError`] says what is missing and what to do.
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(|error| {
            let cause = io::Error::from_raw_os_error(error.errno());
            let advice = match cause.kind() {
                io::ErrorKind::PermissionDenied => "run as a member of group kvm",
                io::ErrorKind::NotFound => "load the kvm_intel or kvm_amd module, or enable virtualization in the BIOS",
                _ => "is KVM working on this host?",
            };
            HostError::Open { cause, advice }
        })?;
        for (capability, name) in [
            (Cap::Irqchip, "the in-kernel interrupt controller"),
            (Cap::Irqfd, "irqfd"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::UserMemory, "user memory regions"),
            (Cap::ImmediateExit, "immediate exit"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(HostError::Lacks(name));
            }
        }
        let virtualization =
            if Path::new("/sys/module/kvm_pvm").exists() { Virtualization::Pvm } else { Virtualization::Hardware };
        let physical_address_bits = match virtualization {
            Virtualization::Pvm => PVM_PHYSICAL_ADDRESS_BITS,
            Virtualization::Hardware => cpuid_physical_address_bits(),
        };
        Ok(Self { kvm, virtualization, physical_address_bits })
    }
}

/// CPUID leaf 0x8000_0008, EAX bits 7:0.
fn cpuid_physical_address_bits() -> u32 {
    const DEFAULT_BITS: u32 = 36;
    if std::arch::x86_64::__cpuid(0x8000_0000).eax < 0x8000_0008 {
        return DEFAULT_BITS;
    }
    std::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff
}

/// Memory and swap of the host, bytes, from `/proc/meminfo`; `None` where it cannot be read.
pub fn host_memory_bytes() -> Option<(u64, u64)> {
    let meminfo = Meminfo::read()?;
    Some((meminfo.bytes("MemTotal")?, meminfo.bytes("SwapTotal")?))
}
