//! The block device over real files.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use cistern_devices::virtio::block::Block;
use tempfile::{NamedTempFile, TempDir};

use crate::guest::{BUFFERS, EVENT_IDX, Guest, readable, writable};

pub const HEADER: u64 = BUFFERS;
pub const STATUS: u64 = BUFFERS + 0x100;
pub const DATA: u64 = BUFFERS + 0x1000;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const FEATURE_RO: u64 = 1 << 5;
pub const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// A disk image in which sector n is full of the byte n + 1.
pub fn image(sectors: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    for sector in 0..sectors {
        file.as_file().write_all_at(&[(sector as u8).wrapping_add(1); 512], sector * 512).unwrap();
    }
    file
}

pub fn disk(path: &Path) -> Guest {
    started(Block::open(path, false).unwrap())
}

pub fn started(block: Block) -> Guest {
    let mut guest = Guest::new(Box::new(block));
    guest.start(EVENT_IDX | FEATURE_FLUSH);
    guest
}

pub fn put_header(guest: &Guest, kind: u32, sector: u64) {
    guest.put(HEADER, &kind.to_le_bytes());
    guest.put(HEADER + 4, &[0; 4]);
    guest.put(HEADER + 8, &sector.to_le_bytes());
    guest.put(STATUS, &[0xff]);
}

/// Reads sectors into DATA; the status and the length the device reported.
pub fn read(guest: &mut Guest, sector: u64, bytes: u32) -> (u8, u32) {
    put_header(guest, IN, sector);
    let written = guest.request(0, &[readable(HEADER, 16), writable(DATA, bytes), writable(STATUS, 1)]);
    (guest.get(STATUS, 1)[0], written)
}

/// A request with data from the driver.
pub fn send(guest: &mut Guest, kind: u32, sector: u64, data: &[u8]) -> u8 {
    put_header(guest, kind, sector);
    guest.put(DATA, data);
    guest.request(0, &[readable(HEADER, 16), readable(DATA, data.len() as u32), writable(STATUS, 1)]);
    guest.get(STATUS, 1)[0]
}

pub fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn requests_that_say_little_and_do_much_share_the_loop() {
    let file = image(100);
    let mut guest = disk(file.path());
    // Without event indices every event that answers something interrupts once.
    guest.start(FEATURE_FLUSH | FEATURE_WRITE_ZEROES);
    guest.put(DATA, &range(0, 100, 0));
    for (kind, data_bytes, requests, events) in [(WRITE_ZEROES, 16, 3, 3), (FLUSH, 0, 32, 2), (GET_ID, 0, 32, 1)] {
        put_header(&guest, kind, 0);
        for _ in 0..requests {
            guest.submit(0, &[readable(HEADER, 16), readable(DATA, data_bytes), writable(STATUS, 1)]);
        }
        guest.kick(0);
        guest.settle();
        assert_eq!(guest.take_used(0).len(), requests);
        assert_eq!(guest.get(STATUS, 1), [OK]);
        assert_eq!(guest.interrupts(), events, "kind {kind}");
    }
}

#[test]
fn says_what_it_is() {
    let file = image(100);
    let guest = Guest::new(Box::new(Block::open(file.path(), false).unwrap()));
    assert_eq!(guest.config(0, 8), 100_u64.to_le_bytes());
    assert_eq!(guest.config(20, 4), 512_u32.to_le_bytes());
    assert_eq!(guest.config(56, 16)[4..], [0; 12], "past its end");
    assert_eq!(guest.config(u64::MAX - 0x200, 8), [0; 8]);
    let features = guest.offered();
    assert_eq!(features & FEATURE_RO, 0);
    assert_eq!(features & FEATURE_FLUSH, FEATURE_FLUSH);
    assert_eq!(features & FEATURE_WRITE_ZEROES, FEATURE_WRITE_ZEROES);
}

