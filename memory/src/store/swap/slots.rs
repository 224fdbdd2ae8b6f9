//! Which slots of the swap file are held, and the checksum of each.
//!
//! Slots are handed out in runs, next fit over segments of 16 MiB, so that what is written together lies together. The
//! file grows only when a quarter of what it has is held or no slot is free: bookkeeping stays within 18 bytes a page
//! held at its peak, plus two segments. A segment without pages and blocks costs one pointer.
//!
//! A slot is free, held, or reserved while its hole is punched: a free slot could be handed out and written before
//! the hole is made, and the page would be lost.

use std::mem::size_of;
use std::ops::Range;

/// Slots in a segment: 16 MiB of the file.
pub const SEGMENT_SLOTS: u32 = 4096;
const WORDS: usize = SEGMENT_SLOTS as usize / 64;

/// How many segments with free slots one allocation looks through: what bounds its time.
const SEARCHED_SEGMENTS: usize = 4;

/// One segment's slots. Bits are numbered from the least significant bit of the first word.
struct Segment {
    /// Slots that hold a page or are reserved.
    taken: [u64; WORDS],
    /// Slots that may have blocks of the disk.
    backed: [u64; WORDS],
    /// Slots not taken.
    free: u32,
    /// Slots not taken but backed.
    reclaimable: u32,
    checksums: [u32; SEGMENT_SLOTS as usize],
}

impl Segment {
    fn new(slots: u32) -> Box<Self> {
        Box::new(Self {
            taken: [0; WORDS],
            backed: [0; WORDS],
            free: slots,
            reclaimable: 0,
            checksums: [0; SEGMENT_SLOTS as usize],
        })
    }
}

/// Every slot of one swap file. Slots are numbered from the start of the file.
pub struct Slots {
    segments: Vec<Option<Box<Segment>>>,
    /// One bit a segment: it has a free slot.
    open: Vec<u64>,
    /// Slots the file may have.
    limit: u32,
    /// The segment the search goes on from.
    cursor: usize,
    held: u32,
    reclaimable: u32,
}

impl Slots {
    pub fn new(limit: u32) -> Self {
        Self { segments: Vec::new(), open: Vec::new(), limit, cursor: 0, held: 0, reclaimable: 0 }
    }

    /// Slots that hold a page.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Slots whose blocks a hole would give back.
    pub fn reclaimable(&self) -> u32 {
        self.reclaimable
    }

    /// Segments the file has.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Memory this bookkeeping uses, in bytes.
    pub fn bookkeeping_bytes(&self) -> u64 {
        let pointers = self.segments.capacity() * size_of::<Option<Box<Segment>>>();
        let segments = self.segments.iter().flatten().count() * size_of::<Segment>();
        (pointers + segments + self.open.capacity() * size_of::<u64>()) as u64
    }

    /// Takes a run of `want` slots, or the longest shorter one found in bounded time. `None`: no slot is free.
    pub fn allocate(&mut self, want: u32) -> Option<Range<u32>> {
        let mut best = 0..0;
        let mut from = self.cursor;
        for _ in 0..SEARCHED_SEGMENTS {
            let Some(segment) = self.next_open(from) else { break };
            let run = self.longest_run(segment, want);
            if run.len() > best.len() {
                best = run;
            }
            if best.len() >= want as usize {
                break;
            }
            from = segment + 1;
        }
        let slots = self.segments.len() as u64 * u64::from(SEGMENT_SLOTS);
        let quarter_held = u64::from(self.held) * 4 >= slots;
        let next = self.segments.len() as u32 * SEGMENT_SLOTS;
        let room = self.limit.saturating_sub(next).min(SEGMENT_SLOTS).min(want);
        if best.len() < room as usize && (best.is_empty() || quarter_held) {
            self.grow();
            best = next..next + room;
        }
        if best.is_empty() {
            return None;
        }
        self.take(best.clone());
        Some(best)
    }

    /// Records what a slot of a run just written holds.
    pub fn set_checksum(&mut self, slot: u32, checksum: u32) {
        let (segment, index) = position(slot);
        if let Some(Some(segment)) = self.segments.get_mut(segment) {
            segment.checksums[index] = checksum;
        }
    }

    /// The checksum of what a slot holds; `None` when it holds nothing.
    pub fn checksum(&self, slot: u32) -> Option<u32> {
        let (segment, index) = position(slot);
        let segment = self.segments.get(segment)?.as_ref()?;
        bit(&segment.taken, index).then_some(segment.checksums[index])
    }

    /// Frees a slot; false when it holds nothing. Its blocks stay until a hole is punched or it is written again.
    pub fn free(&mut self, slot: u32) -> bool {
        let (number, index) = position(slot);
        let Some(Some(segment)) = self.segments.get_mut(number) else { return false };
        if !bit(&segment.taken, index) {
            return false;
        }
        segment.taken[index / 64] &= !(1 << (index % 64));
        segment.free += 1;
        segment.reclaimable += 1;
        self.open[number / 64] |= 1 << (number % 64);
        self.held -= 1;
        self.reclaimable += 1;
        true
    }

