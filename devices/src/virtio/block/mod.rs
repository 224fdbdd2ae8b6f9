//! The block device (virtio 1.2, section 5.2) over a raw image file or a host block device.

mod direct;
mod disk;
mod request;
mod transfer;

use std::path::Path;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::device::{DeviceError, Driver, VirtioDevice, copy_config};
pub use disk::BlockError;
use disk::Disk;
use request::Limits;

/// The unit in which drivers address a disk.
const SECTOR_BYTES: u64 = 512;

/// One queue of requests.
const QUEUE_SIZES: &[u16] = &[256];

/// Most data segments of a request, so that one fits the queue with its header and status even without an indirect table.
const SEGMENTS_MAX: u32 = 254;

/// Largest segment. With [`SEGMENTS_MAX`] it bounds what a request can make the event loop do.
const SEGMENT_BYTES_MAX: u32 = 256 << 10;

/// Data moved in one event before the other devices get their turn.
const EVENT_BYTES_MAX: u64 = 16 << 20;

/// Length of the configuration space up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// A disk of the guest.
#[derive(Debug)]
pub struct Block {
    name: String,
    disk: Disk,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
}

impl Block {
    /// Opens a raw image, or a host block device, as a disk. Takes an advisory lock, so that an image one VM writes is
    /// not used by another; it lasts as long as the device.
    ///
    /// # Errors
    /// A [`BlockError`], one line that names the file.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self, BlockError> {
        Self::open_as(path.as_ref(), read_only, false)
    }

    /// As [`Block::open`], with transfers that go past the host's page cache: what the guest caches takes no memory of the
    /// host's a second time. The host still caches blocks that the guest reads or writes in part.
    ///
    /// # Errors
    /// Also [`BlockError::NoDirect`].
    pub fn open_direct(path: impl AsRef<Path>, read_only: bool) -> Result<Self, BlockError> {
        Self::open_as(path.as_ref(), read_only, true)
    }

    fn open_as(path: &Path, read_only: bool, direct: bool) -> Result<Self, BlockError> {
        let disk = Disk::open(path, read_only, direct)?;
        Ok(Self { name: format!("disk {}", path.display()), serial: serial(path), disk })
    }

    /// What the user should know about the image, if anything: bytes at its end that the guest cannot see.
    pub fn note(&self) -> Option<String> {
        let rest = self.disk.unusable_bytes();
        (rest != 0)
            .then(|| format!("{}: the last {rest} bytes are not a whole sector: invisible to the guest", self.name))
    }

    /// The size the guest sees, a multiple of 512.
    pub fn capacity_bytes(&self) -> u64 {
        self.disk.sectors() * SECTOR_BYTES
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.disk.sectors().to_le_bytes()); // capacity
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes()); // size_max
        put(12, &SEGMENTS_MAX.to_le_bytes()); // seg_max
        // Always a sector, however large the blocks below are: an image's partition tables count in it.
        put(20, &(SECTOR_BYTES as u32).to_le_bytes()); // blk_size
        if let Some(block_bytes) = self.disk.block_bytes() {
            let sectors = block_bytes / SECTOR_BYTES as u32;
            put(24, &[sectors.ilog2() as u8]); // physical_block_exp
            put(26, &u16::try_from(sectors).unwrap_or(0).to_le_bytes()); // min_io_size
        }
        if self.disk.can_discard() {
            put(36, &Limits::DISCARD.sectors.to_le_bytes()); // max_discard_sectors
            put(40, &Limits::DISCARD.segments.to_le_bytes()); // max_discard_seg
            put(44, &8u32.to_le_bytes()); // discard_sector_alignment: file systems free 4 KiB blocks
        }
        if !self.disk.is_read_only() {
            put(48, &Limits::WRITE_ZEROES.sectors.to_le_bytes()); // max_write_zeroes_sectors
            put(52, &Limits::WRITE_ZEROES.segments.to_le_bytes()); // max_write_zeroes_seg
            put(56, &[self.disk.can_discard().into()]); // write_zeroes_may_unmap
        }
        config
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE;
        if self.disk.block_bytes().is_some() {
            features |= 1 << VIRTIO_BLK_F_TOPOLOGY;
        }
        if self.disk.is_read_only() {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        }
        if self.disk.can_discard() {
            features |= 1 << VIRTIO_BLK_F_DISCARD;
        }
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config(), offset, data);
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        // A driver that cannot flush expects written data to be safe (virtio 1.2, section 5.2.6.2).
        let write_through = !driver.has_feature(VIRTIO_BLK_F_FLUSH);
        let memory = driver.ram.memory();
        let requests = &mut driver.queues[queue];
        let mut event_bytes = 0;
        loop {
            while let Some(buffers) = requests.pop_buffers(memory)? {
                let head_index = buffers.head_index;
                let answer = request::answer(&self.disk, &self.serial, write_through, &driver.ram, buffers)?;
                requests.add_used(memory, head_index, answer.written_bytes)?;
                event_bytes += answer.work_bytes;
                if event_bytes >= EVENT_BYTES_MAX {
                    requests.yield_event();
                }
            }
            requests.notify(memory, &driver.interrupt)?;
            if !requests.enable_kicks(memory)? {
                return Ok(());
            }
        }
    }
}

/// What GET_ID answers: the image's file name, cut to what fits, in characters udev takes as they are.
fn serial(path: &Path) -> [u8; VIRTIO_BLK_ID_BYTES as usize] {
    let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for (to, from) in serial.iter_mut().zip(name.chars()) {
        *to = if from.is_ascii_alphanumeric() || "-_.".contains(from) { from as u8 } else { b'_' };
    }
    serial
}
