//! A userfaultfd over a VM's memory that answers each fault with a copy of the page as it was: what any pager pays.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use cistern_memory::PAGE_SIZE;
use userfaultfd::{Event, FeatureFlags, RegisterMode, UffdBuilder};
use vm_memory::{Bytes, GuestAddress};

use super::vm::{FILL_BYTES, Vm};

/// The fill of a VM, answered for; ended when dropped, which must be after the VM.
pub struct Bare {
    start: u64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bare {
    /// Remembers the fill at this guest address and answers for it from now on. Nobody writes it any more.
    pub fn serve(vm: &Vm, fill_base: u64) -> Self {
        let mut pages = vec![0; FILL_BYTES as usize];
        vm.ram.memory().read_slice(&mut pages, GuestAddress(fill_base)).expect("the fill is RAM");
        // The probe's memory begins at 0, so there is one region.
        let start = vm.ram.regions()[0].host_address + fill_base;
        let uffd = UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            .user_mode_only(false)
            .require_features(FeatureFlags::PAGEFAULT_FLAG_WP | FeatureFlags::THREAD_ID)
            .create()
            .expect("a userfaultfd");
        // SAFETY: a part of guest RAM, which is a mapping of this process; the advice changes no content.
        let advised = unsafe { libc::madvise(start as *mut libc::c_void, FILL_BYTES as usize, libc::MADV_NOHUGEPAGE) };
        assert_eq!(advised, 0);
        let mode = RegisterMode::MISSING | RegisterMode::WRITE_PROTECT;
        uffd.register_with_mode(start as *mut libc::c_void, FILL_BYTES as usize, mode).expect("it can be registered");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        // It has the descriptor: closed earlier, waiters would wake onto zeroes.
        let thread = thread::spawn(move || {
            let mut poll = libc::pollfd { fd: uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // Nothing is held between two looks, so relaxed operations do.
            while !stopping.load(Ordering::Relaxed) {
                // SAFETY: one structure, as said. A wait that ends for another reason is begun anew.
                unsafe { libc::poll(&mut poll, 1, 10) };
                while let Ok(Some(Event::Pagefault { addr, .. })) = uffd.read_event() {
                    let to = addr as u64 & !(PAGE_SIZE - 1);
                    let from = &pages[(to - start) as usize..][..PAGE_SIZE as usize];
                    // SAFETY: a page of the registered range, where nothing is mapped; the copy is a whole page too.
                    let copied = unsafe { uffd.copy(from.as_ptr().cast(), to as *mut libc::c_void, from.len(), true) };
                    // Two faults on one page may be on their way: the second finds it there, and is woken.
                    if copied.is_err() {
                        uffd.wake(to as *mut libc::c_void, from.len()).expect("it is registered");
                    }
                }
            }
        });
        Self { start, stop, thread: Some(thread) }
    }

    /// Drops all pages of the fill.
    pub fn drop_pages(&self) {
        // SAFETY: a part of guest RAM that is answered for: the guest finds the same content when it looks again.
        let dropped =
            unsafe { libc::madvise(self.start as *mut libc::c_void, FILL_BYTES as usize, libc::MADV_DONTNEED) };
        assert_eq!(dropped, 0);
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
