//! How long a sampling period goes on. Pure.

use std::time::Duration;

/// A period is at most so many times as long as it is meant to be.
const STRETCH_MAX: u32 = 8;

/// Whether a period meant to be `length` is over when so much time has `passed`, in which the guest waited for so long, all
/// its CPUs together, for its own pages.
///
/// The waiting does not count: a guest that is squeezed to a twentieth of its speed touches a twentieth of what it works
/// with, would look idle, and be squeezed more. What came by then [counts at once](super::Estimator::estimate), so a longer
/// period delays only what goes down. Where several CPUs work while another waits it is longer than it need be.
pub(super) fn is_over(length: Duration, passed: Duration, waited: Duration) -> bool {
    passed.saturating_sub(waited) >= length || passed >= length.saturating_mul(STRETCH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_makes_a_period_longer_up_to_a_limit() {
        let seconds = Duration::from_secs;
        let is_over = |passed, waited| is_over(seconds(5), seconds(passed), seconds(waited));
        assert!(!is_over(4, 0) && is_over(5, 0));
        assert!(!is_over(5, 1) && is_over(6, 1));
        assert!(!is_over(39, 38) && is_over(40, 39));
        assert!(!is_over(39, 200) && is_over(40, 200), "several waited");
    }
}
