//! The pager's threads: named, small, and missed when they die.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::PagerFailure;
use super::paged::Paged;

/// Stack of a pager thread: a few pages' worth of buffers, and no recursion.
const STACK_BYTES: usize = 256 << 10;

/// Starts a thread. One that panics leaves pages in flight for ever, so the VM cannot go on.
pub(super) fn start(
    name: &str,
    paged: &Arc<Paged>,
    body: impl FnOnce(&Arc<Paged>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let paged = Arc::clone(paged);
    let owned_name = name.to_owned();
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(move || {
        if panic::catch_unwind(AssertUnwindSafe(|| body(&paged))).is_err() {
            paged.fail(&PagerFailure::Thread { name: owned_name });
        }
    })
}
