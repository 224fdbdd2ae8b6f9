//! The process's own heap: small, since there are many processes on a host.
//!
//! By itself the C library gives each thread a heap of its own, of 130 KiB and more, and learns to keep what was freed in them
//! (mallopt(3)). The threads of a VMM allocate little and seldom at the same time.

/// Allocations of this size and above are mappings of their own, which go when they are freed: less than the buffers of the
/// pager's threads have.
const MAPPED_BYTES: libc::c_int = 64 << 10;

/// So much that is free at the heap's end stays there.
const SPARE_BYTES: libc::c_int = 16 << 10;

/// Lets all threads share one heap, and large allocations go back when they are freed. To be called before there are threads;
/// what is refused changes nothing but size.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // Set by hand it is not raised to the size of what is freed any more.
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        libc::mallopt(libc::M_TOP_PAD, SPARE_BYTES);
    }
}

/// Gives back what is free between allocations too, in whole pages: by itself the C library never does (malloc_trim(3)).
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
