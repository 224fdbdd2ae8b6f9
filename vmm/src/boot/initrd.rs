//! The initial RAM disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use cistern_memory::{Memory, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use super::kernel::LoadedKernel;
use crate::size::Size;

/// Highest address of an initrd that kernels without a setup header are sure to accept: they run before paging is set up
/// for more than the first GiB, less what Linux reserves at its end (`INITRD_ADDR_MAX` of old boot protocols).
const DEFAULT_ADDRESS_MAX: u64 = 0x37ff_ffff;

/// Reads the file into the top of low RAM, behind the kernel. Returns where it lies, page aligned at the start.
///
/// # Errors
/// [`BootError::File`], or [`BootError::TooLarge`] when it does not fit between the kernel and the end of RAM.
pub fn load(path: &Path, memory: &Memory, kernel: &LoadedKernel, ram_end: u64) -> Result<Range<u64>, BootError> {
    let failed = |cause| BootError::File { what: "initrd", path: path.to_owned(), cause };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let kind = if metadata.is_dir() { "is a directory" } else { "is not a regular file" };
        return Err(failed(io::Error::other(kind)));
    }
    let bytes = metadata.len();
    let address_max = kernel.setup_header.map_or(DEFAULT_ADDRESS_MAX, |header| u64::from(header.initrd_addr_max));
    let top = ram_end.min(address_max.saturating_add(1));
    let bottom = kernel.end.next_multiple_of(PAGE_SIZE);
    let available = top.saturating_sub(bottom);
    let too_large = BootError::TooLarge {
        what: "initrd",
        path: path.to_owned(),
        needed: Size { bytes },
        available: Size { bytes: available },
    };
    let Some(start) = top.checked_sub(bytes).map(|start| start / PAGE_SIZE * PAGE_SIZE) else {
        return Err(too_large);
    };
    if start < bottom {
        return Err(too_large);
    }
    if bytes == 0 {
        return Err(failed(io::Error::other("is empty")));
    }
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, bytes as usize)
        .map_err(|error| failed(io::Error::other(error)))?;
    Ok(start..start + bytes)
}
