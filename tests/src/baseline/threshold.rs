//! When memory is reclaimed, and how much: kswapd's thresholds, with a budget for a zone.

/// kswapd is woken when less is free than the low watermark and goes on to the high one (kernel mm/page_alloc.c); the parts of
/// the budget are those between which the pool's own manager works, so that neither side has less to work with.
pub(super) const LOW_PERCENT: u64 = 4;
pub(super) const HIGH_PERCENT: u64 = 6;

/// Whether reclaim is going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Threshold {
    is_awake: bool,
}

impl Threshold {
    /// Bytes to reclaim now of what is taken: none, or all down to the high watermark.
    pub fn excess_bytes(&mut self, taken_bytes: u64, budget_bytes: u64) -> u64 {
        let line_bytes = |percent| budget_bytes / 100 * (100 - percent);
        let excess_bytes = taken_bytes.saturating_sub(line_bytes(HIGH_PERCENT));
        self.is_awake = excess_bytes > 0 && (self.is_awake || taken_bytes > line_bytes(LOW_PERCENT));
        if self.is_awake { excess_bytes } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_wakes_below_the_low_watermark_and_sleeps_above_the_high_one() {
        let mut threshold = Threshold::default();
        let excess: Vec<_> =
            [93, 95, 97, 95, 94, 95, 120].map(|taken_bytes| threshold.excess_bytes(taken_bytes * 100, 10_000)).into();
        assert_eq!(excess, [0, 0, 300, 100, 0, 0, 2600]);
    }
}
