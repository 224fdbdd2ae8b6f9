//! What a member tells the others of its pages: a file of fingerprints, the sketch.
//!
//! Each member has one in the pool's folder, `sketch.SLOT`, of mode 0600: a header of 64 bytes, then the fingerprint of
//! each of its stable pages, ascending, 4 bytes each; what several pages have is there as often. Numbers are little
//! endian. A file is written under another name and renamed, so it is whole or not there; it is never mapped.
//!
//! A reader takes nothing on trust: the file belongs to a live member (the ledger tells which are), it is as long as its
//! header says, no longer than the member's guest has pages, its checksum is right and its fingerprints ascend. It is
//! read twice in pieces of 64 KiB, first to check it, then to use it: what is damaged adds nothing, and a reader
//! needs no more memory for a large pool than for a small one.

use std::fs::{self, File};
use std::hash::Hasher as _;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use super::fingerprint::{Fingerprint, Salt};
use super::folder::{self, FolderError, PIECE_BYTES, UNFINISHED, Unfinished, failed};
use crate::ledger::codec::{self, Decoder, Encoder, Reading, Record};
use crate::ledger::{MAXIMUM_MEMBERS, MemberId};

/// What the files are called, before a dot and the slot.
const FILE_NAME: &str = "sketch";

const MAGIC: u64 = u64::from_le_bytes(*b"CISTSKTC");

/// Rises whenever the file changes.
const FORMAT: u32 = 1;

/// Bytes of a fingerprint in the file.
const ENTRY_BYTES: usize = size_of::<Fingerprint>();

/// A member whose sketch is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveMember {
    /// Who it is.
    pub id: MemberId,
    /// Pages of its guest: it has no more fingerprints.
    pub guest_pages: u64,
}

/// What became of the files that were looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct SketchStatistics {
    /// Sketches of other live members that were read.
    pub sketches: u32,
    /// Fingerprints in them.
    pub fingerprints: u64,
    /// Files of live members that are damaged or cannot be read; they were left out.
    pub damaged: u32,
    /// Sketches made with another salt, left out too: their members have yet to see that it was replaced.
    pub foreign: u32,
    /// Files of members that are gone, removed.
    pub removed: u32,
}

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    owner: MemberId,
    salt_id: u64,
    fingerprints: u64,
    /// XXH3 of all that follows the header.
    checksum: u64,
}

impl Record for Header {
    /// With the sequence number and the header's own checksum.
    const BYTES: usize = 64;

    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.u64(MAGIC);
        encoder.u32(FORMAT);
        encoder.u16(self.owner.slot);
        encoder.u64(self.owner.generation);
        encoder.u64(self.salt_id);
        encoder.u64(self.fingerprints);
        encoder.u64(self.checksum);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Self> {
        let is_own = decoder.u64()? == MAGIC && decoder.u32()? == FORMAT;
        let owner = MemberId { slot: decoder.u16()?, generation: decoder.u64()? };
        let header = Self { owner, salt_id: decoder.u64()?, fingerprints: decoder.u64()?, checksum: decoder.u64()? };
        is_own.then_some(header)
    }
}

/// One member's own sketch and its view of the others'. The files go with it: it must not outlive the membership.
#[derive(Debug)]
pub struct Sketches {
    pool: PathBuf,
    own: MemberId,
    published: u64,
}

impl Sketches {
    /// The sketches of the pool in this folder, for one of its members. Nothing is published yet.
    pub fn new(pool: &Path, own: MemberId) -> Self {
        Self { pool: pool.to_owned(), own, published: 0 }
    }

