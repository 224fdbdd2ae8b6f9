//! The kernel's numbers of threads.

/// The calling thread's.
pub fn current() -> i32 {
    // SAFETY: a plain system call that cannot fail.
    unsafe { libc::gettid() }
}
