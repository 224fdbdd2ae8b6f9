//! One request of a block driver: header, data, status byte (virtio 1.2, section 5.2.6).

use std::io;

use cistern_memory::{GuestRam, RamError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::{Disk, is_unsupported};
use super::{EVENT_BYTES_MAX, SECTOR_BYTES, SEGMENT_BYTES_MAX, SEGMENTS_MAX};
use crate::virtio::device::DeviceError;
use crate::virtio::scatter::{Buffers, Scatter};

/// Most data of a read or write, which follows from what the configuration space says.
const DATA_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;

/// Data moved, and memory pinned, at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What a driver may ask for in one discard or write-zeroes request.
pub(super) struct Limits {
    /// Sectors of one segment.
    pub sectors: u32,
    /// Segments of one request.
    pub segments: u32,
}

impl Limits {
    /// Punching holes changes metadata only.
    pub const DISCARD: Self = Self { sectors: 4 << 21, segments: 16 };
    /// Zeroes may have to be written: as much as a write may carry.
    pub const WRITE_ZEROES: Self = Self { sectors: (DATA_BYTES_MAX / SECTOR_BYTES) as u32, segments: 1 };
}

/// Why a request failed, as its status byte says.
enum Failure {
    Io,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if is_unsupported(&error) { Self::Unsupported } else { Self::Io }
    }
}

impl From<RamError> for Failure {
    // The buffers cannot be kept in guest RAM while the kernel uses them.
    fn from(_: RamError) -> Self {
        Self::Io
    }
}

/// What a request came to.
pub(super) struct Answer {
    /// Bytes written to the driver's buffers.
    pub written_bytes: u32,
    /// Bytes of data that could have been moved meanwhile: at least what was, much more where little is said and much done.
    pub work_bytes: u64,
}

/// Carries out a request and writes its status.
///
/// # Errors
/// When the chain has no place for a header or a status: then there is no way to answer.
pub(super) fn answer(
    disk: &Disk,
    serial: &[u8],
    write_through: bool,
    ram: &GuestRam,
    mut buffers: Buffers,
) -> Result<Answer, DeviceError> {
    let buffer_bytes = (buffers.readable.len() + buffers.writable.len()) as u64;
    let mut header = [0; 16];
    if buffers.readable.read(&mut header) < header.len() {
        return Err(DeviceError::Request("header shorter than 16 bytes"));
    }
    let Some(data_bytes) = buffers.writable.len().checked_sub(1) else {
        return Err(DeviceError::Request("no room for the status byte"));
    };
    let mut status = buffers.writable.split_off(data_bytes);
    let (mut data_in, mut data_out) = (buffers.writable, buffers.readable);

    let [k0, k1, k2, k3, ..] = header;
    let sector = u64::from_le_bytes(header[8..].try_into().expect("half of the header"));
    let kind = u32::from_le_bytes([k0, k1, k2, k3]);
    let work_bytes = match kind {
        VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_DISCARD => EVENT_BYTES_MAX / 16,
        VIRTIO_BLK_T_WRITE_ZEROES => EVENT_BYTES_MAX,
        _ => buffer_bytes,
    };
    let result = match kind {
        VIRTIO_BLK_T_IN => read(disk, sector, ram, &mut data_in),
        VIRTIO_BLK_T_OUT => write(disk, sector, ram, &mut data_out, write_through),
        VIRTIO_BLK_T_FLUSH => disk.flush().map_err(Failure::from),
        VIRTIO_BLK_T_GET_ID => {
            data_in.write(serial);
            Ok(())
        }
        VIRTIO_BLK_T_DISCARD => clear(disk, &mut data_out, &Limits::DISCARD, write_through, discard_segment),
        VIRTIO_BLK_T_WRITE_ZEROES => clear(disk, &mut data_out, &Limits::WRITE_ZEROES, write_through, zero_segment),
        _ => Err(Failure::Unsupported),
    };
    let status_code = match result {
        Ok(()) => VIRTIO_BLK_S_OK,
        Err(Failure::Io) => VIRTIO_BLK_S_IOERR,
        Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
    };
    status.write(&[status_code as u8]);
    // The length counts what is written without a gap from the start; the status is behind all of the data.
    let written_bytes = data_bytes - data_in.len() + usize::from(data_in.is_empty());
    Ok(Answer { written_bytes: u32::try_from(written_bytes).unwrap_or(u32::MAX), work_bytes })
}