    /// Replaces this member's sketch.
    ///
    /// # Errors
    /// The file cannot be written. The one before stays.
    ///
    /// # Panics
    /// If the fingerprints do not ascend.
    pub fn publish(
        &mut self,
        salt: &Salt,
        fingerprints: impl ExactSizeIterator<Item = Fingerprint> + Clone,
    ) -> Result<(), FolderError> {
        assert!(fingerprints.clone().is_sorted(), "fingerprints are sorted before they are published");
        let mut hasher = XxHash3_64::new();
        for_each_piece(fingerprints.clone(), |piece| {
            hasher.write(piece);
            Ok(())
        })
        .expect("hashing does not fail");
        let header = Header {
            owner: self.own,
            salt_id: salt.id(),
            fingerprints: fingerprints.len() as u64,
            checksum: hasher.finish(),
        };
        self.published += 1;
        let mut place = [0; Header::BYTES];
        codec::seal(&header, self.published, 0, &mut place);
        let written = Unfinished::write(self.unfinished(self.own.slot), |file| {
            file.write_all(&place)?;
            for_each_piece(fingerprints, |piece| file.write_all(piece))
        })?;
        written.replace(&self.path(self.own.slot))
    }

    /// Takes this member's sketch back, until the next is published.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn withdraw(&self) -> Result<(), FolderError> {
        let path = self.path(self.own.slot);
        folder::remove(&path).map(drop).map_err(failed(&path, "removing it"))
    }

    /// Reads the sketches of the other live members one after the other; `take` gets their fingerprints in pieces that
    /// ascend, and an empty one before each sketch. Files of dead members are removed. A member that joined after the
    /// caller asked who lives can lose its sketch to this, until it publishes the next.
    ///
    /// # Errors
    /// The pool's folder cannot be read; what is wrong with a file is counted.
    pub fn read_others(
        &self,
        salt: &Salt,
        live: &[LiveMember],
        mut take: impl FnMut(&[Fingerprint]),
    ) -> Result<SketchStatistics, FolderError> {
        let mut statistics = SketchStatistics::default();
        let read = failed(&self.pool, "reading the folder");
        let entries = fs::read_dir(&self.pool).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(read)?;
        let mut piece = Vec::new();
        for entry in entries {
            let Some((slot, is_finished)) = entry.file_name().to_str().and_then(parse_name) else { continue };
            if slot == self.own.slot {
                continue;
            }
            let Some(owner) = live.iter().find(|member| member.id.slot == slot) else {
                statistics.removed += u32::from(folder::remove(&entry.path()).is_ok_and(|removed| removed));
                continue;
            };
            if is_finished {
                match read_sketch(&entry.path(), owner, salt, &mut piece, &mut take) {
                    Ok(Found::Sketch { fingerprints }) => {
                        statistics.sketches += 1;
                        statistics.fingerprints += fingerprints;
                    }
                    Ok(Found::Nothing) => {}
                    Ok(Found::Foreign) => statistics.foreign += 1,
                    Ok(Found::Damaged) | Err(_) => statistics.damaged += 1,
                }
            }
        }
        Ok(statistics)
    }

    fn path(&self, slot: u16) -> PathBuf {
        self.pool.join(format!("{FILE_NAME}.{slot}"))
    }

    fn unfinished(&self, slot: u16) -> PathBuf {
        self.pool.join(format!("{FILE_NAME}.{slot}.{UNFINISHED}"))
    }
}

impl Drop for Sketches {
    fn drop(&mut self) {
        let _ = self.withdraw();
    }
}

/// The slot a file belongs to, and whether it is finished.
pub(super) fn parse_name(name: &str) -> Option<(u16, bool)> {
    let rest = name.strip_prefix(FILE_NAME)?.strip_prefix('.')?;
    let (slot, is_finished) = match rest.strip_suffix(UNFINISHED).and_then(|rest| rest.strip_suffix('.')) {
        Some(slot) => (slot, false),
        None => (rest, true),
    };
    let number: u16 = slot.parse().ok().filter(|slot| *slot < MAXIMUM_MEMBERS)?;
    (number.to_string() == slot).then_some((number, is_finished))
}

