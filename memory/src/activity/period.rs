//! How long a sampling period goes on. Pure.

use crate::pager::Touches;

/// A period is at most so many times as long as it is meant to be.
const STRETCH_MAX: u32 = 8;

/// A period goes on while its last part brought more than this part of what the guest may be working with.
const STILL_GROWING: u64 = 20;

/// A guest that waits for its pages for more than this part of a period is short of them. One that touches a megabyte in two
/// seconds and has to wait for each page of it does for a hundredth. Of several CPUs the waits add up, and one of many that is
/// short of pages is enough.
const SHORT_PART: f64 = 0.1;

/// Whether what a guest did not touch in a period says nothing, as it waited for its pages for `waited` of that, from 0 to 1.
pub(super) fn is_short(waited: f64) -> bool {
    waited > SHORT_PART
}

/// Whether a period is over after so many times its length, of which the last part began with `before` and ended with `now`. For
/// `waited` of that, from 0 to 1, the guest waited for its pages.
///
/// A guest that is squeezed waits for its own pages most of the time. It touches a part of what it works with in a period,
/// would look idle, and be squeezed more. It shows by what comes: new pages all the time, where a guest that has what it needs
/// goes on with that. So a period lasts until little comes that had not come before, in the time that the guest had to ask for
/// it: of a slow disk's pages few can come. What came by then [counts at once](super::Estimator::estimate): a longer period
/// delays only what goes down.
pub(super) fn is_over(lengths: u32, before: &Touches, now: &Touches, waited: f64) -> bool {
    let came_pages = now.arrived_pages.saturating_sub(before.arrived_pages);
    let most_pages = now.resident_pages.saturating_add(now.arrived_pages);
    let ran = (1.0 - waited).clamp(1.0 / f64::from(STRETCH_MAX), 1.0);
    lengths >= STRETCH_MAX || (came_pages * STILL_GROWING) as f64 <= most_pages as f64 * ran
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(arrived_pages: u64) -> Touches {
        Touches { resident_pages: 1000, sampled_pages: 100, sampled_touched_pages: 10, arrived_pages }
    }

    #[test]
    fn a_guest_that_has_what_it_needs_is_seen_in_one_length() {
        assert!(is_over(1, &arrived(0), &arrived(0), 0.0));
        assert!(is_over(1, &arrived(0), &arrived(52), 0.0), "a little always comes");
        assert!(is_over(1, &Touches::default(), &Touches::default(), 1.0), "nothing is known of it");
    }

    #[test]
    fn a_tenth_of_the_time_is_much_to_wait() {
        assert!(!is_short(0.0) && !is_short(0.1) && is_short(0.11) && is_short(1.0));
    }

    #[test]
    fn a_guest_to_which_new_pages_come_is_looked_at_longer() {
        assert!(!is_over(1, &arrived(0), &arrived(500), 0.0));
        assert!(!is_over(7, &arrived(3000), &arrived(3500), 0.0));
        assert!(is_over(3, &arrived(500), &arrived(550), 0.0), "they had come before");
        assert!(is_over(8, &arrived(3000), &arrived(3500), 0.0), "not for ever");
    }

    #[test]
    fn little_is_much_for_a_guest_that_waits() {
        assert!(is_over(1, &arrived(0), &arrived(40), 0.2));
        assert!(!is_over(1, &arrived(0), &arrived(40), 0.5));
        assert!(!is_over(1, &arrived(0), &arrived(7), 1.0));
        assert!(is_over(1, &arrived(0), &arrived(6), 1.0), "as good as nothing");
        assert!(is_over(2, &arrived(500), &arrived(500), 1.0), "it waits for the same again and again");
    }

    #[test]
    fn most_of_a_random_walk_is_seen() {
        // Of 2500 pages 1000 are there; in each length a walk touches eight tenths as many as there are, by chance.
        let seen = |lengths: u32| 1.0 - (-0.8 * f64::from(lengths)).exp();
        let touches = |lengths: u32| arrived((1500.0 * seen(lengths)) as u64);
        let lengths = (1..).find(|&lengths| is_over(lengths, &touches(lengths - 1), &touches(lengths), 0.0));
        assert!(lengths.is_some_and(|lengths| lengths < STRETCH_MAX && seen(lengths) > 0.9), "{lengths:?}");
    }
}
