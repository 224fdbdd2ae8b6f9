//! Where pages are kept after they have left guest RAM.
//!
//! - [`zero`]: a page that is all zero needs no home.
//! - [`duplicate`]: which contents are stored, and how many pages share each; it gives a stored page its lasting name.
//! - [`compressed`]: contents kept compressed in memory; [`codec`] compresses them.
//! - [`swap`]: contents kept in a file without a name.
//!
//! Stores know bytes, not guests. No clock runs in them: whoever stores a page says when.

pub mod codec;
pub mod compressed;
pub mod duplicate;
mod file;
mod home;
#[cfg(test)]
pub(crate) mod samples;
pub mod swap;
pub mod zero;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use home::Home;

/// Size of a page in bytes, as an array length.
pub const PAGE_BYTES: usize = crate::PAGE_SIZE as usize;

/// The content of one page.
pub type Page = [u8; PAGE_BYTES];

/// Takes a lock whose data is consistent between any two statements of its holder, so that one who panicked there did
/// it no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