    /// Reserves the runs of at least `min` slots in a segment whose blocks a hole gives back.
    pub fn reserve_holes(&mut self, number: usize, min: u32) -> Vec<Range<u32>> {
        let base = number as u32 * SEGMENT_SLOTS;
        let Some(Some(segment)) = self.segments.get_mut(number) else { return Vec::new() };
        let mut runs = Vec::new();
        if segment.reclaimable < min.max(1) {
            return runs;
        }
        let mut at = 0;
        loop {
            let reclaimable = |word: usize| segment.backed[word] & !segment.taken[word];
            let Some(start) = next_bit(at, SEGMENT_SLOTS, reclaimable) else { break };
            let end = next_bit(start, SEGMENT_SLOTS, |word| !reclaimable(word)).unwrap_or(SEGMENT_SLOTS);
            at = end;
            if end - start < min {
                continue;
            }
            set_bits(&mut segment.taken, start..end);
            segment.free -= end - start;
            segment.reclaimable -= end - start;
            self.reclaimable -= end - start;
            runs.push(base + start..base + end);
        }
        if segment.free == 0 {
            self.open[number / 64] &= !(1 << (number % 64));
        }
        runs
    }

    /// Ends the reservation of a run: it is free, and without blocks when the hole was punched.
    pub fn release_hole(&mut self, run: Range<u32>, punched: bool) {
        let number = (run.start / SEGMENT_SLOTS) as usize;
        let count = run.end - run.start;
        let Some(Some(segment)) = self.segments.get_mut(number) else { return };
        let bits = run.start % SEGMENT_SLOTS..(run.end - 1) % SEGMENT_SLOTS + 1;
        clear_bits(&mut segment.taken, bits.clone());
        segment.free += count;
        self.open[number / 64] |= 1 << (number % 64);
        if punched {
            clear_bits(&mut segment.backed, bits);
        } else {
            segment.reclaimable += count;
            self.reclaimable += count;
        }
        let used = |word: usize| segment.taken[word] | segment.backed[word];
        if next_bit(0, SEGMENT_SLOTS, used).is_none() {
            self.segments[number] = None;
            self.shrink();
        }
    }

    /// Adds a segment at the end.
    fn grow(&mut self) {
        let number = self.segments.len();
        self.segments.push(None);
        if number / 64 == self.open.len() {
            self.open.push(0);
        }
        self.open[number / 64] |= 1 << (number % 64);
    }

    /// Takes empty segments off the end.
    fn shrink(&mut self) {
        while let Some(None) = self.segments.last() {
            self.segments.pop();
            let number = self.segments.len();
            self.open[number / 64] &= !(1 << (number % 64));
        }
        self.open.truncate(self.segments.len().div_ceil(64));
        if self.segments.capacity() > 2 * self.segments.len() + 64 {
            self.segments.shrink_to_fit();
        }
    }

    /// The slots segment `number` has: fewer where the limit cuts it.
    fn slots_of(&self, number: usize) -> u32 {
        (self.limit - number as u32 * SEGMENT_SLOTS).min(SEGMENT_SLOTS)
    }

    /// The first segment with a free slot from `from` on, around the end.
    fn next_open(&self, from: usize) -> Option<usize> {
        let count = self.segments.len() as u32;
        let from = if from < self.segments.len() { from as u32 } else { 0 };
        let open = |word: usize| self.open[word];
        next_bit(from, count, open).or_else(|| next_bit(0, from, open)).map(|number| number as usize)
    }

    /// The first run of `want` free slots of a segment, cut to that length, or else its longest run.
    fn longest_run(&self, number: usize, want: u32) -> Range<u32> {
        let base = number as u32 * SEGMENT_SLOTS;
        let slots = self.slots_of(number);
        let Some(segment) = &self.segments[number] else { return base..base + want.min(slots) };
        let mut best = 0..0;
        let mut at = 0;
        while let Some(start) = next_bit(at, slots, |word| !segment.taken[word]) {
            let end = next_bit(start, slots, |word| segment.taken[word]).unwrap_or(slots);
            let run = start..end.min(start + want);
            if run.len() > best.len() {
                best = run;
            }
            if best.len() >= want as usize {
                break;
            }
            at = end;
        }
        base + best.start..base + best.end
    }

    /// Marks a free run as held; its slots have blocks from now on.
    fn take(&mut self, run: Range<u32>) {
        let number = (run.start / SEGMENT_SLOTS) as usize;
        let slots = self.slots_of(number);
        let count = run.end - run.start;
        let bits = run.start % SEGMENT_SLOTS..(run.end - 1) % SEGMENT_SLOTS + 1;
        let segment = self.segments[number].get_or_insert_with(|| Segment::new(slots));
        let again = bits.clone().filter(|index| bit(&segment.backed, *index as usize)).count() as u32;
        set_bits(&mut segment.taken, bits.clone());
        set_bits(&mut segment.backed, bits);
        segment.free -= count;
        segment.reclaimable -= again;
        if segment.free == 0 {
            self.open[number / 64] &= !(1 << (number % 64));
        }
        self.cursor = number;
        self.held += count;
        self.reclaimable -= again;
    }
}

/// Where a slot's bookkeeping is: segment, and index within it.
fn position(slot: u32) -> (usize, usize) {
    ((slot / SEGMENT_SLOTS) as usize, (slot % SEGMENT_SLOTS) as usize)
}

fn bit(words: &[u64], index: usize) -> bool {
    words[index / 64] >> (index % 64) & 1 == 1
}

fn set_bits(words: &mut [u64], bits: Range<u32>) {
    for index in bits {
        words[index as usize / 64] |= 1 << (index % 64);
    }
}

fn clear_bits(words: &mut [u64], bits: Range<u32>) {
    for index in bits {
        words[index as usize / 64] &= !(1 << (index % 64));
    }
}

/// The first set bit in `from..end`, a word at a time.
fn next_bit(from: u32, end: u32, words: impl Fn(usize) -> u64) -> Option<u32> {
    let mut at = from;
    while at < end {
        let rest = words(at as usize / 64) >> (at % 64);
        if rest != 0 {
            let found = at + rest.trailing_zeros();
            return (found < end).then_some(found);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}
