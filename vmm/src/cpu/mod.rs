//! Virtual CPUs: what they see of the hardware ([`cpuid`]), how they start ([`registers`]), how they run ([`vcpu`]), and
//! the instructions finished here because KVM cannot ([`fixup`]).

pub mod cpuid;
pub mod fixup;
pub mod registers;
pub mod vcpu;
