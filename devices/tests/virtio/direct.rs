//! Disks with direct I/O: they answer as any other disk does, and leave the host's page cache alone.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cistern_devices::virtio::block::Block;
use proptest::prelude::*;
use tempfile::NamedTempFile;

use crate::block::{
    self, DATA, DISCARD, FLUSH, HEADER, IN, IOERR, OK, OUT, STATUS, WRITE_ZEROES, put_header, range, read, send,
    started,
};
use crate::guest::{Buffer, Guest, RAM, WRITE, readable, writable};

const FEATURE_TOPOLOGY: u64 = 1 << 10;

/// No whole number of 4 KiB blocks, and no whole number of sectors.
const IMAGE_BYTES: u64 = 100 * 512 + 100;

/// Where the pieces of the data go: one each [`PIECE_BYTES`].
const PIECES: u64 = RAM[1].start;
const PIECE_BYTES: u64 = 0x4000;
const PIECES_MAX: usize = 6;

fn direct(path: &Path) -> Guest {
    started(Block::open_direct(path, false).unwrap())
}

/// Files on the file system of the temporary files, where the kernel insists on its alignment, and in memory, where it
/// does not say what alignment it wants.
fn pairs() -> [(NamedTempFile, NamedTempFile); 2] {
    let image = |file: NamedTempFile| {
        let content: Vec<u8> = (0..IMAGE_BYTES).map(|position| ((position * 7) >> 3) as u8).collect();
        file.as_file().write_all_at(&content, 0).unwrap();
        file
    };
    let anywhere = || image(NamedTempFile::new().unwrap());
    let in_memory = || image(NamedTempFile::new_in("/dev/shm").unwrap());
    [(anywhere(), anywhere()), (in_memory(), in_memory())]
}

#[derive(Debug, Clone)]
struct Request {
    kind: u32,
    sector: u64,
    sectors: u64,
    /// How far from a page's start the pieces begin.
    shift: u64,
    /// Where the data is cut into pieces, in no order.
    cuts: Vec<usize>,
}

impl Request {
    fn buffers(&self) -> Vec<Buffer> {
        let bytes = self.sectors as usize * 512;
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| *cut.min(&bytes)).chain([0, bytes]).collect();
        cuts.sort_unstable();
        let flags = if self.kind == IN { WRITE } else { 0 };
        let lengths = cuts.windows(2).map(|ends| (ends[1] - ends[0]) as u32);
        let address = |number| PIECES + number * PIECE_BYTES + self.shift;
        (0..).zip(lengths).map(|(number, bytes)| Buffer { address: address(number), bytes, flags }).collect()
    }

    /// Carries the request out; status, length and what is in memory then.
    fn send(&self, guest: &mut Guest, number: usize) -> (u8, u32, Vec<u8>) {
        put_header(guest, self.kind, self.sector);
        let pieces = PIECES_MAX * PIECE_BYTES as usize;
        let content: Vec<u8> = (0..pieces).map(|position| ((position * (number + 3)) >> 2) as u8).collect();
        guest.put(PIECES, &content);
        let mut buffers = vec![readable(HEADER, 16)];
        match self.kind {
            IN | OUT => buffers.extend(self.buffers()),
            DISCARD | WRITE_ZEROES => {
                let range = range(self.sector, self.sectors as u32, 0);
                guest.put(DATA, &range);
                buffers.push(readable(DATA, range.len() as u32));
            }
            _ => {}
        }
        buffers.push(writable(STATUS, 1));
        let written = guest.request(0, &buffers);
        (guest.get(STATUS, 1)[0], written, guest.get(PIECES, pieces))
    }
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let kind = prop::sample::select(vec![IN, IN, IN, IN, OUT, OUT, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES]);
    // Whole pages more often than chance would have it.
    let sector = prop_oneof![0..104_u64, (0..13_u64).prop_map(|page| page * 8)];
    let sectors = prop_oneof![0..24_u64, (0..3_u64).prop_map(|pages| pages * 8)];
    let shift = prop::sample::select(vec![0, 0, 0, 4, 512, 1, 2048]);
    let cut = prop_oneof![0..24 * 512_usize, (0..24_usize).prop_map(|sectors| sectors * 512), Just(4096), Just(8192)];
    let cuts = prop::collection::vec(cut, 0..PIECES_MAX);
    let request = (kind, sector, sectors, shift, cuts).prop_map(|(kind, sector, sectors, shift, cuts)| Request {
        kind,
        sector,
        sectors,
        shift,
        cuts,
    });
    prop::collection::vec(request, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 512 }))]

    #[test]
    fn answers_are_those_of_any_disk(requests in requests()) {
        for (plain_file, direct_file) in pairs() {
            let (mut plain, mut direct) = (block::disk(plain_file.path()), direct(direct_file.path()));
            for (number, request) in requests.iter().enumerate() {
                let (expected, got) = (request.send(&mut plain, number), request.send(&mut direct, number));
                prop_assert_eq!((expected.0, expected.1), (got.0, got.1), "request {}", number);
                prop_assert!(expected.2 == got.2, "memory after request {}", number);
            }
            let (expected, got) = (std::fs::read(plain_file.path()), std::fs::read(direct_file.path()));
            prop_assert!(expected.unwrap() == got.unwrap(), "the files differ in {}", direct_file.path().display());
        }
    }
}

