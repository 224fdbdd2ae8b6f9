//! Whose turn it is to be made room for before its guest begins.

use std::time::{Duration, Instant};

use crate::ledger::{Entry, Membership};

/// How long one member keeps the others waiting: one that can never have what it needs may not stop all.
const MOST: Duration = Duration::from_secs(30);

/// How long it leaves the turn to others after that.
const ASIDE: Duration = Duration::from_secs(1);

/// A member's turn; it is over when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Turn {
    entry: Option<(Entry, Instant)>,
    /// Until when it stands aside.
    aside: Option<Instant>,
}

impl Turn {
    /// Whether it is this member's turn now. Does not wait.
    pub fn has_come(&mut self, membership: &Membership, now: Instant) -> bool {
        if self.entry.as_ref().is_some_and(|(_, since)| now.duration_since(*since) >= MOST) {
            (self.entry, self.aside) = (None, Some(now + ASIDE));
        }
        if self.entry.is_none() && self.aside.is_none_or(|until| now >= until) {
            self.entry = membership.try_enter().map(|entry| (entry, now));
        }
        self.entry.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{JoinRequest, Ledger, SettingsRequest};

    #[test]
    fn a_turn_that_leads_to_nothing_passes_to_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let join = |name: &str| {
            let request = JoinRequest {
                name: name.to_owned(),
                settings: SettingsRequest::default(),
                default_budget_bytes: 256 << 20,
                size_bytes: 64 << 20,
                reservation_bytes: 0,
                limit_bytes: 64 << 20,
                shares: 100,
            };
            Ledger::join(folder.path(), &request).expect("a pool")
        };
        let (one, two) = (join("one"), join("two"));
        let (mut of_one, mut of_two) = (Turn::default(), Turn::default());
        let start = Instant::now();
        assert!(of_one.has_come(&one, start) && !of_two.has_come(&two, start));
        assert!(of_one.has_come(&one, start + MOST - ASIDE) && !of_two.has_come(&two, start + MOST - ASIDE));
        // Aside, though nobody has taken it yet.
        assert!(!of_one.has_come(&one, start + MOST));
        assert!(!of_one.has_come(&one, start + MOST + ASIDE / 2));
        assert!(of_two.has_come(&two, start + MOST + ASIDE / 2));
        assert!(!of_one.has_come(&one, start + MOST + ASIDE));
        drop(of_two);
        assert!(of_one.has_come(&one, start + MOST + ASIDE));
    }
}
