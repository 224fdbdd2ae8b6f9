//! Kernel images: ELF vmlinux and bzImage.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use cistern_memory::Memory;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::{Address, GuestAddress};

use super::BootError;
use crate::cpu::registers::Entry;
use crate::layout;
use crate::size::Size;

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// Where and how it is entered.
    pub entry: Entry,
    /// First address behind everything it occupies before it has looked at the memory map.
    pub end: u64,
    /// The setup header, for a bzImage.
    pub setup_header: Option<setup_header>,
}

/// Offset of the 64-bit entry point in a bzImage's payload (kernel Documentation/arch/x86/boot.rst).
const BZIMAGE_ENTRY64: u64 = 0x200;
/// `XLF_KERNEL_64`: the image has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
const SETUP_HEADER_MAGIC_OFFSET: usize = 0x202;
const ELF_CLASS_OFFSET: usize = 4;
const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE_OFFSET: usize = 18;
const ELF_MACHINE_X86_64: u8 = 62;
/// Enough of a file to tell what it is.
const HEADER_BYTES: usize = 0x210;

/// Loads the image at `path` into memory whose RAM below the device gap ends at `ram_end`.
///
/// # Errors
/// [`BootError`]: the file cannot be read, is no kernel, is damaged or does not fit.
pub fn load(path: &Path, memory: &Memory, ram_end: u64) -> Result<LoadedKernel, BootError> {
    let file_error = |cause| BootError::File { what: "kernel", path: path.to_owned(), cause };
    let mut file = File::open(path).map_err(file_error)?;
    if file.metadata().map_err(file_error)?.is_dir() {
        return Err(file_error(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let mut header = Vec::with_capacity(HEADER_BYTES);
    (&mut file).take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(file_error)?;

    let image = Image { path, memory, ram_end };
    if header.starts_with(b"\x7fELF") {
        image.load_elf(&mut file, &header)
    } else if header.get(SETUP_HEADER_MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(b"HdrS")) {
        image.load_bzimage(&mut file)
    } else {
        Err(image.invalid("neither an ELF vmlinux nor a bzImage"))
    }
}

/// The image being loaded, and what it is loaded into.
struct Image<'a> {
    path: &'a Path,
    memory: &'a Memory,
    ram_end: u64,
}

impl Image<'_> {
    fn invalid(&self, reason: impl ToString) -> BootError {
        BootError::Image { path: self.path.to_owned(), reason: reason.to_string() }
    }

    fn check_fits(&self, end: u64) -> Result<(), BootError> {
        if end > self.ram_end {
            return Err(BootError::TooLarge {
                what: "kernel",
                path: self.path.to_owned(),
                needed: Size { bytes: end },
                available: Size { bytes: self.ram_end },
            });
        }
        Ok(())
    }

    fn load_elf(&self, file: &mut File, header: &[u8]) -> Result<LoadedKernel, BootError> {
        if header.get(ELF_CLASS_OFFSET) != Some(&ELF_CLASS_64)
            || header.get(ELF_MACHINE_OFFSET) != Some(&ELF_MACHINE_X86_64)
        {
            return Err(self.invalid("an ELF file, but not for 64-bit x86"));
        }
        let end = self.check_elf_segments(file, header)?;
        let loaded = Elf::load(self.memory, None, file, None).map_err(|error| self.invalid(error))?;
        let entry = self.elf_entry(&loaded)?;
        // The loader's own end leaves out segments that are all zeroes.
        Ok(LoadedKernel { entry, end: end.max(loaded.kernel_end), setup_header: None })
    }

    /// The loader copies segments wherever they say; refuse those outside RAM or on top of the boot structures, and those
    /// the file is too short for, with a message that says so. Returns the end of the last.
    fn check_elf_segments(&self, file: &mut File, header: &[u8]) -> Result<u64, BootError> {
        const PROGRAM_HEADER_BYTES: usize = 56;
        const PT_LOAD: u32 = 1;
        let truncated = || self.invalid("truncated");
        let field = |bytes: &[u8], offset: usize| -> Option<u64> {
            Some(u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
        };
        let table_offset = field(header, 32).ok_or_else(truncated)?;
        let count = header.get(56..58).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])).ok_or_else(truncated)?;
        let file_bytes = file.seek(SeekFrom::End(0)).map_err(|cause| self.invalid(cause))?;
        file.seek(SeekFrom::Start(table_offset)).map_err(|_| truncated())?;
        let (mut loads, mut last_end) = (0, 0);
        for _ in 0..count {
            let mut entry = [0; PROGRAM_HEADER_BYTES];
            file.read_exact(&mut entry).map_err(|_| truncated())?;
            if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) != PT_LOAD {
                continue;
            }
            loads += 1;
            let value = |offset| field(&entry, offset).expect("inside the program header");
            let (offset, address, in_file, in_memory) = (value(8), value(24), value(32), value(40));
            if offset.checked_add(in_file).is_none_or(|end| end > file_bytes) {
                return Err(truncated());
            }
            let end = address.checked_add(in_memory.max(in_file)).ok_or_else(|| self.invalid("segment wraps round"))?;
            self.check_fits(end)?;
            last_end = last_end.max(end);
            if address < layout::HIGH_MEMORY && in_memory.max(in_file) > 0 {
                return Err(self.invalid(format!("a segment at {address:#x}, below 1 MiB, where boot structures are")));
            }
        }
        if loads == 0 {
            return Err(self.invalid("an ELF file without anything to load"));
        }
        Ok(last_end)
    }

    /// The 64-bit entry point, when it is where something was loaded; else the PVH one, when the note is there.
    fn elf_entry(&self, loaded: &KernelLoaderResult) -> Result<Entry, BootError> {
        let address = loaded.kernel_load.raw_value();
        if (layout::HIGH_MEMORY..loaded.kernel_end).contains(&address) {
            return Ok(Entry::Linux64 { address });
        }
        match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(GuestAddress(address))
                if (layout::HIGH_MEMORY..loaded.kernel_end).contains(&address) =>
            {
                Ok(Entry::Pvh { address })
            }
            _ => Err(self.invalid(format!("entry point {address:#x} is not in a loaded segment, and no PVH note"))),
        }
    }

    fn load_bzimage(&self, file: &mut File) -> Result<LoadedKernel, BootError> {
        let loaded =
            BzImage::load(self.memory, None, file, Some(GuestAddress(layout::HIGH_MEMORY))).map_err(|error| {
                let file_bytes = file.seek(SeekFrom::End(0)).unwrap_or(0);
                match self.check_fits(layout::HIGH_MEMORY + file_bytes) {
                    Err(too_large) => too_large,
                    Ok(()) => self.invalid(error),
                }
            })?;
        let header = loaded.setup_header.expect("the bzImage loader always returns the setup header");
        let load_address = loaded.kernel_load.raw_value();
        // `syssize` counts 16-byte paragraphs of the payload.
        if loaded.kernel_end - load_address < u64::from(header.syssize) * 16 {
            return Err(self.invalid("truncated"));
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(self.invalid("a bzImage without a 64-bit entry point"));
        }
        // It unpacks itself to its preferred address and needs `init_size` bytes there.
        let unpacked = header.pref_address.max(load_address).checked_add(u64::from(header.init_size));
        let end = unpacked.ok_or_else(|| self.invalid("its header asks for more than all memory"))?;
        let end = end.max(loaded.kernel_end);
        self.check_fits(end)?;
        Ok(LoadedKernel {
            entry: Entry::Linux64 { address: load_address + BZIMAGE_ENTRY64 },
            end,
            setup_header: Some(header),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use cistern_memory::GuestRam;

    use super::*;

    const RAM_BYTES: u64 = 16 << 20;
    const CODE: u64 = 1 << 20;

    /// An ELF file with one byte of code at 1 MiB and these program headers behind its own: type, file offset, address,
    /// bytes in the file, bytes in memory.
    fn elf(segments: &[(u32, u64, u64, u64, u64)]) -> Vec<u8> {
        let mut image = vec![0; 64];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = ELF_MACHINE_X86_64;
        image[24..32].copy_from_slice(&CODE.to_le_bytes());
        image[32] = 64;
        image[54] = 56;
        image[56] = 1 + segments.len() as u8;
        let code = (1, 0, CODE, 1, 1);
        for (kind, offset, address, in_file, in_memory) in [&[code], segments].concat() {
            image.extend(kind.to_le_bytes());
            image.extend([0; 4]);
            for field in [offset, address, address, in_file, in_memory, 0] {
                image.extend(field.to_le_bytes());
            }
        }
        image
    }

    fn load_image(image: &[u8]) -> Result<LoadedKernel, BootError> {
        let ram = GuestRam::new(&[0..RAM_BYTES]).expect("RAM");
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        fs::write(file.path(), image).expect("write");
        load(file.path(), ram.memory(), RAM_BYTES)
    }

    #[test]
    fn a_segment_of_zeroes_belongs_to_the_kernel() {
        let loaded = load_image(&elf(&[(1, 0, 4 << 20, 0, 3 << 20)])).expect("a kernel");
        assert_eq!(loaded.entry, Entry::Linux64 { address: CODE });
        assert_eq!(loaded.end, 7 << 20);
    }

    #[test]
    fn absurd_headers_are_refused() {
        const LOAD: u32 = 1;
        const NOTE: u32 = 4;
        for segment in [
            (LOAD, u64::MAX, CODE, 1, 1),
            (LOAD, 0, u64::MAX, 1, 1),
            (LOAD, 0, CODE, 0, u64::MAX),
            (LOAD, 0, RAM_BYTES, 0, 1),
            (LOAD, 0, CODE - 1, 0, 1),
            (LOAD, 0, 0, 1, 0),
            (NOTE, u64::MAX, 0, 1, 0),
            (NOTE, i64::MAX as u64, 0, u64::MAX, 0),
            (NOTE, 0, 0, u64::MAX, 0),
        ] {
            assert!(load_image(&elf(&[segment])).is_err(), "{segment:x?}");
        }
        // A note whose parts are as large as they can be, behind the headers.
        let mut image = elf(&[(NOTE, 64 + 2 * 56, 0, u64::MAX, 0)]);
        image.extend([0xff; 12]);
        assert!(load_image(&image).is_err());
    }
}
