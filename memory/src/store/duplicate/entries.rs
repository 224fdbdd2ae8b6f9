//! Entries of one shard, in chunks that come and go as a whole.

use std::collections::BTreeSet;

use crate::store::Home;

/// Entries in a chunk: a KiB. A small guest has a hundred contents in a shard, and larger chunks would be empty for the most.
const CHUNK: usize = 64;
const CHUNK_SHIFT: u32 = CHUNK.ilog2();

/// Highest number of references an entry can count.
pub(super) const REFERENCES_MAX: u32 = (1 << (63 - Home::BITS)) - 1;
const _: () = assert!(REFERENCES_MAX > 1 << 20, "gigabytes of equal pages are to be expected");

/// No entry.
pub(super) const NONE: u32 = u32::MAX;

/// One content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Home, whether it is listed in a bucket, then the count of references: zero in a free entry.
    word: u64,
    /// What is remembered of the hash.
    pub(super) fingerprint: u32,
    /// The next entry of the bucket, or of the chunk's free ones.
    pub(super) next: u32,
}

const HOME_MASK: u64 = (1 << Home::BITS) - 1;
const LISTED: u64 = 1 << Home::BITS;
const REFERENCE: u64 = LISTED << 1;
const _: () = assert!(size_of::<Entry>() == 16);

impl Entry {
    /// An entry with one reference.
    pub(super) fn new(home: Home, fingerprint: u32, listed: bool) -> Self {
        let listed = if listed { LISTED } else { 0 };
        Self { word: home.number() | listed | REFERENCE, fingerprint, next: NONE }
    }

    const fn free(next: u32) -> Self {
        Self { word: 0, fingerprint: 0, next }
    }

    pub(super) fn home(&self) -> Home {
        Home::from_number(self.word & HOME_MASK)
    }

    pub(super) fn set_home(&mut self, home: Home) {
        self.word = self.word & !HOME_MASK | home.number();
    }

    /// Whether it can be found by its hash.
    pub(super) fn is_listed(&self) -> bool {
        self.word & LISTED != 0
    }

    pub(super) fn references(&self) -> u32 {
        (self.word / REFERENCE) as u32
    }

    /// Counts one more reference; false when there can be no more.
    pub(super) fn retain(&mut self) -> bool {
        let room = self.references() < REFERENCES_MAX;
        self.word += u64::from(room) * REFERENCE;
        room
    }

    /// Counts one reference less of several.
    pub(super) fn release(&mut self) {
        self.word -= REFERENCE;
    }
}

#[derive(Debug)]
struct Chunk {
    entries: [Entry; CHUNK],
    used: u16,
    first_free: u32,
}

/// All entries of a shard, by number.
#[derive(Debug, Default)]
pub(super) struct Entries {
    chunks: Vec<Option<Box<Chunk>>>,
    /// Chunks with a free entry. The lowest is filled first, so that the highest empty.
    roomy: BTreeSet<u32>,
    /// Numbers without a chunk below the highest chunk.
    vacant: BTreeSet<u32>,
    contents: u32,
}

impl Entries {
    /// How many are in use.
    pub(super) fn contents(&self) -> u32 {
        self.contents
    }

    /// The entry with this number, if it is in use.
    pub(super) fn get(&self, number: u32) -> Option<&Entry> {
        let chunk = self.chunks.get((number >> CHUNK_SHIFT) as usize)?.as_ref()?;
        Some(&chunk.entries[number as usize % CHUNK]).filter(|entry| entry.references() > 0)
    }

    /// The entry with this number, if it is in use.
    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Entry> {
        let chunk = self.chunks.get_mut((number >> CHUNK_SHIFT) as usize)?.as_mut()?;
        Some(&mut chunk.entries[number as usize % CHUNK]).filter(|entry| entry.references() > 0)
    }

    /// Takes an entry into use; `None` when all `limit` numbers are.
    pub(super) fn add(&mut self, entry: Entry, limit: u32) -> Option<u32> {
        let at = match self.roomy.first() {
            Some(&at) => at,
            None => self.add_chunk(limit)?,
        };
        let chunk = self.chunks[at as usize].as_mut().expect("a chunk with room is there");
        let place = chunk.first_free;
        let free = &mut chunk.entries[place as usize];
        chunk.first_free = free.next;
        *free = entry;
        chunk.used += 1;
        if chunk.first_free == NONE {
            self.roomy.remove(&at);
        }
        self.contents += 1;
        Some(at << CHUNK_SHIFT | place)
    }

    fn add_chunk(&mut self, limit: u32) -> Option<u32> {
        let at = self.vacant.first().copied().unwrap_or(self.chunks.len() as u32);
        if at >= limit >> CHUNK_SHIFT {
            return None;
        }
        let entries = std::array::from_fn(|place| Entry::free(if place + 1 < CHUNK { place as u32 + 1 } else { NONE }));
        let chunk = Some(Box::new(Chunk { entries, used: 0, first_free: 0 }));
        if self.vacant.remove(&at) {
            self.chunks[at as usize] = chunk;
        } else {
            self.chunks.push(chunk);
        }
        self.roomy.insert(at);
        Some(at)
    }

    /// Frees an entry that is in use.
    pub(super) fn remove(&mut self, number: u32) {
        let at = number >> CHUNK_SHIFT;
        let slot = &mut self.chunks[at as usize];
        let chunk = slot.as_mut().expect("the entry is in use");
        chunk.entries[number as usize % CHUNK] = Entry::free(chunk.first_free);
        chunk.first_free = number % CHUNK as u32;
        chunk.used -= 1;
        self.contents -= 1;
        if chunk.used > 0 {
            self.roomy.insert(at);
            return;
        }
        *slot = None;
        self.roomy.remove(&at);
        self.vacant.insert(at);
        while let Some(None) = self.chunks.last() {
            self.chunks.pop();
            self.vacant.remove(&(self.chunks.len() as u32));
        }
        if self.chunks.capacity() > 4 * self.chunks.len() {
            self.chunks.shrink_to(2 * self.chunks.len());
        }
    }

    /// Memory taken, but for what the two sets need: less than a byte an entry.
    pub(super) fn heap_bytes(&self) -> usize {
        let chunks = self.chunks.len() - self.vacant.len();
        self.chunks.capacity() * size_of::<usize>() + chunks * size_of::<Chunk>()
    }
}
