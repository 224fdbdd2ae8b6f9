//! What the pager costs, without a guest: pages go out and come back for a plain thread.
//!
//! Times are the best of several rounds. What one thread does is its CPU time; what two do together is the time it takes.
//! Needs a kernel with `UFFDIO_MOVE`.

mod back;
mod bare;
mod bookkeeping;
mod clock;
mod guest;
#[path = "../common/mix.rs"]
mod mix;
mod out;
mod table;

fn main() {
    out::move_out();
    out::reclaim();
    back::first_touch();
    back::refault();
    bookkeeping::report();
}
