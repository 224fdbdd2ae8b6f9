//! Where pages are kept after they have left guest RAM.
//!
//! - [`swap`]: contents kept in a file without a name.
//!
//! Stores know bytes, not guests. No clock runs in them: whoever stores a page says when.

mod file;
pub mod swap;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Size of a page in bytes, as an array length.
pub const PAGE_BYTES: usize = crate::PAGE_SIZE as usize;

/// The content of one page.
pub type Page = [u8; PAGE_BYTES];

/// Takes a lock whose data is consistent between any two statements of its holder, so that one who panicked there did
/// it no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
