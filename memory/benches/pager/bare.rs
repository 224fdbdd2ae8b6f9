//! A userfaultfd and nothing else: what any pager on it pays.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use cistern_memory::PAGE_SIZE;
use cistern_memory::store::{PAGE_BYTES, Page};
use userfaultfd::{Event, FeatureFlags, RegisterMode, Uffd, UffdBuilder};

use super::guest::Guest;

/// `struct uffdio_move` (linux/userfaultfd.h), which the crate does not have.
#[repr(C)]
struct Move {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    done: i64,
}

/// `_IOWR(0xaa, 0x05, struct uffdio_move)`.
const UFFDIO_MOVE: libc::c_ulong = 3 << 30 | (size_of::<Move>() as libc::c_ulong) << 16 | 0xaa << 8 | 0x05;
/// `UFFD_FEATURE_MOVE`.
const MOVE: FeatureFlags = FeatureFlags::from_bits_retain(1 << 16);

/// What pages are copied from.
static READY: Page = [0x5a; PAGE_BYTES];

/// A descriptor and the mappings it answers for.
pub struct Bare {
    uffd: Arc<Uffd>,
}

impl Bare {
    /// Registers what is there, in the way the pager does.
    pub fn new(guests: &[&Guest]) -> Self {
        let uffd = UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            .user_mode_only(false)
            .require_features(FeatureFlags::PAGEFAULT_FLAG_WP | FeatureFlags::THREAD_ID | MOVE)
            .create()
            .expect("a userfaultfd with MOVE");
        for guest in guests {
            let (start, bytes) = (guest.address(0) as *mut libc::c_void, guest.ram.size_bytes() as usize);
            // SAFETY: all of a mapping of ours; the advice changes no content.
            assert_eq!(unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) }, 0);
            uffd.register_with_mode(start, bytes, RegisterMode::MISSING | RegisterMode::WRITE_PROTECT)
                .expect("the mapping can be registered");
        }
        Self { uffd: Arc::new(uffd) }
    }

    /// Moves pages.
    pub fn move_pages(&self, to: u64, from: u64, pages: u64) {
        let mut arguments = Move { to, from, bytes: pages * PAGE_SIZE, mode: 0, done: 0 };
        // SAFETY: the descriptor is a userfaultfd, the structure the one the request expects. It moves pages between
        // registered mappings, which nobody holds references into.
        let result = unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_MOVE, &raw mut arguments) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Maps a copy of a page that is ready.
    pub fn copy(&self, to: u64) {
        copy(&self.uffd, to);
    }

    /// Answers every fault with such a copy, on a thread of the same CPU.
    pub fn serve(&self) -> Handler {
        let (uffd, stop) = (Arc::clone(&self.uffd), Arc::new(AtomicBool::new(false)));
        let stopping = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            super::clock::stay_on_one_cpu();
            let mut poll = libc::pollfd { fd: uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // Nothing is held between two looks, so relaxed operations do.
            while !stopping.load(Ordering::Relaxed) {
                // SAFETY: one structure, as said. A wait that ends for another reason is begun anew.
                unsafe { libc::poll(&mut poll, 1, 10) };
                while let Ok(Some(Event::Pagefault { addr, .. })) = uffd.read_event() {
                    copy(&uffd, addr as u64 & !(PAGE_SIZE - 1));
                }
            }
        });
        Handler { stop, thread: Some(thread) }
    }
}

fn copy(uffd: &Uffd, to: u64) {
    // SAFETY: a page of a registered mapping, where nothing is mapped; the source lives for ever.
    unsafe { uffd.copy(READY.as_ptr().cast(), to as *mut libc::c_void, PAGE_BYTES, true) }
        .expect("the page is missing");
}

/// A thread that answers faults; ends with it.
pub struct Handler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