#[test]
fn reads_what_is_in_the_file() {
    let file = image(100);
    let mut guest = disk(file.path());
    assert_eq!(read(&mut guest, 3, 1024), (OK, 1025));
    assert_eq!(guest.get(DATA, 512), [4; 512]);
    assert_eq!(guest.get(DATA + 512, 512), [5; 512]);
    assert_eq!(guest.get(DATA + 1024, 1), [0]);
    assert_eq!(read(&mut guest, 99, 512), (OK, 513));
    assert_eq!(guest.get(DATA, 512), [100; 512]);
    assert_eq!(read(&mut guest, 0, 0), (OK, 1));
}

#[test]
fn writes_where_it_should() {
    let file = image(100);
    let mut guest = disk(file.path());
    assert_eq!(send(&mut guest, OUT, 10, &[0xee; 1024]), OK);
    let mut content = vec![0; 100 * 512];
    file.as_file().read_exact_at(&mut content, 0).unwrap();
    for (sector, bytes) in content.chunks(512).enumerate() {
        let expected = if (10..12).contains(&sector) { 0xee } else { sector as u8 + 1 };
        assert!(bytes.iter().all(|byte| *byte == expected), "sector {sector}");
    }
    assert_eq!(send(&mut guest, FLUSH, 0, &[]), OK);
    // A driver that cannot flush: written through.
    guest.start(0);
    assert_eq!(send(&mut guest, OUT, 99, &[0xdd; 512]), OK);
    assert_eq!(send(&mut guest, WRITE_ZEROES, 0, &range(98, 1, 0)), OK);
    file.as_file().read_exact_at(&mut content[..1024], 98 * 512).unwrap();
    assert_eq!(content[..512], [0; 512]);
    assert_eq!(content[512..1024], [0xdd; 512]);
}

#[test]
fn takes_any_division_into_buffers() {
    let file = image(100);
    let mut guest = disk(file.path());
    put_header(&guest, IN, 7);
    // Header in three pieces, data and status in one and across the end of an odd piece, one of them in the other RAM.
    let written = guest.request(
        0,
        &[
            readable(HEADER, 1),
            readable(HEADER + 1, 0),
            readable(HEADER + 1, 15),
            writable(DATA, 3),
            writable(4 << 20, 500),
            writable(DATA + 0x800, 10),
        ],
    );
    assert_eq!(written, 513);
    assert_eq!(guest.get(DATA, 4), [8, 8, 8, 0]);
    assert_eq!(guest.get(4 << 20, 500), [8; 500]);
    assert_eq!(guest.get(DATA + 0x800, 11), [8, 8, 8, 8, 8, 8, 8, 8, 8, OK, 0]);
}

#[test]
fn refuses_what_is_not_on_the_disk() {
    let file = image(100);
    let mut guest = disk(file.path());
    for (sector, bytes) in
        [(100, 512), (99, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (1 << 63, 512), (0, 511), (0, 513)]
    {
        assert_eq!(read(&mut guest, sector, bytes), (IOERR, 0), "{bytes} bytes at sector {sector}");
        assert_eq!(send(&mut guest, OUT, sector, &vec![0xee; bytes as usize]), IOERR);
    }
    assert_eq!(file.as_file().metadata().unwrap().len(), 100 * 512);
    assert!(!guest.transport.is_broken());
    assert_eq!(send(&mut guest, 77, 0, &[]), UNSUPP);
    assert_eq!(read(&mut guest, 0, 512).0, OK);
}

#[test]
fn a_file_cut_short_gives_errors_and_no_stale_length() {
    let file = image(100);
    let mut guest = disk(file.path());
    file.as_file().set_len(50 * 512 + 100).unwrap();
    assert_eq!(read(&mut guest, 49, 512), (OK, 513));
    assert_eq!(read(&mut guest, 50, 512), (IOERR, 100), "what there was of it");
    assert_eq!(read(&mut guest, 60, 512), (IOERR, 0));
}

#[test]
fn names_itself() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("my disk-1.img");
    File::create(&path).unwrap().set_len(4096).unwrap();
    let mut guest = disk(&path);
    put_header(&guest, GET_ID, 0);
    guest.request(0, &[readable(HEADER, 16), writable(DATA, 20), writable(STATUS, 1)]);
    assert_eq!(guest.get(STATUS, 1), [OK]);
    assert_eq!(guest.get(DATA, 20), *b"my_disk-1.img\0\0\0\0\0\0\0");
    // A shorter buffer gets the beginning.
    guest.put(DATA, &[0; 20]);
    guest.request(0, &[readable(HEADER, 16), writable(DATA, 2), writable(STATUS, 1)]);
    assert_eq!(guest.get(DATA, 3), *b"my\0");
}

