//! Who may hold how much memory, who gives, and by which means: numbers in, decisions out.
//!
//! Nothing here has a clock or does I/O, so that whoever decides for a pool can be tested without one. The order of
//! decisions in a round: [`watermark`] says how short memory is, [`allocator`] what each member may hold, [`ladder`]
//! what each is told to do about it; [`brake`] keeps reclaim from costing more than it gives, and [`tiers`] says which of a
//! VM's own pages are worth least, [`turnover`] what memory is worth to the others.

pub mod allocator;
pub mod brake;
pub mod ladder;
pub mod tiers;
pub mod turnover;
pub mod watermark;

#[cfg(test)]
mod tests;
