//! Which page-fault machinery this host offers.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};

/// The device that lets a process without privileges handle its own kernel-mode faults (kernel 6.1 and later).
const DEVICE: &str = "/dev/userfaultfd";

/// Why no userfaultfd is to be had.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultError {
    /// Neither the device nor the system call may be used.
    #[error("{DEVICE}: {cause}: make it readable and writable for this user, or run as root")]
    Open {
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel does not let it answer for guest memory.
    #[error("{DEVICE}: registering guest memory: {cause}")]
    Register {
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel refused the handshake.
    #[error("{DEVICE}: {cause}")]
    Handshake {
        /// What the kernel said.
        cause: userfaultfd::Error,
    },
}

/// What userfaultfd can do here. A VM runs without any of it; paging guest memory needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserfaultSupport {
    /// Faults on write-protected pages are reported (kernel 5.7).
    pub write_protect: bool,
    /// Pages can be moved between mappings without a copy (`UFFDIO_MOVE`, kernel 6.8).
    pub move_pages: bool,
}

impl UserfaultSupport {
    /// Asks the kernel. Opens a userfaultfd that handles kernel-mode faults too (KVM's own accesses to guest memory are
    /// such), and closes it again.
    ///
    /// # Errors
    /// [`UserfaultError::Open`] when this process may not have one.
    pub fn probe() -> Result<Self, UserfaultError> {
        if Path::new(DEVICE).exists() {
            OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|cause| UserfaultError::Open { cause })?;
        }
        Ok(Self { write_protect: offers(FeatureFlags::PAGEFAULT_FLAG_WP)?, move_pages: offers(MOVE)? })
    }
}

/// `UFFD_FEATURE_MOVE`, which the crate does not name.
pub(crate) const MOVE: FeatureFlags = FeatureFlags::from_bits_retain(1 << 16);

/// The kernel refuses the handshake when it lacks a feature that is asked for, and says nothing else about it.
fn offers(feature: FeatureFlags) -> Result<bool, UserfaultError> {
    match open(feature) {
        Ok(_) => Ok(true),
        // Without any feature it must work: what fails then is the permission, not the feature.
        Err(_) => open(FeatureFlags::empty()).map(|_| false),
    }
}

/// Opens a userfaultfd that handles faults of the kernel's own accesses too: KVM's and those of system calls are such.
pub(crate) fn open(features: FeatureFlags) -> Result<Uffd, UserfaultError> {
    UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(features)
        .create()
        .map_err(|error| match error {
            userfaultfd::Error::OpenDevUserfaultfd(cause) => UserfaultError::Open { cause },
            cause => UserfaultError::Handshake { cause },
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_moves_pages_also_write_protects_them() {
        // The tests run as root, to whom it is never denied.
        let support = UserfaultSupport::probe().expect("userfaultfd");
        assert!(support.write_protect || !support.move_pages, "{support:?}");
        assert!(!offers(FeatureFlags::from_bits_retain(1 << 63)).expect("userfaultfd"), "no such feature");
    }
}
