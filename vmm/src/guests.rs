//! Guests that come with the program.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A kernel embedded in the binary.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, in one line.
    pub description: &'static str,
    /// The ELF image.
    pub image: &'static [u8],
}

/// The bare-metal test kernel (`kernels/probe`).
pub const PROBE: Guest = Guest {
    name: "probe",
    description: "bare-metal test kernel: fills memory, walks it, verifies every page",
    image: include_bytes!(concat!(env!("OUT_DIR"), "/probe.elf")),
};

/// All embedded guests.
pub const GUESTS: [Guest; 1] = [PROBE];

/// The embedded guest of this name.
pub fn find(name: &str) -> Option<&'static Guest> {
    GUESTS.iter().find(|guest| guest.name == name)
}

impl Guest {
    /// Writes the image to a file, executable as a kernel image is by custom.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(path)?.write_all(self.image)
    }
}