#[test]
fn discards_and_gives_the_space_back() {
    let file = image(2048);
    let mut guest = disk(file.path());
    assert_eq!(guest.offered() & FEATURE_DISCARD, FEATURE_DISCARD, "the temporary directory cannot punch holes");
    file.as_file().sync_all().unwrap();
    let before = file.as_file().metadata().unwrap().blocks();
    assert_eq!(send(&mut guest, DISCARD, 0, &[range(8, 1000, 0), range(1024, 1024, 0)].concat()), OK);
    let after = file.as_file().metadata().unwrap();
    assert!(after.blocks() < before, "{} blocks of {before} left", after.blocks());
    assert_eq!(after.len(), 2048 * 512);
    assert_eq!(read(&mut guest, 7, 512 * 3), (OK, 512 * 3 + 1));
    assert_eq!(guest.get(DATA, 512), [8; 512]);
    assert_eq!(guest.get(DATA + 512, 1024), [0; 1024]);
}

#[test]
fn writes_zeroes_with_and_without_giving_space_back() {
    let file = image(100);
    let mut guest = disk(file.path());
    assert_eq!(send(&mut guest, WRITE_ZEROES, 0, &range(10, 3, 0)), OK);
    assert_eq!(send(&mut guest, WRITE_ZEROES, 0, &range(20, 16, 1)), OK);
    let mut content = vec![0; 100 * 512];
    file.as_file().read_exact_at(&mut content, 0).unwrap();
    for (sector, bytes) in content.chunks(512).enumerate() {
        let zeroed = (10..13).contains(&sector) || (20..36).contains(&sector);
        let expected = if zeroed { 0 } else { sector as u8 + 1 };
        assert!(bytes.iter().all(|byte| *byte == expected), "sector {sector}");
    }
}

#[test]
fn writes_zeroes_by_hand_where_the_file_system_cannot() {
    // tmpfs punches holes, but has no FALLOC_FL_ZERO_RANGE.
    let file = NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().write_all_at(&vec![7; 300 * 512], 0).unwrap();
    let mut guest = disk(file.path());
    assert_eq!(send(&mut guest, WRITE_ZEROES, 0, &range(1, 298, 0)), OK);
    let mut content = vec![0; 300 * 512];
    file.as_file().read_exact_at(&mut content, 0).unwrap();
    assert!(content[..512].iter().chain(&content[299 * 512..]).all(|byte| *byte == 7));
    assert!(content[512..299 * 512].iter().all(|byte| *byte == 0));
}

#[test]
fn malformed_ranges_are_errors() {
    let file = image(100);
    let mut guest = disk(file.path());
    for (data, expected) in [
        (vec![], IOERR),
        (vec![0; 15], IOERR),
        (range(99, 2, 0), IOERR),
        (range(u64::MAX, 2, 0), IOERR),
        (range(0, u32::MAX, 0), IOERR),
        (range(0, 1, 2), UNSUPP),
        (range(0, 0, 0), OK),
    ] {
        assert_eq!(send(&mut guest, DISCARD, 0, &data), expected, "discard {data:?}");
        assert_eq!(send(&mut guest, WRITE_ZEROES, 0, &data), expected, "write zeroes {data:?}");
    }
    assert_eq!(send(&mut guest, DISCARD, 0, &range(0, 1, 1)), UNSUPP, "discard with the unmap flag");
    assert_eq!(send(&mut guest, DISCARD, 0, &range(0, 1, 0).repeat(17)), IOERR, "too many ranges");
    assert_eq!(send(&mut guest, WRITE_ZEROES, 0, &range(0, 1, 0).repeat(2)), IOERR, "too many ranges");
    assert_eq!(read(&mut guest, 0, 512).0, OK);
    assert_eq!(guest.get(DATA, 512), [1; 512], "nothing happened");
}

