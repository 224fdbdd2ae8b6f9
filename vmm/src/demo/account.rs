//! What each mechanism gave, from what the guests' VMMs say of themselves.

use cistern_memory::PAGE_SIZE;
use serde::Serialize;
use serde_json::Value;

use crate::guest_process::held::{Held, number};
use crate::guest_process::still::Taken;
use crate::guest_process::watch::{Look, Observer};

/// What each mechanism gave since the start, in bytes of guest memory: a page that left several times counts each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Given {
    /// Freed by guests and reported.
    pub reported_bytes: u64,
    /// Host memory that inflating balloons has freed.
    pub balloon_bytes: u64,
    /// Zero pages.
    pub zero_bytes: u64,
    /// Pages whose content was stored already.
    pub duplicate_bytes: u64,
    /// Pages that were compressed.
    pub compressed_bytes: u64,
    /// Pages written to the swap file.
    pub swapped_bytes: u64,
}

impl Given {
    /// From the answer to `GET /memory`.
    pub fn of(memory: &Value) -> Self {
        let pages = |home: &str| number(&memory["evictions"][home]) * PAGE_SIZE;
        Self {
            reported_bytes: number(&memory["reported_bytes"]),
            balloon_bytes: number(&memory["pool"]["balloon_given_bytes"]),
            zero_bytes: pages("zero"),
            duplicate_bytes: pages("duplicate"),
            compressed_bytes: pages("compressed"),
            swapped_bytes: pages("swapped") + pages("written_back"),
        }
    }

    fn add(&mut self, other: &Self) {
        self.reported_bytes += other.reported_bytes;
        self.balloon_bytes += other.balloon_bytes;
        self.zero_bytes += other.zero_bytes;
        self.duplicate_bytes += other.duplicate_bytes;
        self.compressed_bytes += other.compressed_bytes;
        self.swapped_bytes += other.swapped_bytes;
    }
}

/// One guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct GuestAccount {
    /// The most host memory it took.
    pub peak_bytes: u64,
    /// What it gave, when last asked.
    pub given: Given,
}

/// All guests together.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Times it was looked at all guests together.
    pub looks: u64,
    /// Host memory they took when last looked.
    pub taken_bytes: u64,
    /// The most they took.
    pub peak_bytes: u64,
    /// When most of their memory was away.
    pub fullest: Held,
    /// The most that was merged at a moment, and the most that this saved.
    pub most_merged_bytes: u64,
    pub merging_saved_most_bytes: u64,
    /// Each of them, as they arrived.
    pub guests: Vec<GuestAccount>,
}

impl Observer for Account {
    fn take(&mut self, look: &Look) {
        let bytes = |taken: &Option<Taken>| taken.map(|taken| taken.pss_bytes);
        self.take_memory(&look.taken.iter().map(bytes).collect::<Vec<_>>());
        self.take_answers(&look.answers);
    }
}

impl Account {
    /// Takes what each guest takes of the host at one moment; `None` for who is gone.
    pub fn take_memory(&mut self, bytes: &[Option<u64>]) {
        self.guests.resize(self.guests.len().max(bytes.len()), GuestAccount::default());
        for (guest, bytes) in self.guests.iter_mut().zip(bytes) {
            guest.peak_bytes = guest.peak_bytes.max(bytes.unwrap_or(0));
        }
        self.taken_bytes = bytes.iter().flatten().sum();
        self.peak_bytes = self.peak_bytes.max(self.taken_bytes);
        self.looks += 1;
    }

    /// Takes what the VMMs answered; `None` for who did not.
    pub fn take_answers(&mut self, answers: &[Option<Value>]) {
        self.guests.resize(self.guests.len().max(answers.len()), GuestAccount::default());
        let mut held = Held::default();
        for (guest, answer) in self.guests.iter_mut().zip(answers) {
            let Some(memory) = answer else { continue };
            guest.given = Given::of(memory);
            held.add(&Held::of(memory));
        }
        self.most_merged_bytes = self.most_merged_bytes.max(held.merged_bytes);
        self.merging_saved_most_bytes = self.merging_saved_most_bytes.max(held.merging_saves_bytes);
        if held.away_bytes() > self.fullest.away_bytes() {
            self.fullest = held;
        }
    }

    /// What all gave.
    pub fn given(&self) -> Given {
        let mut sum = Given::default();
        self.guests.iter().for_each(|guest| sum.add(&guest.given));
        sum
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(pages: u64) -> Option<Value> {
        Some(json!({
            "pages": {"untouched": 1, "zero": pages, "duplicate": 2, "compressed": 3, "swapped": 4, "resident": 5,
                      "aside": 6},
            "compressed": {"held_bytes": 7}, "balloon_inflated_bytes": 8, "reported_bytes": 9,
            "evictions": {"zero": pages, "duplicate": 10, "compressed": 11, "swapped": 12, "written_back": 13},
            "pool": {"balloon_given_bytes": 14}, "sharing": {"merging": {"merged_pages": 15, "saved_bytes": 16}},
        }))
    }

    #[test]
    fn every_number_finds_its_place() {
        let mut account = Account::default();
        account.take_answers(&[answer(1), None, answer(2)]);
        let held = Held {
            untouched_bytes: 2 * PAGE_SIZE,
            ballooned_bytes: 16,
            zero_bytes: 3 * PAGE_SIZE,
            duplicate_bytes: 4 * PAGE_SIZE,
            compressed_bytes: 6 * PAGE_SIZE,
            compressed_held_bytes: 14,
            swapped_bytes: 8 * PAGE_SIZE,
            resident_bytes: 22 * PAGE_SIZE,
            unclassified_bytes: 0,
            merged_bytes: 30 * PAGE_SIZE,
            merging_saves_bytes: 32,
        };
        let given = Given {
            reported_bytes: 18,
            balloon_bytes: 28,
            zero_bytes: 3 * PAGE_SIZE,
            duplicate_bytes: 20 * PAGE_SIZE,
            compressed_bytes: 22 * PAGE_SIZE,
            swapped_bytes: 50 * PAGE_SIZE,
        };
        assert_eq!((account.fullest, account.given()), (held, given));
    }

    #[test]
    fn what_the_gone_gave_stays_and_what_they_held_does_not() {
        let mut account = Account::default();
        account.take_answers(&[answer(5), answer(1)]);
        account.take_answers(&[None, answer(2)]);
        assert_eq!(account.given().zero_bytes, 7 * PAGE_SIZE);
        assert_eq!(account.fullest.zero_bytes, 6 * PAGE_SIZE, "it was fuller before");
        assert_eq!((account.most_merged_bytes, account.merging_saved_most_bytes), (30 * PAGE_SIZE, 32));
    }

    #[test]
    fn peaks_are_of_one_moment() {
        let mut account = Account::default();
        for bytes in [[Some(5), Some(1)], [Some(2), Some(3)], [None, Some(4)]] {
            account.take_memory(&bytes);
        }
        assert_eq!((account.peak_bytes, account.taken_bytes, account.looks), (6, 4, 3));
        assert_eq!(account.guests.iter().map(|guest| guest.peak_bytes).collect::<Vec<_>>(), [5, 4]);
    }
}
