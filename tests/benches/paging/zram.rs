//! A zram device as swap, made for a bench and taken away after it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// More than a bench pages out.
const DISK_BYTES: u64 = 512 << 20;
const PAGE_BYTES: u64 = 4096;
/// `SWAP_FLAG_PREFER` with the highest priority there is (linux/swap.h).
const PREFER_MOST: libc::c_int = 0x8000 | 0x7fff;
const CONTROL: &str = "/sys/class/zram-control";

/// The device. It goes when this is dropped, by a panic too; nobody's memory may be left in it that matters.
pub struct Zram {
    number: u32,
}

impl Zram {
    /// Makes one with LZ4, as the only swap that is used first.
    ///
    /// # Errors
    /// What the kernel said; nothing is left behind.
    pub fn swap_on() -> io::Result<Self> {
        let number = fs::read_to_string(format!("{CONTROL}/hot_add"))?;
        let number = number.trim().parse().map_err(io::Error::other)?;
        let zram = Self { number };
        zram.set("comp_algorithm", "lz4")?;
        zram.set("disksize", &DISK_BYTES.to_string())?;
        zram.write_header()?;
        let path = CString::new(zram.device().into_os_string().into_encoded_bytes())?;
        // SAFETY: a path that ends with a NUL and outlives the call.
        match unsafe { libc::swapon(path.as_ptr(), PREFER_MOST) } {
            0 => Ok(zram),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Memory that the device takes.
    pub fn used_bytes(&self) -> u64 {
        let text = fs::read_to_string(self.attribute("mm_stat")).expect("the device is there");
        // Documentation/admin-guide/blockdev/zram.rst: the third number is mem_used_total.
        text.split_whitespace().nth(2).and_then(|word| word.parse().ok()).expect("three numbers")
    }

    /// What `mkswap` writes: `union swap_header` (linux/swap.h).
    fn write_header(&self) -> io::Result<()> {
        let mut header = [0u8; PAGE_BYTES as usize];
        let last_page = (DISK_BYTES / PAGE_BYTES - 1) as u32;
        header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
        header[4086..].copy_from_slice(b"SWAPSPACE2");
        File::options().write(true).open(self.device())?.write_all_at(&header, 0)
    }

    fn device(&self) -> PathBuf {
        format!("/dev/zram{}", self.number).into()
    }

    fn attribute(&self, name: &str) -> PathBuf {
        format!("/sys/block/zram{}/{name}", self.number).into()
    }

    fn set(&self, attribute: &str, value: &str) -> io::Result<()> {
        fs::write(self.attribute(attribute), value)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.device().into_os_string().into_encoded_bytes()) {
            // SAFETY: as for swapon. It fails where that has.
            unsafe { libc::swapoff(path.as_ptr()) };
        }
        let _ = self.set("reset", "1");
        if let Err(error) = fs::write(format!("{CONTROL}/hot_remove"), self.number.to_string()) {
            eprintln!("{}: {error}: remove it by hand", self.device().display());
        }
    }
}
