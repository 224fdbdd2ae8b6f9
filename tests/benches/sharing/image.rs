//! What Linux guests of one kernel and initramfs hold after boot that is in the files they were booted from, and in each other:
//! what mapping those files could save.

use std::collections::HashSet;
use std::fs;
use std::thread;
use std::time::Duration;

use cistern_memory::PAGE_SIZE;
use cistern_tests::guests::Guest;
use cistern_tests::sharers::Guests;
use cistern_tests::watch::Still;

use super::ram::{Page, contents};

const MEMORY: &str = "128M";

/// Linux reports pages that it freed within two seconds or so (mm/page_reporting.c).
const REPORTING: Duration = Duration::from_secs(6);

/// See the top of this file.
pub fn compare() {
    println!("\nimage: two Linux guests of {MEMORY} after boot, in MiB");
    let mut guests = Guests::new();
    for _ in 0..2 {
        guests.start_linux("echo booted; sleep 100000", &["--memory", MEMORY]);
    }
    for member in &mut guests.members {
        member.running.wait_for("a shell", |line| line.starts_with("booted"));
    }
    thread::sleep(REPORTING);
    let pids: Vec<u32> = guests.pids().collect();
    let still = Still::all(pids.iter().copied());
    let held: Vec<_> = pids.iter().map(|&pid| contents(pid).expect("guest memory can be read")).collect();
    drop(still);
    let kernel = kernel_pages(&fs::read(Guest::Vmlinux.build().expect("the kernel")).expect("it can be read"));
    let archive = fs::read(Guest::Initramfs.build().expect("the initramfs")).expect("it can be read");
    let (archive_pages, file_pages) = (pages(&archive), archived_files(&archive));
    let zero = vec![0; PAGE_SIZE as usize];
    println!(
        "  {:>6} {:>6} {:>8} {:>11} {:>18} {:>10}",
        "held", "zero", "kernel", "initramfs", "files in that", "the other"
    );
    for (number, own) in held.iter().enumerate() {
        let sum = |is_wanted: &dyn Fn(&Page) -> bool| {
            let pages: u64 = own.iter().filter(|(page, _)| is_wanted(page)).map(|(_, count)| count).sum();
            (pages * PAGE_SIZE) as f64 / 1_048_576.0
        };
        let is_in = |pages: &HashSet<Page>, page: &Page| *page != zero && pages.contains(page);
        let other = &held[1 - number];
        println!(
            "  {:>6.1} {:>6.1} {:>8.1} {:>11.1} {:>18.1} {:>10.1}",
            sum(&|_| true),
            sum(&|page| *page == zero),
            sum(&|page| is_in(&kernel, page)),
            sum(&|page| is_in(&archive_pages, page)),
            sum(&|page| is_in(&file_pages, page)),
            sum(&|page| *page != zero && other.contains_key(page)),
        );
    }
    println!("  kernel: pages of its loadable segments, as they are in the file; patched ones are not equal");
}

/// The whole pages of a file.
fn pages(bytes: &[u8]) -> HashSet<Page> {
    bytes.chunks(PAGE_SIZE as usize).map(padded).collect()
}

fn padded(bytes: &[u8]) -> Page {
    let mut page = bytes.to_vec();
    page.resize(PAGE_SIZE as usize, 0);
    page
}

/// The pages of an ELF file's loadable segments, where they are loaded (elf(5)).
fn kernel_pages(file: &[u8]) -> HashSet<Page> {
    let number = |at: usize, bytes: usize| {
        let mut all = [0; 8];
        all[..bytes].copy_from_slice(&file[at..at + bytes]);
        u64::from_le_bytes(all) as usize
    };
    let (headers, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let mut found = HashSet::new();
    for header in (0..count).map(|index| headers + index * size).filter(|&header| number(header, 4) == 1) {
        let (offset, address, bytes) = (number(header + 8, 8), number(header + 24, 8), number(header + 32, 8));
        // A segment may begin inside a page.
        let before = address % PAGE_SIZE as usize;
        let segment = [vec![0; before], file[offset..offset + bytes].to_vec()].concat();
        found.extend(pages(&segment));
    }
    found
}

/// The pages of the files in a newc archive, as a guest's page cache has them (Linux,
/// Documentation/driver-api/early-userspace/buffer-format.rst).
fn archived_files(archive: &[u8]) -> HashSet<Page> {
    const HEADER_BYTES: usize = 110;
    let (mut found, mut at) = (HashSet::new(), 0);
    while archive.get(at..at + 6) == Some(b"070701") {
        let field = |index: usize| {
            let text = str::from_utf8(&archive[at + 6 + 8 * index..][..8]).expect("fields are text");
            usize::from_str_radix(text, 16).expect("fields are hexadecimal")
        };
        let (file_bytes, name_bytes) = (field(6), field(11));
        let start = (at + HEADER_BYTES + name_bytes).next_multiple_of(4);
        found.extend(pages(&archive[start..start + file_bytes]));
        at = (start + file_bytes).next_multiple_of(4);
    }
    found
}
