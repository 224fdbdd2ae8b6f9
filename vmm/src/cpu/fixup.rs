//! Instructions this VMM finishes itself.
//!
//! Where guest kernel code is interpreted (PVM), KVM's interpreter lacks a few instructions and `KVM_RUN` ends with
//! `KVM_EXIT_INTERNAL_ERROR`, suberror `KVM_INTERNAL_ERROR_EMULATION`. Two of them are simple and common enough in Linux
//! to finish here; for any other the message prints where and what.

use std::fmt::Write;

use cistern_memory::Memory;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

/// `KVM_INTERNAL_ERROR_EMULATION`: KVM could not interpret an instruction.
const SUBERROR_EMULATION: u32 = 1;
/// Longest x86 instruction.
const INSTRUCTION_BYTES: usize = 15;
const BREAKPOINT_VECTOR: u8 = 3;

/// What to do about an instruction KVM could not interpret.
#[derive(Debug, PartialEq, Eq)]
enum Completion {
    /// Step over it: it has no effect that matters.
    Skip { bytes: u64 },
    /// Step over it and raise this exception.
    Trap { bytes: u64, vector: u8 },
}

/// INT3 (0xCC) traps to the breakpoint handler; FWAIT (0x9B) waits for an FPU that is never busy.
fn completion(instruction: &[u8]) -> Option<Completion> {
    match instruction.first()? {
        0xcc => Some(Completion::Trap { bytes: 1, vector: BREAKPOINT_VECTOR }),
        0x9b => Some(Completion::Skip { bytes: 1 }),
        _ => None,
    }
}

/// Finishes the instruction that ended `KVM_RUN` with an internal error, if it is one of the known ones.
///
/// # Errors
/// A description of the crash, for the user: nothing can be done.
pub fn finish(vcpu: &mut VcpuFd, memory: &Memory) -> Result<(), String> {
    // SAFETY: called after KVM_EXIT_INTERNAL_ERROR, for which the kernel fills this member of the union.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    if suberror != SUBERROR_EMULATION {
        return Err(format!("KVM internal error, suberror {suberror}"));
    }
    let unreadable = |cause| format!("KVM could not interpret an instruction, and its registers: {cause}");
    let mut regs = vcpu.get_regs().map_err(unreadable)?;
    let rip = regs.rip;
    let instruction = instruction_at(vcpu, memory, rip);
    let failed = |cause| format!("KVM could not finish an instruction at rip {rip:#x}: {cause}");
    match completion(&instruction) {
        Some(Completion::Skip { bytes }) => {
            regs.rip = rip.wrapping_add(bytes);
            vcpu.set_regs(&regs).map_err(failed)
        }
        Some(Completion::Trap { bytes, vector }) => {
            regs.rip = rip.wrapping_add(bytes);
            vcpu.set_regs(&regs).map_err(failed)?;
            let mut events = vcpu.get_vcpu_events().map_err(failed)?;
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = 0;
            vcpu.set_vcpu_events(&events).map_err(failed)
        }
        None => {
            let mut text = format!("KVM cannot interpret the instruction at rip {rip:#x}:");
            for byte in &instruction {
                // Writing to a String cannot fail.
                let _ = write!(text, " {byte:02x}");
            }
            if instruction.is_empty() {
                text.push_str(" (unreadable)");
            }
            Err(text)
        }
    }
}

/// The bytes at `rip`, as many as are mapped and in RAM.
fn instruction_at(vcpu: &VcpuFd, memory: &Memory, rip: u64) -> Vec<u8> {
    let mut instruction = Vec::with_capacity(INSTRUCTION_BYTES);
    for offset in 0..INSTRUCTION_BYTES as u64 {
        let Ok(translation) = vcpu.translate_gva(rip.wrapping_add(offset)) else { break };
        if translation.valid == 0 {
            break;
        }
        let Ok(byte) = memory.read_obj::<u8>(GuestAddress(translation.physical_address)) else { break };
        instruction.push(byte);
    }
    instruction
}

