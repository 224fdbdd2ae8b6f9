//! How much memory a guest works with.
//!
//! [`Tracker`] takes a sample of guest RAM aside each period and asks the pager which pages came back; [`Estimator`] makes
//! an estimate of that. Method and default figures are those of Waldspurger, Memory Resource Management in VMware ESX
//! Server, OSDI 2002, section 5.3, with what left guest RAM in the meantime added: a guest that is squeezed below its
//! working set would otherwise look satisfied. [`WriteSampler`] samples what is written beside it; where that contradicts the
//! sample, it counts.

mod estimator;
mod measurement;
mod period;
mod tracker;
mod writes;

pub use estimator::{Estimate, Estimator};
pub use tracker::{Tracker, TrackerConfig};
pub use writes::{DirtyLog, WriteSampler};
