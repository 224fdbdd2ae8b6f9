//! When to do again what costs CPU time for every page there is. Pure.

use std::time::{Duration, Instant};

/// Something that is done now and then: not oftener than the CPU time it takes allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Chore {
    done: Option<Instant>,
    cost: Duration,
}

/// How often a chore may be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Terms {
    /// With at least this between two times.
    pub least: Duration,
    /// For at most this part of a core.
    pub cpu_part: f64,
}

impl Chore {
    /// Whether it may be done now.
    pub fn may(&self, now: Instant, terms: Terms) -> bool {
        let paid = Duration::try_from_secs_f64(self.cost.as_secs_f64() / terms.cpu_part).unwrap_or(Duration::MAX);
        self.done.is_none_or(|done| now.saturating_duration_since(done) >= terms.least.max(paid))
    }

    /// It was done, begun at this time and for this much CPU time.
    pub fn note(&mut self, began: Instant, cost: Duration) {
        *self = Self { done: Some(began), cost };
    }
}

/// What speaks for exchanging what is known with the other members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Pages of one's own that have become stable since the last time, or have stopped to be.
    pub turned_pages: u64,
    /// Of those, pages that may decide what is advised. Where all is advised as it is, new ones do not.
    pub pressing_pages: u64,
    /// Stable pages at the last time.
    pub stable_pages: u64,
    /// Others have published.
    pub of_others: bool,
    /// All is advised as it is.
    pub is_all_advised: bool,
}

/// Much news of one's own: this part of what the others know, and so many pages at the least.
const MUCH_PART: u64 = 64;
const MUCH_PAGES: u64 = 64;

/// How soon much news is exchanged, and for which part of the CPU budget: what others have may decide what is advised next.
const MUCH: (Duration, f64) = (Duration::from_secs(1), 1.0 / 4.0);
/// The same for anything else. In a pool of many there is always something.
const LITTLE: (Duration, f64) = (Duration::from_secs(4), 1.0 / 40.0);
/// And where it would change next to nothing.
const NEXT_TO_NOTHING: (Duration, f64) = (Duration::from_secs(10), 1.0 / 160.0);

impl News {
    /// On which terms to exchange, with this part of a core as a budget; `None` if there is nothing to tell or to learn.
    pub fn terms(&self, cpu_budget: f64) -> Option<Terms> {
        let is_much = self.pressing_pages >= MUCH_PAGES.max(self.stable_pages / MUCH_PART);
        let (least, part) = match self {
            _ if is_much => MUCH,
            Self { turned_pages: 0, of_others: false, .. } => return None,
            Self { is_all_advised: true, .. } => NEXT_TO_NOTHING,
            _ => LITTLE,
        };
        Some(Terms { least, cpu_part: part * cpu_budget })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_chore_waits_until_its_cost_is_paid() {
        let (start, mut chore) = (Instant::now(), Chore::default());
        let terms = Terms { least: SECOND, cpu_part: 0.01 };
        assert!(chore.may(start, terms));
        chore.note(start, Duration::from_millis(5));
        assert!(!chore.may(start + SECOND * 99 / 100, terms) && chore.may(start + SECOND, terms));
        // As in a guest of 64 GiB.
        chore.note(start, 2 * SECOND);
        assert!(!chore.may(start + 199 * SECOND, terms) && chore.may(start + 201 * SECOND, terms));
        assert!(!chore.may(start + 1000 * SECOND, Terms { cpu_part: 0.0, ..terms }));
    }

    #[test]
    fn much_news_is_told_sooner_than_little() {
        let news = News { turned_pages: 100, pressing_pages: 100, stable_pages: 6400, ..News::default() };
        // The CPU part in parts of a million.
        let seconds =
            |news: News| news.terms(0.05).map(|terms| (terms.least.as_secs(), (terms.cpu_part * 1e6).round() as u32));
        assert_eq!(seconds(news), Some((1, 12_500)));
        assert_eq!(seconds(News { pressing_pages: 99, ..news }), Some((4, 1250)));
        let nothing = News { turned_pages: 0, pressing_pages: 0, ..news };
        assert_eq!(seconds(nothing), None);
        assert_eq!(seconds(News { of_others: true, ..nothing }), Some((4, 1250)));
        assert_eq!(seconds(News { is_all_advised: true, ..news }), Some((1, 12_500)));
        let little = News { is_all_advised: true, pressing_pages: 99, ..news };
        assert!(seconds(little).is_some_and(|(least, part)| least == 10 && part < 1250));
        assert_eq!(seconds(News { pressing_pages: 63, stable_pages: 0, ..news }), Some((4, 1250)));
        assert_eq!(seconds(News { pressing_pages: 64, stable_pages: 0, ..news }), Some((1, 12_500)));
    }
}
