//! The swap file beside plain direct I/O of the same sizes, on the same file system and in turns.
//!
//! usage: cargo bench -p cistern-memory --bench swap [-- FOLDER]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cistern_memory::store::swap::{AlignedPage, SwapFile};
use cistern_memory::store::{PAGE_BYTES, Page};

/// Pages written and read in one turn.
const PAGES: usize = 4096;
/// Turns of each, of which the median counts.
const TURNS: usize = 5;

/// Direct I/O and nothing else.
struct Plain(File);

impl Plain {
    fn new(folder: &Path) -> std::io::Result<Self> {
        let flags = libc::O_TMPFILE | libc::O_DIRECT;
        Ok(Self(OpenOptions::new().read(true).write(true).custom_flags(flags).open(folder)?))
    }

    /// Gives all blocks back, so that every turn allocates as the swap file does.
    fn empty(&self) {
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::ftruncate(self.0.as_raw_fd(), 0) }, 0);
    }
}

fn bytes_of(pages: &mut [AlignedPage]) -> &mut [u8] {
    // SAFETY: an AlignedPage is its page without padding, and the borrow is passed on.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), size_of_val(pages)) }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = folder.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let plain = Plain::new(&folder)?;
    let swap = SwapFile::open(&folder, 1 << 30)?;
    println!("{} MiB a turn in {}, {:?}", (PAGES * PAGE_BYTES) >> 20, folder.display(), swap.statistics().caching);
    println!("{:>6} {:>5} {:>12} {:>12} {:>11}", "KiB", "", "plain MB/s", "swap MB/s", "swap/plain");

    let mut pages = vec![AlignedPage::default(); PAGES];
    for (index, page) in pages.iter_mut().enumerate() {
        for (position, byte) in page.0.iter_mut().enumerate() {
            *byte = (index * 31 + position * 7) as u8;
        }
    }
    for run in [1, 16, 64, 256] {
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..TURNS {
            plain.empty();
            let bytes = bytes_of(&mut pages);
            let chunk = run * PAGE_BYTES;
            let (write, outcome) = timed(|| {
                (0..)
                    .zip(bytes.chunks(chunk))
                    .try_for_each(|(index, part)| plain.0.write_all_at(part, index * chunk as u64))
            });
            outcome?;
            times[0].push(write);

            let (write, slots) = timed(|| {
                let mut slots = Vec::with_capacity(PAGES);
                for part in pages.chunks(run) {
                    slots.extend(swap.write(&part.iter().map(|page| &page.0).collect::<Vec<&Page>>())?);
                }
                Ok::<_, Box<dyn std::error::Error>>(slots)
            });
            let slots = slots?;
            times[1].push(write);

            let mut back = vec![AlignedPage::default(); run];
            let (read, outcome) = timed(|| {
                (0..PAGES / run)
                    .try_for_each(|index| plain.0.read_exact_at(bytes_of(&mut back), (index * chunk) as u64))
            });
            outcome?;
            times[2].push(read);

            let (read, outcome) = timed(|| {
                slots.chunks(run).try_for_each(|part| {
                    swap.read(part[0], &mut back.iter_mut().map(|page| &mut page.0).collect::<Vec<_>>())
                })
            });
            outcome?;
            times[3].push(read);
            for slot in slots {
                swap.free(slot)?;
            }
            swap.punch_holes(1);
        }
        let rates = times.map(|times| (PAGES * PAGE_BYTES) as f64 / 1e6 / median(times).as_secs_f64());
        for (what, plain, swap) in [("write", rates[0], rates[1]), ("read", rates[2], rates[3])] {
            println!("{:>6} {what:>5} {plain:>12.0} {swap:>12.0} {:>11.2}", run * 4, swap / plain);
        }
    }
    Ok(())
}