#[cfg(test)]
mod tests {
    use cistern_memory::GuestRam;
    use kvm_bindings::kvm_sregs;
    use kvm_ioctls::VcpuExit;

    use super::*;
    use crate::cpu::registers::{Entry, set_up_common, set_up_entry};
    use crate::host::Host;
    use crate::vm::Vm;

    #[test]
    fn int3_traps_behind_itself() {
        assert_eq!(completion(&[0xcc, 0x90]), Some(Completion::Trap { bytes: 1, vector: 3 }));
    }

    #[test]
    fn fwait_is_stepped_over() {
        assert_eq!(completion(&[0x9b]), Some(Completion::Skip { bytes: 1 }));
    }

    #[test]
    fn nothing_else_is_finished_here() {
        for first in (0..=255u8).filter(|byte| ![0xcc, 0x9b].contains(byte)) {
            assert_eq!(completion(&[first, 0xcc]), None);
        }
        assert_eq!(completion(&[]), None);
    }

    const CODE: u64 = 0x10_0000;
    const BREAKPOINT_HANDLER: u64 = 0x10_1000;
    const IDT: u64 = 0x2000;

    /// Runs `code` in kernel mode of a real VM until its first `out`, and returns what it put out.
    fn run(code: &[u8]) -> Result<Vec<u8>, String> {
        let host = Host::open().expect("KVM");
        let ram = GuestRam::new(&[0..16 << 20]).expect("RAM");
        let vm = Vm::new(&host, ram.clone()).expect("VM");
        let mut vcpu = vm.create_vcpu(0).expect("vCPU");
        let memory = ram.memory();
        memory.write_slice(code, GuestAddress(CODE)).expect("code");
        // pop rax; out 0xf4, eax: the address the exception would return to.
        memory.write_slice(&[0x58, 0xe7, 0xf4], GuestAddress(BREAKPOINT_HANDLER)).expect("handler");
        let gate = (BREAKPOINT_HANDLER & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (BREAKPOINT_HANDLER >> 16) << 48;
        memory.write_obj(gate, GuestAddress(IDT + 16 * u64::from(BREAKPOINT_VECTOR))).expect("IDT");
        memory.write_obj(0u64, GuestAddress(IDT + 16 * u64::from(BREAKPOINT_VECTOR) + 8)).expect("IDT");

        set_up_common(&vcpu, 0).expect("registers");
        set_up_entry(&vcpu, memory, Entry::Linux64 { address: CODE }).expect("registers");
        let mut sregs: kvm_sregs = vcpu.get_sregs().expect("registers");
        sregs.idt.base = IDT;
        sregs.idt.limit = 0xfff;
        vcpu.set_sregs(&sregs).expect("registers");
        loop {
            match vcpu.run().expect("KVM_RUN") {
                VcpuExit::IoOut(0xf4, data) => return Ok(data.to_vec()),
                VcpuExit::InternalError => finish(&mut vcpu, memory)?,
                exit => panic!("unexpected exit {exit:?}"),
            }
        }
    }

    #[test]
    fn a_guests_breakpoint_reaches_its_handler() {
        // int3; out 0xf4, al
        assert_eq!(run(&[0xcc, 0xe6, 0xf4]), Ok((CODE as u32 + 1).to_le_bytes().to_vec()));
    }

    #[test]
    fn a_guests_fwait_does_nothing() {
        // fwait; mov al, 0x77; out 0xf4, al
        assert_eq!(run(&[0x9b, 0xb0, 0x77, 0xe6, 0xf4]), Ok(vec![0x77]));
    }

    #[test]
    fn an_instruction_nobody_can_finish_is_named() {
        // popcnt eax, eax; mov al, 0x66; out 0xf4, al: native on ordinary hosts, unknown to an interpreting KVM.
        match run(&[0xf3, 0x0f, 0xb8, 0xc0, 0xb0, 0x66, 0xe6, 0xf4]) {
            Ok(output) => assert_eq!(output, [0x66]),
            Err(text) => assert!(text.contains("at rip 0x100000: f3 0f b8 c0 b0 66"), "{text}"),
        }
    }
}