#[test]
fn a_driver_without_flush_writes_through() {
    for (_, file) in pairs() {
        let mut guest = direct(file.path());
        guest.start(0);
        // A whole block, and less than one.
        assert_eq!(send(&mut guest, OUT, 8, &[0xee; 4096]), OK);
        assert_eq!(send(&mut guest, OUT, 17, &[0xdd; 512]), OK);
        let content = std::fs::read(file.path()).unwrap();
        assert_eq!(content[8 * 512..16 * 512], [0xee; 4096]);
        assert_eq!(content[17 * 512..18 * 512], [0xdd; 512]);
    }
}

#[test]
fn a_file_cut_short_gives_errors_and_no_stale_length() {
    for (_, file) in pairs() {
        let mut guest = direct(file.path());
        file.as_file().set_len(48 * 512 + 100).unwrap();
        assert_eq!(read(&mut guest, 40, 4096), (OK, 4097));
        assert_eq!(read(&mut guest, 48, 4096), (IOERR, 100), "what there was of it");
        assert_eq!(read(&mut guest, 64, 4096), (IOERR, 0));
    }
}

/// Pages of the file that are in the host's page cache.
fn cached_pages(file: &File) -> usize {
    let bytes = file.metadata().unwrap().len() as usize;
    let mut residency = vec![0_u8; bytes.div_ceil(4096)];
    // SAFETY: a new mapping that nothing refers to, asked about as long as it is there; a byte for each of its pages.
    unsafe {
        let address = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(address, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        assert_eq!(libc::mincore(address, bytes, residency.as_mut_ptr()), 0, "{}", io::Error::last_os_error());
        libc::munmap(address, bytes);
    }
    residency.iter().filter(|page| *page & 1 != 0).count()
}

#[test]
fn the_page_cache_is_left_alone() {
    // Where the build is: the temporary files may be in memory, which is all cache.
    let file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.as_file().write_all_at(&[1; 1 << 18], 0).unwrap();
    let forget = || {
        file.as_file().sync_all().unwrap();
        // SAFETY: the call takes no pointers.
        unsafe { libc::posix_fadvise(file.as_file().as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    };
    // Buffers that start on a page, and that start anywhere.
    let use_it = |guest: &mut Guest| {
        for shift in [0, 1] {
            put_header(guest, IN, 0);
            guest.request(0, &[readable(HEADER, 16), writable(DATA + shift, 0x1_0000), writable(STATUS, 1)]);
            assert_eq!(guest.get(STATUS, 1), [OK]);
            put_header(guest, OUT, 256);
            guest.request(0, &[readable(HEADER, 16), readable(DATA + shift, 0x1_0000), writable(STATUS, 1)]);
            assert_eq!(guest.get(STATUS, 1), [OK]);
        }
    };
    let cached_after = |block: Block| {
        forget();
        use_it(&mut started(block));
        cached_pages(file.as_file())
    };
    assert!(cached_after(Block::open(file.path(), false).unwrap()) >= 32, "an ordinary disk is cached");
    assert_eq!(cached_after(Block::open_direct(file.path(), false).unwrap()), 0);
}

#[test]
fn says_how_large_its_blocks_are() {
    // Files in memory do not say what they want, so whole pages are assumed.
    let file = NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let guest = Guest::new(Box::new(Block::open_direct(file.path(), true).unwrap()));
    assert_eq!(guest.offered() & FEATURE_TOPOLOGY, FEATURE_TOPOLOGY);
    assert_eq!(guest.config(20, 4), 512_u32.to_le_bytes(), "partition tables count in sectors");
    assert_eq!(guest.config(24, 8), [3, 0, 8, 0, 0, 0, 0, 0]);
    let guest = Guest::new(Box::new(Block::open(file.path(), true).unwrap()));
    assert_eq!(guest.offered() & FEATURE_TOPOLOGY, 0);
    assert_eq!(guest.config(24, 8), [0; 8]);
}

#[test]
fn files_without_direct_io_are_refused_with_a_line_that_says_why() {
    let path = "/sys/class/net/lo/mtu";
    Block::open(path, true).unwrap();
    let error = Block::open_direct(path, true).unwrap_err().to_string();
    let expected = "disk /sys/class/net/lo/mtu: its file system has no direct I/O: leave out ',direct'";
    assert!(error.starts_with(expected), "{error}");
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn one_writer_however_it_writes() {
    let (_, file) = &pairs()[0];
    let writer = Block::open_direct(file.path(), false).unwrap();
    for open in [Block::open, Block::open_direct] {
        let error = open(file.path(), true).unwrap_err().to_string();
        assert!(error.contains("in use by another VM"), "{error}");
    }
    drop(writer);
    Block::open_direct(file.path(), false).unwrap();
}
