//! How long a scanner rests between two beats. Pure.

use std::time::Duration;

/// The least rest, and the most: what has become worth finding is met within a second, since each beat sees a part of
/// everything.
const LEAST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(1);

/// A beat in which this part of the scanned pages is found is followed by the next at once.
const RICH_PART: u64 = 256;

/// What a beat has brought. All in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Beat {
    /// Looked at.
    pub scanned_pages: u64,
    /// Given back, or found to have copies.
    pub found_pages: u64,
    /// Merged before, and written to since.
    pub broken_pages: u64,
    /// Seen for the first time, or changed: it takes another look to know them.
    pub unsettled_pages: u64,
}

/// The rests between beats: doubled as long as nothing comes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    length: Duration,
}

impl Default for Rest {
    fn default() -> Self {
        Self { length: LEAST }
    }
}

impl Rest {
    /// How long to rest after a beat.
    pub fn after(&mut self, beat: Beat) -> Duration {
        let is_rich = beat.found_pages * RICH_PART > beat.scanned_pages;
        if is_rich {
            self.length = LEAST;
            return Duration::ZERO;
        }
        // What was merged in vain must be noticed soon.
        let is_unsettled = (beat.broken_pages + beat.unsettled_pages) * RICH_PART > beat.scanned_pages;
        self.length = if is_unsettled { LEAST } else { (self.length * 2).min(MOST) };
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_while_nothing_is_found() {
        let mut rest = Rest::default();
        let beat = Beat { scanned_pages: 10_000, ..Beat::default() };
        let lengths: Vec<_> = (0..6).map(|_| rest.after(beat).as_millis()).collect();
        assert_eq!(lengths, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(rest.after(Beat { found_pages: 40, ..beat }), Duration::ZERO);
        assert_eq!(rest.after(Beat { found_pages: 39, ..beat }).as_millis(), 100);
        assert_eq!(rest.after(Beat { broken_pages: 40, ..beat }).as_millis(), 50);
        assert_eq!(rest.after(Beat { unsettled_pages: 40, ..beat }).as_millis(), 50);
        // A guest that has left altogether has nothing to look at.
        assert_eq!(rest.after(Beat::default()).as_millis(), 100);
    }
}
