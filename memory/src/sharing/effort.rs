//! How much of its CPU time a scanner uses: all while there is news, next to nothing while there is none. Pure.
//!
//! It rests between any two regions and not between whole beats: each region is a sample of all that there is, so what has
//! changed in much of guest RAM is met at once.

/// At rest it uses this part of its budget, but no less than so much of a core: below that, waking up is all it comes to.
const REST_PART: f64 = 1.0 / 50.0;
const REST_LEAST: f64 = 0.0005;

/// A stretch of visits is judged when it has seen so many pages: few enough that a stretch is short also at rest, and many
/// enough that a tenth of the regions is hardly ever missed in all the stretches until there is rest.
const STRETCH_PAGES: u64 = 4096;

/// Regions may be empty: then a stretch is so many visits.
const STRETCH_VISITS: u32 = 64;

/// One in which more than this part of the pages is news is worth the whole budget.
const NEWS_PART: u64 = 256;

/// What visits have brought. All in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Looked at.
    pub scanned_pages: u64,
    /// Given back.
    pub found_pages: u64,
    /// Merged before, and written to since.
    pub broken_pages: u64,
    /// Seen for the first time, or changed: it takes another look to know them.
    pub unsettled_pages: u64,
}

impl Seen {
    fn news_pages(&self) -> u64 {
        self.found_pages + self.broken_pages + self.unsettled_pages
    }
}

/// The part of the budget that is used: halved with each stretch that nothing comes of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Effort {
    part: f64,
    stretch: Seen,
    visits: u32,
}

impl Default for Effort {
    /// All is news at first.
    fn default() -> Self {
        Self { part: 1.0, stretch: Seen::default(), visits: 0 }
    }
}

impl Effort {
    /// The part of a budget, which is a part of a core itself, to use; above 0 and at most 1.
    pub fn part(&self, cpu_budget: f64) -> f64 {
        self.part.max(REST_LEAST / cpu_budget).min(1.0)
    }

    /// There is reason to look at everything soon.
    pub fn wake(&mut self) {
        *self = Self::default();
    }

    /// After a visit.
    pub fn note(&mut self, seen: Seen) {
        let stretch = &mut self.stretch;
        stretch.scanned_pages += seen.scanned_pages;
        stretch.found_pages += seen.found_pages;
        stretch.broken_pages += seen.broken_pages;
        stretch.unsettled_pages += seen.unsettled_pages;
        self.visits += 1;
        // Whatever else the stretch would bring: at rest, that would take long.
        let is_news = stretch.news_pages() * NEWS_PART > STRETCH_PAGES;
        if !is_news && stretch.scanned_pages < STRETCH_PAGES && self.visits < STRETCH_VISITS {
            return;
        }
        let is_news = is_news || stretch.news_pages() * NEWS_PART > stretch.scanned_pages;
        self.part = if is_news { 1.0 } else { (self.part / 2.0).max(REST_PART) };
        (self.stretch, self.visits) = (Seen::default(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: Seen = Seen { scanned_pages: 512, found_pages: 0, broken_pages: 0, unsettled_pages: 0 };

    /// The part after each of so many stretches of eight regions, one of which is as given.
    fn parts(effort: &mut Effort, stretches: usize, other: Seen) -> Vec<f64> {
        let stretch = |_| {
            (0..7).for_each(|_| effort.note(REGION));
            effort.note(other);
            effort.part(0.5)
        };
        (0..stretches).map(stretch).collect()
    }

    #[test]
    fn effort_wanes_while_nothing_is_found() {
        let mut effort = Effort::default();
        assert_eq!(parts(&mut effort, 7, REGION), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.02, 0.02]);
        assert_eq!(parts(&mut effort, 1, Seen { found_pages: 17, ..REGION }), [1.0]);
        assert_eq!(parts(&mut effort, 1, Seen { found_pages: 16, ..REGION }), [0.5]);
        assert_eq!(parts(&mut effort, 1, Seen { broken_pages: 17, ..REGION }), [1.0]);
        assert_eq!(parts(&mut effort, 2, Seen { unsettled_pages: 17, ..REGION }), [1.0, 1.0]);
        parts(&mut effort, 9, REGION);
        effort.wake();
        assert!((effort.part(0.5) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_small_budget_is_not_made_nothing_of() {
        let mut effort = Effort::default();
        parts(&mut effort, 9, REGION);
        let at_rest = [0.01, 0.05, 0.2].map(|budget| (effort.part(budget) * budget * 1e6).round() as u32);
        assert_eq!(at_rest, [500, 1000, 4000], "millionths of a core");
        assert!((effort.part(0.0001) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn news_is_worth_it_at_once() {
        let mut effort = Effort::default();
        parts(&mut effort, 9, REGION);
        effort.note(Seen { found_pages: 16, ..REGION });
        assert!((effort.part(0.5) - REST_PART).abs() < 1e-9);
        effort.note(Seen { found_pages: 1, ..REGION });
        assert!((effort.part(0.5) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_guest_that_has_left_altogether_has_nothing_to_look_at() {
        let mut effort = Effort::default();
        (0..6 * STRETCH_VISITS).for_each(|_| effort.note(Seen::default()));
        assert!((effort.part(0.5) - REST_PART).abs() < 1e-9);
    }
}