/// Fingerprints as they are in a file, in pieces.
fn for_each_piece(
    mut fingerprints: impl Iterator<Item = Fingerprint>,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    loop {
        piece.clear();
        let next = fingerprints.by_ref().take(PIECE_BYTES / ENTRY_BYTES);
        next.for_each(|fingerprint| piece.extend_from_slice(&fingerprint.number().to_le_bytes()));
        if piece.is_empty() {
            return Ok(());
        }
        write(&piece)?;
    }
}

/// What is in a live member's place.
enum Found {
    /// No sketch of this member: it has published none yet, and what is there is of who had the slot before.
    Nothing,
    Sketch {
        fingerprints: u64,
    },
    Foreign,
    Damaged,
}

/// Reads a sketch: once to see that it is whole, and once for `take`.
fn read_sketch(
    path: &Path,
    owner: &LiveMember,
    salt: &Salt,
    piece: &mut Vec<Fingerprint>,
    take: &mut impl FnMut(&[Fingerprint]),
) -> io::Result<Found> {
    let Some(mut file) = folder::open(path)? else { return Ok(Found::Nothing) };
    let mut place = [0; Header::BYTES];
    let length_bytes = file.metadata()?.len();
    if length_bytes < Header::BYTES as u64 {
        return Ok(Found::Damaged);
    }
    file.read_exact(&mut place)?;
    let Reading::Whole(header) = codec::open::<Header>(&place, 0) else { return Ok(Found::Damaged) };
    if header.owner != owner.id {
        return Ok(if header.owner.slot == owner.id.slot { Found::Nothing } else { Found::Damaged });
    }
    if header.salt_id != salt.id() {
        return Ok(Found::Foreign);
    }
    let body_bytes = header.fingerprints.checked_mul(ENTRY_BYTES as u64);
    let is_sound = header.fingerprints <= owner.guest_pages
        && body_bytes.is_some_and(|bytes| bytes == length_bytes - Header::BYTES as u64);
    if !is_sound || !is_whole(&mut file, &header, piece)? {
        return Ok(Found::Damaged);
    }
    take(&[]);
    file.seek(SeekFrom::Start(Header::BYTES as u64))?;
    // Nobody writes to a file that has its name. If somebody does, some pages seem to have more or fewer copies.
    read_pieces(&mut file, header.fingerprints, piece, |_, fingerprints| {
        take(fingerprints);
        true
    })?;
    Ok(Found::Sketch { fingerprints: header.fingerprints })
}

/// Whether the fingerprints are those that were written, and ascend.
fn is_whole(file: &mut File, header: &Header, piece: &mut Vec<Fingerprint>) -> io::Result<bool> {
    let (mut hasher, mut last) = (XxHash3_64::new(), None);
    let is_sorted = read_pieces(file, header.fingerprints, piece, |bytes, fingerprints| {
        hasher.write(bytes);
        let ascends = fingerprints.is_sorted() && last <= fingerprints.first().copied();
        last = fingerprints.last().copied();
        ascends
    })?;
    Ok(is_sorted && hasher.finish() == header.checksum)
}

