//! What the integration tests and benches of Cistern share.

pub mod process;
pub mod smaps;