fn read(disk: &Disk, sector: u64, ram: &GuestRam, data: &mut Scatter) -> Result<(), Failure> {
    let offset = checked_offset(disk, sector, data.len() as u64)?;
    in_pieces(offset, data, |offset, piece| {
        let _pins = piece.pin(ram)?;
        Ok(disk.read(offset, piece)?)
    })
}

fn write(disk: &Disk, sector: u64, ram: &GuestRam, data: &mut Scatter, write_through: bool) -> Result<(), Failure> {
    if disk.is_read_only() {
        return Err(Failure::Io);
    }
    let offset = checked_offset(disk, sector, data.len() as u64)?;
    in_pieces(offset, data, |offset, piece| {
        let _pins = piece.pin(ram)?;
        Ok(disk.write(offset, piece, write_through)?)
    })
}

/// Moves the data of a request piece by piece: what is pinned at a time must not push everything else out of memory. What
/// was moved is consumed from `data`, also on error.
fn in_pieces(
    mut offset: u64,
    data: &mut Scatter,
    mut transfer: impl FnMut(u64, &mut Scatter) -> Result<(), Failure>,
) -> Result<(), Failure> {
    while !data.is_empty() {
        let mut piece = data.clone();
        piece.truncate(PIECE_BYTES);
        let bytes = piece.len();
        let outcome = transfer(offset, &mut piece);
        let moved = bytes - piece.len();
        data.advance(moved);
        offset += moved as u64;
        outcome?;
    }
    Ok(())
}

/// The byte offset of a read or write that is whole sectors, inside the disk and not longer than agreed.
fn checked_offset(disk: &Disk, sector: u64, bytes: u64) -> Result<u64, Failure> {
    if !bytes.is_multiple_of(SECTOR_BYTES) || bytes > DATA_BYTES_MAX {
        return Err(Failure::Io);
    }
    checked_range(disk, sector, bytes / SECTOR_BYTES)
}

/// The byte offset of a range of sectors inside the disk.
fn checked_range(disk: &Disk, sector: u64, sectors: u64) -> Result<u64, Failure> {
    match sector.checked_add(sectors) {
        Some(end) if end <= disk.sectors() => Ok(sector * SECTOR_BYTES),
        _ => Err(Failure::Io),
    }
}

/// A discard or write-zeroes request: a list of ranges.
fn clear(
    disk: &Disk,
    data: &mut Scatter,
    limits: &Limits,
    write_through: bool,
    apply: impl Fn(&Disk, u64, u64, u32) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if disk.is_read_only() {
        return Err(Failure::Io);
    }
    let mut segment = [0; 16];
    if data.is_empty()
        || !data.len().is_multiple_of(segment.len())
        || data.len() / segment.len() > limits.segments as usize
    {
        return Err(Failure::Io);
    }
    while data.read(&mut segment) == segment.len() {
        let [_, _, _, _, _, _, _, _, n0, n1, n2, n3, flags @ ..] = segment;
        let sector = u64::from_le_bytes(segment[..8].try_into().expect("half of the segment"));
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        if sectors > limits.sectors {
            return Err(Failure::Io);
        }
        let offset = checked_range(disk, sector, sectors.into())?;
        if sectors != 0 {
            apply(disk, offset, u64::from(sectors) * SECTOR_BYTES, u32::from_le_bytes(flags))?;
        }
    }
    if write_through {
        disk.flush()?;
    }
    Ok(())
}

fn discard_segment(disk: &Disk, offset: u64, bytes: u64, flags: u32) -> Result<(), Failure> {
    if flags != 0 {
        return Err(Failure::Unsupported);
    }
    Ok(disk.punch(offset, bytes)?)
}

fn zero_segment(disk: &Disk, offset: u64, bytes: u64, flags: u32) -> Result<(), Failure> {
    match flags {
        0 => Ok(disk.zero(offset, bytes)?),
        VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP if disk.can_discard() => Ok(disk.punch(offset, bytes)?),
        VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Ok(disk.zero(offset, bytes)?),
        _ => Err(Failure::Unsupported),
    }
}