#[test]
fn a_request_that_cannot_be_answered_breaks_the_device() {
    let file = image(100);
    let mut guest = disk(file.path());
    for buffers in [&[readable(HEADER, 15), writable(STATUS, 1)][..], &[readable(HEADER, 16)], &[writable(STATUS, 1)]] {
        guest.start(0);
        guest.submit(0, buffers);
        guest.kick(0);
        guest.settle();
        assert!(guest.transport.is_broken(), "{buffers:?}");
    }
}

#[test]
fn read_only_disks_are_not_written() {
    let file = image(100);
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o444)).unwrap();
    let mut guest = Guest::new(Box::new(Block::open(file.path(), true).unwrap()));
    assert_eq!(guest.offered() & (FEATURE_RO | FEATURE_DISCARD | FEATURE_WRITE_ZEROES), FEATURE_RO);
    // A driver that ignores the feature gets nowhere.
    guest.start(0);
    assert_eq!(send(&mut guest, OUT, 0, &[0xee; 512]), IOERR);
    assert_eq!(send(&mut guest, DISCARD, 0, &range(0, 8, 0)), IOERR);
    assert_eq!(send(&mut guest, WRITE_ZEROES, 0, &range(0, 8, 0)), IOERR);
    assert_eq!(send(&mut guest, FLUSH, 0, &[]), OK);
    assert_eq!(read(&mut guest, 0, 512), (OK, 513));
    assert_eq!(guest.get(DATA, 512), [1; 512]);
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let file = image(1);
    // More than one event's share of bytes.
    let bytes = 700 << 10;
    file.as_file().set_len(bytes).unwrap();
    let mut guest = disk(file.path());
    for _ in 0..64 {
        put_header(&guest, IN, 0);
        guest.submit(0, &[readable(HEADER, 16), writable(4 << 20, bytes as u32), writable(STATUS, 1)]);
    }
    guest.kick(0);
    guest.turn();
    let mut used = guest.take_used(0);
    assert!((1..64).contains(&used.len()), "the other devices get their turn: {}", used.len());
    guest.settle();
    used.extend(guest.take_used(0));
    assert_eq!(used.len(), 64);
    assert!(used.iter().all(|(_, written)| u64::from(*written) == bytes + 1));
}

#[test]
fn what_cannot_be_a_disk_is_refused_with_a_line_that_says_why() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    let empty = at("empty");
    File::create(&empty).unwrap().set_len(511).unwrap();
    let pipe = at("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = |path: &Path, read_only| Block::open(path, read_only).unwrap_err().to_string();
    let say = |path: &Path, what: &str| format!("disk {}: {what}", path.display());
    for read_only in [false, true] {
        assert_eq!(error(&at("missing"), read_only), say(&at("missing"), "No such file or directory (os error 2)"));
        assert_eq!(error(directory.path(), read_only), say(directory.path(), "is a directory: give a raw image file"));
        assert!(error(&empty, read_only).starts_with(&say(&empty, "empty: ")));
        assert_eq!(error(&pipe, read_only), say(&pipe, "neither a regular file nor a block device"));
        let null = Path::new("/dev/null");
        assert_eq!(error(null, read_only), say(null, "neither a regular file nor a block device"));
    }
}

#[test]
fn one_writer_or_many_readers() {
    let file = image(100);
    let writer = Block::open(file.path(), false).unwrap();
    for read_only in [false, true] {
        let error = Block::open(file.path(), read_only).unwrap_err().to_string();
        assert!(error.contains("in use by another VM"), "{error}");
    }
    drop(writer);
    let readers = [Block::open(file.path(), true).unwrap(), Block::open(file.path(), true).unwrap()];
    assert!(Block::open(file.path(), false).is_err());
    drop(readers);
    Block::open(file.path(), false).unwrap();
}

#[test]
fn an_odd_size_is_rounded_down_and_noted() {
    let file = image(3);
    assert_eq!(Block::open(file.path(), false).unwrap().note(), None);
    file.as_file().set_len(3 * 512 + 100).unwrap();
    let block = Block::open(file.path(), false).unwrap();
    assert_eq!(block.capacity_bytes(), 3 * 512);
    assert!(block.note().unwrap().contains("the last 100 bytes"));
}
