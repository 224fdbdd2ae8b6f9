//! What is to be made of ways that were measured beside each other.

use cistern_tests::baseline::{Baseline, Swap};

use crate::way::Way;

/// What differs by less than this may as well be equal: a touch or two of goodput, and a search finds guests to within so many
/// percent.
const ALIKE_PERCENT: f64 = 2.0;

/// What a way came to: the more the better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// So many guests keep their goodput.
    Guests(u64),
    /// So much of its goodput, in percent, keeps the worst of a number that was given.
    WorstPercent(f64),
}

impl Score {
    fn value(self) -> f64 {
        match self {
            Self::Guests(guests) => guests as f64,
            Self::WorstPercent(percent) => percent,
        }
    }

    /// How many times as much; `None` where the other is next to nothing.
    pub fn times(self, other: Self) -> Option<f64> {
        let is_nothing = match other {
            Self::Guests(guests) => guests == 0,
            Self::WorstPercent(percent) => percent < ALIKE_PERCENT,
        };
        (!is_nothing).then(|| self.value() / other.value())
    }

    fn is_like(self, other: Self) -> bool {
        let difference = (self.value() - other.value()).abs();
        match self {
            Self::WorstPercent(_) => difference < ALIKE_PERCENT,
            Self::Guests(_) => difference * 100.0 < ALIKE_PERCENT * other.value(),
        }
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Guests(guests) => write!(formatter, "{guests} guests"),
            Self::WorstPercent(percent) => write!(formatter, "{percent:.0} % of its goodput for the worst"),
        }
    }
}

/// The best of ours, or of Linux's; the first of equal ones.
pub fn best(measured: &[(Way, Score)], is_ours: bool) -> Option<(Way, Score)> {
    let those = measured.iter().filter(|(way, _)| way.is_ours() == is_ours).copied();
    those.reduce(|best, next| if next.1.value() > best.1.value() { next } else { best })
}

/// What KSM adds to each zswap that was measured with it and without: of what, and the verdict.
pub fn of_merging(measured: &[(Way, Score)]) -> Vec<(String, String)> {
    let of = |way| measured.iter().find(|(other, _)| *other == Way::Linux(way)).map(|(_, score)| *score);
    let verdict = |merging: Baseline| {
        let alone = of(Baseline { merges: false, ..merging })?;
        let score = of(merging)?;
        let words = if score.is_like(alone) {
            "KSM changes nothing"
        } else if score.value() > alone.value() {
            "KSM helps"
        } else {
            "KSM costs more than it saves"
        };
        Some((format!("{merging} by the same without KSM"), format!("{score} by {alone}: {words}")))
    };
    let merging = Baseline::grid().into_iter().filter(|way| way.merges && matches!(way.swap, Swap::Zswap { .. }));
    merging.filter_map(verdict).collect()
}

/// How many times as much, in words.
pub fn in_words(times: Option<f64>) -> String {
    times.map_or_else(|| "-".to_owned(), |times| format!("{times:.2}"))
}

/// The one in the middle, of at least one; the lower of two.
pub fn median(mut guests: Vec<u64>) -> u64 {
    guests.sort_unstable();
    guests[(guests.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(name: &str) -> Way {
        name.parse().expect("it is one")
    }

    #[test]
    fn the_best_of_either_side_is_found() {
        let scores = [("ours", 43), ("zram", 26), ("ours-packed", 66), ("zswap-20-lzo+ksm", 54), ("file", 54)];
        let measured = scores.map(|(name, guests)| (way(name), Score::Guests(guests)));
        let (ours, theirs) = (best(&measured, true).expect("two"), best(&measured, false).expect("three"));
        assert_eq!((ours.0, theirs.0), (way("ours-packed"), way("zswap-20-lzo+ksm")));
        assert_eq!(ours.1.times(theirs.1), Some(66.0 / 54.0));
        assert_eq!(best(&measured[..1], false), None);
        assert_eq!(Score::Guests(3).times(Score::Guests(0)), None, "a way may hold nobody");
        let percent = Score::WorstPercent;
        assert_eq!([percent(80.0).times(percent(0.3)), percent(0.2).times(percent(0.0))], [None; 2]);
        assert_eq!(percent(0.0).times(percent(95.0)).map(|times| in_words(Some(times))), Some("0.00".to_owned()));
    }

    #[test]
    fn ksm_beside_zswap_has_a_verdict() {
        let verdict = |alone, merging| {
            let measured = [(way("zswap-20-lzo"), alone), (way("zswap-20-lzo+ksm"), merging), (way("zram+ksm"), alone)];
            of_merging(&measured)
        };
        let [packs, nothing, costs] = [54, 48, 40].map(|guests| verdict(Score::Guests(48), Score::Guests(guests)));
        assert_eq!(packs[0].0, "zswap-20-lzo+ksm by the same without KSM");
        assert_eq!(packs[0].1, "54 guests by 48 guests: KSM helps");
        assert!(verdict(Score::Guests(54), Score::Guests(55))[0].1.ends_with("KSM changes nothing"));
        assert!(nothing[0].1.ends_with("KSM changes nothing") && costs[0].1.ends_with("KSM costs more than it saves"));
        let percent = verdict(Score::WorstPercent(96.0), Score::WorstPercent(97.4));
        assert_eq!(percent.len(), 1, "zram is not asked");
        assert!(percent[0].1.ends_with("96 % of its goodput for the worst: KSM changes nothing"), "{percent:?}");
        assert!(of_merging(&[(way("zswap-20-lzo+ksm"), Score::Guests(5))]).is_empty(), "there is nothing beside it");
    }

    #[test]
    fn medians() {
        assert_eq!([median(vec![5]), median(vec![9, 3, 5]), median(vec![1, 2])], [5, 5, 1]);
    }
}
