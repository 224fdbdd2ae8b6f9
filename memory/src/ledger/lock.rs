//! Open-file-description locks: the kernel releases them when the last descriptor of an opened file is gone, however
//! its process ended. Locks of one opened file do not conflict, so its own are never seen by it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::codec::Record;
use super::layout::{MAXIMUM_MEMBERS, MEMBERS_OFFSET, MemberRecord, member_offset};

/// Held while somebody joins.
pub(super) const JOINING: Range<u64> = 0..1;

/// Held by the leader.
pub(super) const LEADING: Range<u64> = 1..2;

/// In all ranges of those that enter.
const ENTERING: u64 = 2;

/// Held by the member that room is made for before its guest begins. All such ranges overlap, so one is held at a time; how long
/// it is tells whose it is.
pub(super) fn entering_range(slot: u16) -> Range<u64> {
    ENTERING..ENTERING + 1 + u64::from(slot)
}

/// The slot of the member that others hold such a lock for.
pub(super) fn entering_slot(file: &File) -> io::Result<Option<u16>> {
    let lock = held_in(file, &entering_range(MAXIMUM_MEMBERS - 1))?;
    Ok(lock.and_then(|lock| u16::try_from(lock.end - ENTERING - 1).ok()))
}

/// Everything that can be locked.
const ALL: Range<u64> = 0..0;

/// Held by the member in this slot.
pub(super) fn slot_range(slot: u16) -> Range<u64> {
    member_offset(slot)..member_offset(slot + 1)
}

/// A range for the kernel, to which a length of 0 is all there is.
fn request(kind: libc::c_int, range: &Range<u64>) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start as libc::off_t,
        l_len: (range.end - range.start) as libc::off_t,
        l_pid: 0,
    }
}

fn control(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the kernel reads one live flock, and writes it for F_OFD_GETLK.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut *lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes a lock if nobody else has it; tells whether it did.
pub(super) fn try_lock(file: &File, range: &Range<u64>) -> io::Result<bool> {
    match control(file, libc::F_OFD_SETLK, &mut request(libc::F_WRLCK, range)) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a lock back.
pub(super) fn unlock(file: &File, range: &Range<u64>) -> io::Result<()> {
    control(file, libc::F_OFD_SETLK, &mut request(libc::F_UNLCK, range))
}

/// One of the locks that others have in a range, cut to it. Takes none, so nobody is ever disturbed by it.
fn held_in(file: &File, range: &Range<u64>) -> io::Result<Option<Range<u64>>> {
    let mut lock = request(libc::F_WRLCK, range);
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    if libc::c_int::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = lock.l_start as u64;
    let end = if lock.l_len == 0 { u64::MAX } else { start.saturating_add(lock.l_len as u64) };
    Ok(Some(start.max(range.start)..end.min(range.end)))
}

/// Whether others have a lock in this range.
pub(super) fn is_held(file: &File, range: &Range<u64>) -> io::Result<bool> {
    Ok(held_in(file, range)?.is_some())
}

/// Whether others have any lock at all: members, of whichever version they are.
pub(super) fn is_any_held(file: &File) -> io::Result<bool> {
    is_held(file, &ALL)
}

/// Slots that others hold, in order: few calls where few do.
pub(super) fn held_slots(file: &File) -> io::Result<Vec<u16>> {
    let mut held = Vec::new();
    let mut ranges = vec![0..MAXIMUM_MEMBERS];
    while let Some(slots) = ranges.pop() {
        if slots.is_empty() {
            continue;
        }
        let bytes = member_offset(slots.start)..member_offset(slots.end);
        let Some(lock) = held_in(file, &bytes)? else { continue };
        let slot_of = |offset: u64| ((offset - MEMBERS_OFFSET) / MemberRecord::BYTES as u64) as u16;
        let (first, last) = (slot_of(lock.start), slot_of(lock.end - 1));
        held.extend(first..=last);
        ranges.extend([slots.start..first, last + 1..slots.end]);
    }
    held.sort_unstable();
    Ok(held)
}
