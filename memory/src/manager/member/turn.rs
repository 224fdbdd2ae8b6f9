//! Whose turn it is to be made room for before its guest begins.

use std::time::{Duration, Instant};

use crate::ledger::{Entry, Membership, PoolView};

/// How long one member keeps the others waiting without being given anything: one that can never have what it needs may not
/// stop all.
const MOST: Duration = Duration::from_secs(30);

/// How long it leaves the turn to others after that.
const ASIDE: Duration = Duration::from_secs(1);

/// Whoever has said nothing for so long is stopped, and not made room for: it publishes every 20 ms.
const SILENCE: Duration = Duration::from_secs(5);

/// A member's turn; it is over when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Turn {
    entry: Option<(Entry, Given)>,
    /// Until when it stands aside.
    aside: Option<Instant>,
}

/// The most it was given, and when.
#[derive(Debug)]
struct Given {
    bytes: u64,
    at: Instant,
}

impl Turn {
    /// Whether it is the turn now of this member, which was given `given_bytes` so far. Does not wait.
    pub fn has_come(&mut self, membership: &Membership, view: &PoolView, given_bytes: u64, now: Instant) -> bool {
        if let Some((_, given)) = &mut self.entry {
            if given_bytes > given.bytes {
                *given = Given { bytes: given_bytes, at: now };
            }
            if now.duration_since(given.at) >= MOST {
                (self.entry, self.aside) = (None, Some(now + ASIDE));
            }
        }
        if self.aside.is_some_and(|until| now < until) {
            return false;
        }
        if self.entry.is_none() {
            self.entry = membership.try_enter().map(|entry| (entry, Given { bytes: given_bytes, at: now }));
        }
        self.entry.is_some() || is_abandoned(membership, view)
    }
}

/// Whether the turn is that of a member that is stopped: its lock is held as long as its process is there.
fn is_abandoned(membership: &Membership, view: &PoolView) -> bool {
    let Some(slot) = membership.entering() else { return false };
    let silence = view.members.iter().find(|member| member.id.slot == slot).map(|member| member.report_age_ms);
    silence.is_some_and(|silence_ms| u128::from(silence_ms) >= SILENCE.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{JoinRequest, Ledger, Report, SettingsRequest, now_ns};

    fn join(pool: &std::path::Path, name: &str) -> Membership {
        let request = JoinRequest {
            name: name.to_owned(),
            settings: SettingsRequest::default(),
            default_budget_bytes: 256 << 20,
            size_bytes: 64 << 20,
            reservation_bytes: 0,
            limit_bytes: 64 << 20,
            shares: 100,
        };
        Ledger::join(pool, &request).expect("a pool")
    }

    fn publish(member: &Membership, time_ns: u64) {
        member.publish(&Report { time_ns, ..Report::default() }).expect("a ledger");
    }

    #[test]
    fn a_turn_that_leads_to_nothing_passes_to_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, two) = (join(folder.path(), "one"), join(folder.path(), "two"));
        [&one, &two].into_iter().for_each(|member| publish(member, now_ns()));
        let view = one.members().expect("a ledger");
        let (mut of_one, mut of_two) = (Turn::default(), Turn::default());
        let start = Instant::now();
        assert!(of_one.has_come(&one, &view, 5, start) && !of_two.has_come(&two, &view, 5, start));
        // It goes on as long as something is given.
        let given = start + MOST - ASIDE;
        assert!(of_one.has_come(&one, &view, 6, given) && !of_two.has_come(&two, &view, 5, given));
        assert!(of_one.has_come(&one, &view, 6, start + MOST) && !of_two.has_come(&two, &view, 5, start + MOST));
        // Aside, though nobody has taken it yet.
        let aside = given + MOST;
        assert!(!of_one.has_come(&one, &view, 6, aside));
        assert!(!of_one.has_come(&one, &view, 5, aside + ASIDE / 2));
        assert!(of_two.has_come(&two, &view, 5, aside + ASIDE / 2));
        assert!(!of_one.has_come(&one, &view, 5, aside + ASIDE));
        drop(of_two);
        assert!(of_one.has_come(&one, &view, 5, aside + ASIDE));
    }

    #[test]
    fn who_is_stopped_stops_nobody_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, two) = (join(folder.path(), "one"), join(folder.path(), "two"));
        publish(&two, now_ns());
        let come = |turn: &mut Turn, member: &Membership| {
            turn.has_come(member, &two.members().expect("a ledger"), 5, Instant::now())
        };
        let (mut of_one, mut of_two) = (Turn::default(), Turn::default());
        publish(&one, now_ns());
        assert!(come(&mut of_one, &one) && !come(&mut of_two, &two));
        publish(&one, now_ns() - 2 * SILENCE.as_nanos() as u64);
        assert!(come(&mut of_two, &two));
        // It has gone on.
        publish(&one, now_ns());
        assert!(!come(&mut of_two, &two));
    }
}
