//! The kernel command line.

use linux_loader::cmdline::Cmdline;
use vm_memory::GuestAddress;

use super::BootError;
use crate::firmware::VirtioSlot;
use crate::host::Virtualization;
use crate::layout;

/// What a microVM wants of any Linux: console on the serial port, reset through the keyboard controller, reset on panic.
const DEFAULTS: &str = "console=ttyS0 reboot=k panic=-1 quiet";

/// What PVM hosts need besides: kernel mode is interpreted there by a KVM that lacks some instructions, and CPUID is not
/// intercepted, so that Linux has to be told which features it must not use. So has its user space: without XSAVE the
/// kernel keeps the SSE registers over a task switch and no wider ones, but a C library that asks the processor itself
/// would use them. What the kernel does not know becomes the environment of the first process.
const PVM_DEFAULTS: &str = "mitigations=off random.trust_cpu=on no_timer_check noxsave \
    clearcpuid=smap,smep,xsave,cx16,popcnt,erms,fsrm,invpcid,pcid,bmi1,bmi2,avx,fsgsbase,umip,rdrand,rdseed,xsaves,\
xsaveopt,movbe,avx2,clwb,clflushopt,la57,pku,rdpid,user_shstk \
    GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-AVX_Fast_Unaligned_Load";

/// Defaults, a `virtio_mmio.device=` for each device, then what the user wrote; or, `bare`, only that.
///
/// # Errors
/// [`BootError::CommandLine`] when the text is too long or not ASCII.
pub fn compose(
    user: &str,
    bare: bool,
    virtualization: Virtualization,
    devices: &[VirtioSlot],
) -> Result<Cmdline, BootError> {
    let failed = |error: linux_loader::cmdline::Error| {
        BootError::CommandLine(match error {
            linux_loader::cmdline::Error::TooLarge | linux_loader::cmdline::Error::InvalidCapacity => {
                format!("longer than the {} bytes a kernel takes: shorten it", layout::COMMAND_LINE_BYTES - 1)
            }
            linux_loader::cmdline::Error::InvalidAscii => "not ASCII text: kernels take nothing else".to_owned(),
            other => other.to_string(),
        })
    };
    if bare {
        let mut cmdline = Cmdline::new(layout::COMMAND_LINE_BYTES).map_err(failed)?;
        cmdline.insert_str(user).map_err(failed)?;
        return Ok(cmdline);
    }
    let mut defaults = Cmdline::new(layout::COMMAND_LINE_BYTES).map_err(failed)?;
    defaults.insert_str(DEFAULTS).map_err(failed)?;
    if virtualization == Virtualization::Pvm {
        defaults.insert_str(PVM_DEFAULTS).map_err(failed)?;
    }
    for device in devices {
        defaults
            .add_virtio_mmio_device(device.mmio_bytes, GuestAddress(device.mmio_base), device.gsi, None)
            .map_err(failed)?;
    }
    // Last, so that what the user says wins and a `--` of theirs ends the kernel's part.
    if !user.trim().is_empty() {
        defaults.insert_str(user).map_err(failed)?;
    }
    Ok(defaults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(user: &str, bare: bool, virtualization: Virtualization) -> String {
        let devices = [VirtioSlot { mmio_base: 0xd000_0000, mmio_bytes: 0x1000, gsi: 5 }];
        let cmdline = compose(user, bare, virtualization, &devices).expect("valid");
        cmdline.as_cstring().expect("ASCII").into_string().expect("ASCII")
    }

    #[test]
    fn the_users_words_come_last() {
        assert_eq!(
            text("root=/dev/vda", false, Virtualization::Hardware),
            "console=ttyS0 reboot=k panic=-1 quiet virtio_mmio.device=4K@0xd0000000:5 root=/dev/vda"
        );
        let pvm = text("", false, Virtualization::Pvm);
        assert!(pvm.contains(" noxsave clearcpuid=smap,") && pvm.contains(" GLIBC_TUNABLES="), "{pvm}");
    }

    #[test]
    fn a_bare_command_line_is_passed_as_it_is() {
        assert_eq!(text("only this", true, Virtualization::Pvm), "only this");
    }

    #[test]
    fn too_long_is_an_error() {
        let long = "x".repeat(layout::COMMAND_LINE_BYTES);
        let error = compose(&long, true, Virtualization::Hardware, &[]).expect_err("too long");
        assert!(error.to_string().contains("2047"), "{error}");
    }
}