/// Reads so many fingerprints in pieces, as bytes and as what they say, for as long as `take` says so; false when it
/// said no, or there was a 0 among them.
fn read_pieces(
    file: &mut File,
    fingerprints: u64,
    piece: &mut Vec<Fingerprint>,
    mut take: impl FnMut(&[u8], &[Fingerprint]) -> bool,
) -> io::Result<bool> {
    let mut bytes = vec![0; PIECE_BYTES];
    let mut left_bytes = fingerprints * ENTRY_BYTES as u64;
    while left_bytes > 0 {
        let bytes = &mut bytes[..left_bytes.min(PIECE_BYTES as u64) as usize];
        file.read_exact(bytes)?;
        left_bytes -= bytes.len() as u64;
        piece.clear();
        let entries = bytes.as_chunks::<ENTRY_BYTES>().0;
        piece.extend(entries.iter().filter_map(|entry| Fingerprint::from_number(u32::from_le_bytes(*entry))));
        if piece.len() != entries.len() || !take(bytes, piece) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::fingerprint::SALT_BYTES;
    use super::*;

    const GENERATION: u64 = 1000;
    const GUEST_PAGES: u64 = 1 << 20;

    fn id(slot: u16) -> MemberId {
        MemberId { slot, generation: GENERATION + u64::from(slot) }
    }

    fn live(slots: &[u16]) -> Vec<LiveMember> {
        slots.iter().map(|slot| LiveMember { id: id(*slot), guest_pages: GUEST_PAGES }).collect()
    }

    fn salt() -> Salt {
        Salt::from_bytes([7; SALT_BYTES])
    }

    fn fingerprints(numbers: &[u32]) -> Vec<Fingerprint> {
        numbers.iter().map(|number| Fingerprint::from_number(*number).unwrap()).collect()
    }

    fn publish(pool: &Path, slot: u16, numbers: &[u32]) -> Sketches {
        let mut sketches = Sketches::new(pool, id(slot));
        sketches.publish(&salt(), fingerprints(numbers).into_iter()).unwrap();
        sketches
    }

    /// Each sketch that the member in slot 0 reads, in any order, and what it says of the files.
    fn read(pool: &Path, live: &[LiveMember]) -> (Vec<Vec<u32>>, SketchStatistics) {
        let mut found: Vec<Vec<u32>> = Vec::new();
        let reader = Sketches::new(pool, id(0));
        let statistics = reader.read_others(&salt(), live, |piece| match piece {
            [] => found.push(Vec::new()),
            piece => found.last_mut().unwrap().extend(piece.iter().map(|fingerprint| fingerprint.number())),
        });
        // Nothing of its own is to be taken back.
        std::mem::forget(reader);
        found.sort();
        (found, statistics.unwrap())
    }

    fn names(pool: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(pool).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn the_others_read_what_was_published() {
        let folder = tempfile::tempdir().unwrap();
        let pool = folder.path();
        let _own = publish(pool, 0, &[1, 2, 3]);
        // More than two pieces.
        let many: Vec<u32> = (1..40_000).map(|number| number * 3).collect();
        let mut one = publish(pool, 1, &[5, 5, 9]);
        let _two = publish(pool, 2, &many);
        let _three = publish(pool, 3, &[]);
        let all = live(&[0, 1, 2, 3, 4]);
        let (found, statistics) = read(pool, &all);
        assert_eq!(found, [vec![], many.clone(), vec![5, 5, 9]]);
        let expected = SketchStatistics { sketches: 3, fingerprints: 40_002, ..Default::default() };
        assert_eq!(statistics, expected);
        assert_eq!(fs::metadata(pool.join("sketch.2")).unwrap().permissions().mode() & 0o777, 0o600);
        one.publish(&salt(), fingerprints(&[u32::MAX]).into_iter()).unwrap();
        assert_eq!(read(pool, &all).0, [vec![], many, vec![u32::MAX]]);
        assert_eq!(names(pool), ["sketch.0", "sketch.1", "sketch.2", "sketch.3"]);
        drop(one);
        assert_eq!(names(pool), ["sketch.0", "sketch.2", "sketch.3"], "who leaves takes it along");
    }

    #[test]
    fn files_of_the_dead_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let pool = folder.path();
        for slot in [1, 2, 255] {
            std::mem::forget(publish(pool, slot, &[4, 4, 5]));
        }
        // Killed while it wrote; and files that are none of ours.
        let others = ["ledger", "salt", "sketch.256", "sketch.01", "sketch.new", "sketch.x", "sketch"];
        for name in ["sketch.7.new"].iter().chain(&others) {
            fs::write(pool.join(name), "").unwrap();
        }
        // The one in slot 2 is another by now, and has published nothing.
        let another = LiveMember { id: MemberId { slot: 2, generation: 7777 }, guest_pages: 1 };
        let (found, statistics) = read(pool, &[live(&[0, 1]), vec![another]].concat());
        assert_eq!(found, [[4, 4, 5]]);
        let expected = SketchStatistics { sketches: 1, fingerprints: 3, removed: 2, ..Default::default() };
        assert_eq!(statistics, expected);
        let mut left = [&others[..], &["sketch.1", "sketch.2"]].concat();
        left.sort();
        assert_eq!(names(pool), left);
    }

    #[test]
    fn a_damaged_file_is_ignored_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (pool, all) = (folder.path(), live(&[0, 1, 2]));
        let _sound = publish(pool, 1, &[8, 9]);
        let _damaged = publish(pool, 2, &[10, 11, 12]);
        let path = pool.join("sketch.2");
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), Header::BYTES + 12);
        let check = |bytes: &[u8], what: &str| {
            fs::write(&path, bytes).unwrap();
            let (found, statistics) = read(pool, &all);
            assert_eq!((found, statistics.damaged), (vec![vec![8, 9]], 1), "{what}");
        };
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x20;
            check(&flipped, &format!("byte {at}"));
        }
        for length in 0..whole.len() {
            check(&whole[..length], &format!("cut to {length}"));
        }
        check(&[&whole[..], &[0; 4]].concat(), "longer");
        // What a member gone wrong could write with a checksum that is right.
        let forge = |numbers: &[u32], fingerprints: u64, slot: u16| {
            let body: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            let mut hasher = XxHash3_64::new();
            hasher.write(&body);
            let checksum = hasher.finish();
            let header = Header { owner: id(slot), salt_id: salt().id(), fingerprints, checksum };
            let mut place = [0; Header::BYTES];
            codec::seal(&header, 1, 0, &mut place);
            [&place[..], &body].concat()
        };
        assert_eq!(forge(&[10, 11, 12], 3, 2), whole);
        check(&forge(&[10, 12, 11], 3, 2), "not sorted");
        check(&forge(&[0, 11, 12], 3, 2), "none among them");
        check(&forge(&[10, 11, 12], 1 << 62, 2), "a count whose bytes do not fit a number");
        check(&forge(&[10, 11, 12], 2, 2), "fewer than there are");
        check(&forge(&[10, 11, 12], 3, 1), "another's");
        let too_many: Vec<u32> = (1..GUEST_PAGES as u32 + 2).collect();
        check(&forge(&too_many, too_many.len() as u64, 2), "more than the guest has pages");
        // Ascending in each piece and not from one to the next.
        let mut pieces: Vec<u32> = (20_000..20_000 + (PIECE_BYTES / ENTRY_BYTES) as u32).collect();
        pieces.push(1);
        check(&forge(&pieces, pieces.len() as u64, 2), "not sorted across pieces");
        fs::write(&path, whole).unwrap();
        assert_eq!(read(pool, &all).1.sketches, 2);
    }

    #[test]
    fn a_sketch_of_another_salt_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut sketches = Sketches::new(folder.path(), id(1));
        sketches.publish(&salt().with_mask(3), fingerprints(&[1, 2]).into_iter()).unwrap();
        let (found, statistics) = read(folder.path(), &live(&[0, 1]));
        assert_eq!((found.len(), statistics), (0, SketchStatistics { foreign: 1, ..Default::default() }));
    }

    #[test]
    fn what_cannot_be_written_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let mut sketches = Sketches::new(&missing, id(1));
        let error = sketches.publish(&salt(), fingerprints(&[1]).into_iter()).unwrap_err();
        assert!(error.to_string().contains("missing/sketch.1.new: making it: "), "{error}");
        let error = sketches.read_others(&salt(), &[], |_| {}).unwrap_err();
        assert!(error.to_string().contains("missing: reading the folder: "), "{error}");
    }
}
