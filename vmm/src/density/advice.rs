//! What sizes a user might give guests of the same kind, from what these did.

use cistern::size::Size;
use serde::Serialize;

use super::pool::Peak;

/// What is added to what a guest worked with at most: a quarter ...
const HEADROOM_PERCENT: u64 = 25;

/// ... and no less than what a sample may be wrong: 100 pages tell the active part of a guest within 10 % of its size, 95
/// times of 100 (Waldspurger, OSDI 2002, section 5.3).
const SAMPLING_ERROR_PERCENT: u64 = 10;

/// Sizes are given in these.
const STEP_BYTES: u64 = 1 << 20;

/// With less nothing boots.
const MEMORY_BYTES_MIN: u64 = 4 << 20;

/// The part of the budget that reservations may take: what is below the highest watermark is kept free.
const RESERVABLE_PERCENT: u64 = 94;

/// What guests of one kind should be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What the busiest of them worked with at most.
    pub peak_active_bytes: u64,
    /// What any of them held at most: a guest without swap of its own needs that much.
    pub peak_held_bytes: u64,
    /// For `--memory`.
    pub memory_bytes: u64,
    /// For `--reservation`.
    pub reservation_bytes: u64,
    /// They were sampled; if not, nothing was short, or not for long, and what they worked with is taken for all they held.
    pub is_sampled: bool,
}

/// Advice for each kind of guest. `kinds` are the peaks of all guests of each, in pools of this budget; guests are
/// `size_bytes` large.
pub fn advise(kinds: &[Vec<Peak>], size_bytes: u64, budget_bytes: u64) -> Vec<Option<Advice>> {
    let mut advice: Vec<_> = kinds.iter().map(|peaks| of_kind(peaks, size_bytes)).collect();
    let reserved = |advice: &[Option<Advice>]| -> u64 {
        let of = |(advice, peaks): (&Option<Advice>, &Vec<Peak>)| {
            advice.map_or(0, |advice| advice.reservation_bytes * peaks.len() as u64)
        };
        advice.iter().zip(kinds).map(of).sum()
    };
    // What does not fit is refused: each gets its part.
    let (wanted, most) = (reserved(&advice), budget_bytes / 100 * RESERVABLE_PERCENT);
    if wanted > most {
        for advice in advice.iter_mut().flatten() {
            let part = u128::from(advice.reservation_bytes) * u128::from(most) / u128::from(wanted);
            advice.reservation_bytes = part as u64 / STEP_BYTES * STEP_BYTES;
        }
    }
    advice
}

fn of_kind(peaks: &[Peak], size_bytes: u64) -> Option<Advice> {
    let is_sampled = peaks.iter().any(|peak| peak.is_sampled);
    let sampled = || peaks.iter().filter(|peak| peak.is_sampled == is_sampled);
    let peak_active_bytes = sampled().map(|peak| peak.active_bytes).max()?;
    let headroom_bytes = (peak_active_bytes * HEADROOM_PERCENT / 100).max(size_bytes * SAMPLING_ERROR_PERCENT / 100);
    let memory_bytes = (peak_active_bytes + headroom_bytes).next_multiple_of(STEP_BYTES).max(MEMORY_BYTES_MIN);
    // What a guest works with for long: with that it does not fall below its working set, whoever else is busy.
    let usual = |peak: &Peak| if is_sampled { peak.active_slow_bytes } else { peak.active_bytes };
    let mut usual: Vec<_> = sampled().map(usual).collect();
    usual.sort_unstable();
    let reservation_bytes = usual[usual.len() / 2].next_multiple_of(STEP_BYTES).min(memory_bytes);
    Some(Advice {
        peak_active_bytes,
        peak_held_bytes: peaks.iter().map(|peak| peak.touched_bytes).max()?,
        memory_bytes,
        reservation_bytes,
        is_sampled,
    })
}

/// The advice in a line.
pub fn sentence(advice: &Advice) -> String {
    let size = |bytes| Size { bytes };
    let (memory, reservation) = (size(advice.memory_bytes), size(advice.reservation_bytes));
    let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
    let held = mebibytes(advice.peak_held_bytes);
    let why = if advice.is_sampled {
        format!("works with {} MiB at most, holds {held} MiB", mebibytes(advice.peak_active_bytes))
    } else {
        format!("holds {held} MiB; was not sampled")
    };
    format!("--memory {memory} --reservation {reservation}  ({why})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn peak(active_mib: u64, slow_mib: u64) -> Peak {
        Peak {
            active_bytes: active_mib * MIB,
            active_slow_bytes: slow_mib * MIB,
            touched_bytes: 50 * MIB,
            is_sampled: true,
        }
    }

    #[test]
    fn memory_is_the_peak_and_headroom() {
        let of = |peaks: &[Peak], size_mib: u64| of_kind(peaks, size_mib * MIB).expect("there are guests");
        let advice = of(&[peak(40, 30), peak(20, 10), peak(24, 12)], 128);
        assert_eq!((advice.memory_bytes, advice.reservation_bytes), (53 * MIB, 12 * MIB), "12.8 MiB may be wrong");
        assert_eq!(of(&[peak(80, 80)], 128).memory_bytes, 100 * MIB);
        assert_eq!(of(&[peak(0, 0)], 8).memory_bytes, 4 * MIB);
        assert_eq!(of_kind(&[], 128 * MIB), None);
    }

    #[test]
    fn without_samples_it_is_what_they_hold() {
        let held = Peak { is_sampled: false, ..peak(50, 0) };
        let advice = of_kind(&[held], 64 * MIB).expect("a guest");
        assert_eq!((advice.memory_bytes, advice.reservation_bytes, advice.is_sampled), (63 * MIB, 50 * MIB, false));
        assert!(sentence(&advice).contains("not sampled"));
        // One that was sampled says more than one that was not.
        let advice = of_kind(&[held, peak(8, 4)], 64 * MIB).expect("guests");
        assert_eq!((advice.peak_active_bytes, advice.reservation_bytes), (8 * MIB, 4 * MIB));
        assert_eq!(sentence(&advice), "--memory 15M --reservation 4M  (works with 8 MiB at most, holds 50 MiB)");
    }

    #[test]
    fn reservations_fit_the_budget() {
        let kinds = [vec![peak(40, 40); 4], vec![peak(10, 10); 4], vec![]];
        let reservations = |budget_mib: u64| {
            let advice = advise(&kinds, 64 * MIB, budget_mib * MIB);
            advice.into_iter().map(|advice| advice.map(|advice| advice.reservation_bytes / MIB)).collect::<Vec<_>>()
        };
        assert_eq!(reservations(400), [Some(40), Some(10), None]);
        assert_eq!(reservations(100), [Some(18), Some(4), None], "half of it or less");
    }
}
