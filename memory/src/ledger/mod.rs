//! The ledger: the shared file through which the members of a pool see each other. It decides nothing.

mod record;
mod settings;
mod view;

use std::time::Duration;

pub use record::{
    BalloonHealth, Identity, Level, MAXIMUM_BYTES, MAXIMUM_NAME_BYTES, MAXIMUM_SHARES, MemberId, Orders, Report, Round,
    StandingOrders,
};
pub use settings::{DEFAULT_IDLE_TAX_PERCENT, DEFAULT_WATERMARKS_MILLIPERCENT, PoolSettings, SettingsRequest};
pub use view::{MemberView, PoolView};

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of this host share; [`std::time::Instant`] does not show its
/// value.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}
