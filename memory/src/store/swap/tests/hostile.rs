//! A hostile disk: whatever it answers, a page is as it was written, or it is an error.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use cistern_probe::random::Generator;

use super::*;

/// Pages in the file.
const HELD: u64 = 200;

/// The longest piece damaged at once.
const PIECE_BYTES: u64 = 20_000;

/// Reads of random runs after each damage.
const READS: u64 = 8;

/// Rounds of damage before the file is as it was again: damage adds up.
const ROUNDS_PER_REPAIR: u64 = 12;

/// How often the file is damaged. What else the variable is for takes a small part of the time a step.
fn rounds() -> u64 {
    std::env::var("HOSTILE_STEPS").map_or(200, |text| text.parse::<u64>().expect("HOSTILE_STEPS is a number") / 400)
}

/// What a disk may do to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Bit,
    Zeroes,
    Garbage,
    Truncated,
    Hole,
    /// Pages in each other's place.
    Swapped,
    /// What was in the slot before it was written the last time: a lost write.
    Stale,
    /// A piece of the file somewhere else, at any byte.
    Shifted,
    /// A write that ended within the page.
    Torn,
}

const DAMAGES: [Damage; 9] = [
    Damage::Bit,
    Damage::Zeroes,
    Damage::Garbage,
    Damage::Truncated,
    Damage::Hole,
    Damage::Swapped,
    Damage::Stale,
    Damage::Shifted,
    Damage::Torn,
];

struct Disk {
    swap: SwapFile<Faulty>,
    /// The file behind it, opened a second time.
    other: File,
    slots: Vec<Slot>,
    kept: Vec<AlignedPage>,
    /// What was in the slots before.
    stale: Vec<AlignedPage>,
    random: Generator,
}

impl Disk {
    fn new(caching: Caching, seed: u64) -> Self {
        let swap = faulty(1000, caching);
        let other = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", swap.file.file.as_raw_fd()))
            .unwrap();
        // Each slot is used twice.
        let stale = pages(1000..1000 + HELD);
        for slot in swap.write(&references(&stale)).unwrap() {
            swap.free(slot).unwrap();
        }
        let kept = pages(0..HELD);
        let slots = swap.write(&references(&kept)).unwrap();
        assert_eq!(slots, (0..HELD as u32).map(Slot::from_index).collect::<Vec<_>>());
        Self { swap, other, slots, kept, stale, random: Generator::new(seed) }
    }

    fn put(&self, slot: usize, bytes: &[u8]) {
        self.other.write_all_at(bytes, offset(self.slots[slot].index())).unwrap();
    }

    fn repair(&self) {
        (0..self.kept.len()).for_each(|slot| self.put(slot, &self.kept[slot].0));
    }

    fn damage(&mut self, damage: Damage) {
        let size = HELD * PAGE_BYTES as u64;
        let at = self.random.below(size);
        let length = (1 + self.random.below(PIECE_BYTES)).min(size - at);
        let (one, two) = (self.random.below(HELD) as usize, self.random.below(HELD) as usize);
        match damage {
            Damage::Bit => {
                let mut byte = [0];
                // A file cut off here has nothing to flip.
                let _ = FileExt::read_at(&self.other, &mut byte, at).unwrap();
                self.other.write_all_at(&[byte[0] ^ 1 << self.random.below(8)], at).unwrap();
            }
            Damage::Zeroes => self.other.write_all_at(&vec![0; length as usize], at).unwrap(),
            Damage::Garbage => {
                let bytes: Vec<u8> = (0..length).map(|_| self.random.next() as u8).collect();
                self.other.write_all_at(&bytes, at).unwrap();
            }
            Damage::Truncated => self.other.set_len(at).unwrap(),
            Damage::Hole => self.other.punch_hole(at, length).unwrap(),
            Damage::Swapped => {
                self.put(two, &self.kept[one].0);
                self.put(one, &self.kept[two].0);
            }
            Damage::Stale => self.put(one, &self.stale[one].0),
            Damage::Shifted => {
                let mut bytes = vec![0; length as usize];
                let from = self.random.below(size);
                let _ = FileExt::read_at(&self.other, &mut bytes, from).unwrap();
                self.other.write_all_at(&bytes, at).unwrap();
            }
            Damage::Torn => {
                let torn = 512 * (1 + self.random.below(7)) as usize;
                self.put(one, &self.stale[one].0[..torn]);
            }
        }
    }

    /// Reads a run that may reach beyond what is held; tells whether it was had.
    fn read(&self, first: u64, pages: u64) -> bool {
        let mut run = vec![AlignedPage::default(); pages as usize];
        let mut buffers: Vec<&mut Page> = run.iter_mut().map(|page| &mut page.0).collect();
        match self.swap.read(Slot::from_index(first as u32), &mut buffers) {
            Ok(()) => {
                let right = run.iter().zip(&self.kept[first as usize..]).all(|(page, kept)| page.0 == kept.0);
                assert!(right && first + pages <= HELD, "{pages} pages at {first}: a wrong page");
                true
            }
            Err(SwapError::Checksum { slot }) => {
                assert!((first..first + pages).contains(&slot.index().into()), "{slot:?} was not asked for");
                false
            }
            Err(SwapError::Read { .. }) => false,
            Err(SwapError::NotHeld { slot }) => {
                assert!(u64::from(slot.index()) >= HELD && first + pages > HELD, "{slot:?} is held");
                false
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_hostile_disk_gives_no_wrong_page() {
    for (caching, seed) in [(Caching::Direct, 0x5EED), (Caching::Buffered, 0xF00D)] {
        let mut disk = Disk::new(caching, seed);
        let (mut good, mut bad, rounds) = (0, 0, rounds());
        for round in 0..rounds {
            let damage = DAMAGES[disk.random.below(DAMAGES.len() as u64) as usize];
            disk.damage(damage);
            for _ in 0..READS {
                let first = disk.random.below(HELD);
                let longest = if disk.random.below(4) == 0 { RUN_PAGES as u64 } else { 8 };
                let pages = 1 + disk.random.below(longest);
                if disk.read(first, pages) { good += 1 } else { bad += 1 }
            }
            if round % ROUNDS_PER_REPAIR == ROUNDS_PER_REPAIR - 1 {
                disk.repair();
                assert!(disk.read(0, HELD), "{caching:?}, round {round}: what is good again is read");
            }
        }
        println!("{caching:?}: {rounds} rounds: {good} runs read, {bad} refused");
        assert!(
            good >= rounds && bad >= rounds,
            "{caching:?}: {good} good, {bad} bad: the damage did not do what it should"
        );
    }
}

/// Every kind by itself, so that none hides behind another.
#[test]
fn every_kind_of_damage_is_found() {
    for damage in DAMAGES {
        let mut disk = Disk::new(Caching::Direct, 1);
        let mut found = 0;
        for _ in 0..8 {
            disk.damage(damage);
            found += (0..HELD).filter(|slot| !disk.read(*slot, 1)).count();
            disk.repair();
        }
        assert!(found >= 6, "{damage:?}: {found} pages found");
        assert!(disk.read(0, HELD), "{damage:?}");
    }
}
