//! The guests on their way through the demo.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::account::Account;
use super::acts::{ACTS, ARRIVAL_SECONDS, BUDGET, Doing, FILLED, MEMORY};
use super::guest::Guest;
use super::place::Place;
use super::progress::Progress;
use crate::guest_process::merging::Merging;
use crate::guest_process::watch::{Pace, Watch};
use crate::guest_process::{Line, Lines, Said};

/// There is something to see all the while.
const PACE: Pace = Pace { interval: Duration::from_millis(400), interval_of_stops: 4 };

/// All guests. When it is dropped they end and their files are gone.
pub struct Stage {
    // Fields are dropped in this order: nobody is looked at who is waited for, and what guests leave changed is put back
    // before the record of it is gone.
    watch: Watch<Account>,
    guests: Vec<Guest>,
    merging: Option<Merging>,
    place: Place,
    start: Instant,
    lines: Receiver<Said>,
    /// Until the last guest has been started: then its end is theirs.
    sender: Option<Lines>,
    is_over: bool,
}

/// All guests have ended.
pub struct Ended<'a> {
    /// They, by name, as they arrived.
    pub guests: Vec<(&'static str, &'a Progress)>,
    /// What was seen of them.
    pub account: Account,
    /// How long it took.
    pub elapsed: Duration,
    /// There was a swap file.
    pub has_swap: bool,
    /// Equal pages were merged.
    pub merges: bool,
}

impl Ended<'_> {
    /// Every page was verified, and nothing failed.
    pub fn is_good(&self) -> bool {
        self.guests.iter().all(|(_, progress)| progress.is_good())
    }

    /// Pages that were looked at in the end.
    pub fn verified_pages(&self) -> u64 {
        self.guests.iter().map(|(_, progress)| progress.verified_pages).sum()
    }

    /// Pages that were not what they must be.
    pub fn bad_pages(&self) -> u64 {
        self.guests.iter().map(|(_, progress)| progress.bad_pages).sum()
    }
}

impl Stage {
    /// The first guest arrives.
    ///
    /// # Errors
    /// No process can be started.
    pub fn open(place: Place, merging: Option<Merging>) -> Result<Self> {
        let (sender, lines) = channel();
        let mut stage = Self {
            watch: Watch::start(PACE),
            guests: Vec::with_capacity(ACTS.len()),
            merging,
            place,
            start: Instant::now(),
            lines,
            sender: Some(sender),
            is_over: false,
        };
        stage.receive()?;
        Ok(stage)
    }

    /// Where its files are.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// True when all guests have ended.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// What was seen of the guests so far.
    pub fn account(&self) -> Account {
        self.watch.seen()
    }

    /// Goes on for about so long; `told` sees each guest that has told something.
    ///
    /// # Errors
    /// No process can be started.
    pub fn go_on(&mut self, time: Duration, mut told: impl FnMut(&Guest)) -> Result<()> {
        let deadline = Instant::now() + time;
        loop {
            self.receive()?;
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((nth, _, line)) => {
                    let guest = &mut self.guests[nth];
                    match line {
                        Line::Console(line) => guest.progress.take_line(&line),
                        Line::Complaint(line) => guest.progress.take_complaint(&line),
                        Line::End => continue,
                    }
                    told(guest);
                }
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => {
                    self.is_over = true;
                    return Ok(());
                }
            }
        }
    }

    /// Starts who is to have arrived by now.
    fn receive(&mut self) -> Result<()> {
        while let Some(sender) = &self.sender {
            let nth = self.guests.len();
            if self.start.elapsed() < Duration::from_secs((nth * ARRIVAL_SECONDS) as u64) {
                return Ok(());
            }
            let guest = Guest::start(nth, &self.place, self.merging.as_ref(), sender)?;
            self.watch.add(guest.watched());
            self.guests.push(guest);
            if self.guests.len() == ACTS.len() {
                self.sender = None;
            }
        }
        Ok(())
    }

    /// What there is to see now.
    pub fn caption(&self) -> String {
        caption(&self.guests.iter().map(|guest| (guest.act.name, guest.doing())).collect::<Vec<_>>())
    }

    /// Waits for the guests, all of which have closed their consoles.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn end(&mut self) -> Result<Ended<'_>> {
        let account = self.watch.finish();
        self.guests.iter_mut().try_for_each(Guest::wait)?;
        let guests = self.guests.iter().map(|guest| (guest.act.name, &guest.progress)).collect();
        let has_swap = self.place.swap().is_some();
        let merges = self.merging.is_some();
        Ok(Ended { guests, account, elapsed: self.start.elapsed(), has_swap, merges })
    }
}

/// In at most 80 cells.
fn caption(guests: &[(&str, Doing)]) -> String {
    let count = |wanted: &[Doing]| guests.iter().filter(|(_, doing)| wanted.contains(doing)).count();
    let working: Vec<_> = guests.iter().filter(|(_, doing)| *doing == Doing::Working).map(|(name, _)| *name).collect();
    if count(&[Doing::Verifying, Doing::Done]) > 0 {
        let done = count(&[Doing::Done]);
        format!("Every guest compares all its {FILLED} with what must be there: {done} of {} have", guests.len())
    } else if guests.len() < ACTS.len() || count(&[Doing::Booting]) > 0 {
        format!(
            "{} of {} are here; each has {MEMORY} and fills {FILLED}, all may use {BUDGET}",
            guests.len(),
            ACTS.len()
        )
    } else if working.is_empty() {
        format!("All {} are here, each filling {FILLED}; what is idle makes room", ACTS.len())
    } else {
        format!("Busy: {}; the others make room", working.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_follow_the_guests_and_fit() {
        let all = |doing| ACTS.iter().map(|act| (act.name, doing)).collect::<Vec<_>>();
        for (guests, start) in [
            (all(Doing::Filling)[..3].to_vec(), "3 of 8 are here"),
            (all(Doing::Booting), "8 of 8 are here"),
            (all(Doing::Filling), "All 8 are here"),
            (all(Doing::Idle), "All 8 are here"),
            (all(Doing::Working), "Busy: batch, web, db"),
            (all(Doing::Verifying), "Every guest compares"),
            (all(Doing::Done), "Every guest compares"),
        ] {
            let caption = caption(&guests);
            assert!(caption.starts_with(start), "{caption}");
            assert!(caption.chars().count() <= 80, "{caption}");
        }
    }
}
