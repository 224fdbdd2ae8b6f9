//! Whose turn it is to be made room for before its guest begins.

use std::time::{Duration, Instant};

use crate::ledger::{Entry, MAXIMUM_BYTES, Membership, PoolView, StandingOrders};

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
    /// When the last order was given that it has left to others.
    declined_ns: u64,
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

    /// How far a member that `enters` or waits, and holds `own_bytes`, grows of what it may. Whose turn it is not leaves the rest
    /// to the others, who may have it by the time its turn comes; of a pool at rest it takes all.
    pub fn taken_bytes(&mut self, standing: &StandingOrders, enters: bool, own_bytes: u64) -> u64 {
        let grow_to_bytes = standing.orders.grow_to_bytes;
        if grow_to_bytes >= MAXIMUM_BYTES {
            return grow_to_bytes;
        }
        if !enters {
            self.declined_ns = standing.time_ns;
        }
        if standing.time_ns > self.declined_ns { grow_to_bytes } else { grow_to_bytes.min(own_bytes) }
    }
}

/// Whether the turn is that of a member that is stopped: its lock is held as long as its process is there.
fn is_abandoned(membership: &Membership, view: &PoolView) -> bool {
    let Some(slot) = membership.entering() else { return false };
    let holder = view.members.iter().find(|member| member.id.slot == slot);
    holder.is_some_and(|member| Duration::from_millis(member.report_age_ms) >= SILENCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{JoinRequest, Ledger, Level, Orders, Report, SettingsRequest, now_ns};

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

    #[test]
    fn what_was_left_to_others_is_not_taken_later() {
        let told = |time_ns, grow_to_bytes| StandingOrders {
            time_ns,
            leader_pid: 1,
            level: Level::High,
            free_bytes: 0,
            orders: Orders { grow_to_bytes, ..Orders::default() },
        };
        let mut turn = Turn::default();
        assert_eq!(turn.taken_bytes(&told(1, 9), true, 2), 9);
        assert_eq!(turn.taken_bytes(&told(2, 9), false, 2), 2);
        assert_eq!(turn.taken_bytes(&told(2, 9), true, 2), 2);
        assert_eq!(turn.taken_bytes(&told(3, 1), false, 2), 1);
        assert_eq!(turn.taken_bytes(&told(4, 9), true, 2), 9);
        assert_eq!(turn.taken_bytes(&told(5, MAXIMUM_BYTES), false, 2), MAXIMUM_BYTES);
    }
}
