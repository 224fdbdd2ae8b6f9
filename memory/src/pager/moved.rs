//! How far a move has come, where the kernel does not say.
//!
//! Linux 6.18 moves pages in batches. A batch that it had to try twice, because an entry changed under its hands, it takes for not
//! moved: the third time it finds the pages where they are to go, and says EEXIST (mm/userfaultfd.c, `move_pages`: what the
//! first try came to is not forgotten). Taken at its word, pages would be nowhere: neither where they were, nor known elsewhere.

use std::io;

use super::classify::for_each_mapped;

/// Bytes from the start of a range that are where they were to go, and where they came from no more. Nobody else maps or drops
/// pages of either range meanwhile.
///
/// # Errors
/// Those of reading the process's page map.
pub(super) fn moved_bytes(to: u64, from: u64, bytes: u64) -> io::Result<u64> {
    let mut arrived_to = to;
    for_each_mapped(to..to + bytes, |addresses| {
        if addresses.start == arrived_to {
            arrived_to = addresses.end;
        }
    })?;
    let mut left_to = from + bytes;
    for_each_mapped(from..from + bytes, |addresses| left_to = left_to.min(addresses.start))?;
    Ok((arrived_to - to).min(left_to - from))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::super::descriptor::{Descriptor, FaultPort, Progress};
    use super::*;
    use crate::mapping::Mapping;
    use crate::ram::PAGE_SIZE;
    use crate::store::PAGE_BYTES;
    use crate::userfault::UserfaultSupport;

    const PAGES: u64 = 8;
    const ROUNDS: u64 = 30_000;

    /// Two mappings whose faults are the descriptor's, the first with a page of 1s, one of 2s, and so on; `None` where pages
    /// cannot be moved.
    fn mappings() -> Option<(Descriptor, [Mapping; 2])> {
        if !UserfaultSupport::probe().expect("userfaultfd").move_pages {
            return None;
        }
        let port = Descriptor::open(true).expect("userfaultfd");
        let mappings = [(); 2].map(|()| Mapping::new((PAGES * PAGE_SIZE) as usize).expect("memory"));
        for mapping in &mappings {
            let _ = mapping.advise("MADV_NOHUGEPAGE", libc::MADV_NOHUGEPAGE);
            port.register(mapping).expect("a mapping of its own");
        }
        for page in 0..PAGES {
            let content = [page as u8 + 1; PAGE_BYTES];
            let Progress { bytes, cause } =
                port.copy(mappings[0].address() + page * PAGE_SIZE, content.as_ptr(), PAGE_SIZE);
            assert_eq!(bytes, PAGE_SIZE, "{cause:?}");
        }
        Some((port, mappings))
    }

    #[test]
    fn what_has_moved_is_told_from_what_has_not() {
        let Some((port, [here, there])) = mappings() else { return };
        let (here, there, all) = (here.address(), there.address(), PAGES * PAGE_SIZE);
        assert_eq!(moved_bytes(there, here, all).expect("a page map"), 0);
        assert_eq!(port.move_pages(there, here, 3 * PAGE_SIZE).bytes, 3 * PAGE_SIZE);
        assert_eq!(moved_bytes(there, here, all).expect("a page map"), 3 * PAGE_SIZE);
        assert_eq!(moved_bytes(here, there, all).expect("a page map"), 0);
        assert_eq!(moved_bytes(there, here, 2 * PAGE_SIZE).expect("a page map"), 2 * PAGE_SIZE);
        // The second is in neither place: who asks for that is not told that it has moved.
        // SAFETY: a page of a mapping of this test's.
        unsafe { libc::madvise((there + PAGE_SIZE) as *mut libc::c_void, PAGE_BYTES, libc::MADV_DONTNEED) };
        assert_eq!(moved_bytes(there, here, all).expect("a page map"), PAGE_SIZE);
    }

    #[test]
    fn no_move_is_taken_for_none_while_entries_change() {
        let Some((port, [here, there])) = mappings() else { return };
        let (start, all, stop) = (here.address(), PAGES * PAGE_SIZE, AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = port.protect(start, all);
                    let _ = port.unprotect(start, all);
                }
            });
            let mut wrong = None;
            for turn in 0..2 * ROUNDS {
                let (from, to) = if turn % 2 == 0 { (&here, &there) } else { (&there, &here) };
                let mut done = 0;
                while done < all && wrong.is_none() {
                    let Progress { bytes, cause } =
                        port.move_pages(to.address() + done, from.address() + done, all - done);
                    done += bytes;
                    let is_told =
                        bytes > 0 || cause.as_ref().is_some_and(|cause| cause.raw_os_error() == Some(libc::EAGAIN));
                    wrong = (!is_told).then(|| format!("turn {turn}, {done} of {all} bytes: {cause:?}"));
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(wrong, None);
        });
        for page in 0..PAGES {
            // SAFETY: all pages are here now, and nobody writes to them.
            let byte = unsafe { ((start + page * PAGE_SIZE) as *const u8).read_volatile() };
            assert_eq!(u64::from(byte), page + 1);
        }
    }
}
