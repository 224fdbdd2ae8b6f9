//! Where a pool's salt comes from: a file that the first who needs it makes.

use std::io::{self, Read, Write};
use std::path::Path;

use super::fingerprint::{SALT_BYTES, Salt};
use super::folder::{self, FolderError, UNFINISHED, Unfinished, failed};
use crate::ledger::MemberId;
use crate::ledger::codec::{self, Decoder, Encoder, Reading, Record};

/// What the file is called in the pool's folder.
const FILE_NAME: &str = "salt";

const MAGIC: u64 = u64::from_le_bytes(*b"CISTSALT");

/// Rises whenever the record, or what is made with it, changes.
const FORMAT: u32 = 1;

/// How often to look for a salt that others make or replace at the same time.
const ATTEMPTS: u32 = 8;

impl Record for Salt {
    /// Sequence number, magic, format, salt, checksum; the rest is zero.
    const BYTES: usize = 64;

    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.u64(MAGIC);
        encoder.u32(FORMAT);
        self.words().into_iter().for_each(|word| encoder.u64(word));
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Self> {
        let is_own = decoder.u64()? == MAGIC && decoder.u32()? == FORMAT;
        let mut bytes = [0; SALT_BYTES];
        for word in bytes.as_chunks_mut::<8>().0 {
            *word = decoder.u64()?.to_le_bytes();
        }
        is_own.then(|| Self::from_bytes(bytes))
    }
}

impl Salt {
    /// The salt of the pool in this folder, made by the first member who asks. It outlives the pool: the next one there has
    /// the same. Damaged, it is replaced by another; members that still have the old one see this when they ask again, as
    /// they should before each pass.
    ///
    /// # Errors
    /// The file cannot be read or made, or the kernel has no random bytes.
    pub fn of_pool(pool: &Path, own: MemberId) -> Result<Self, FolderError> {
        let path = pool.join(FILE_NAME);
        // Nobody else has this slot, so nobody else writes under this name.
        let unfinished = pool.join(format!("{FILE_NAME}.{}.{UNFINISHED}", own.slot));
        for _ in 0..ATTEMPTS {
            let found = read(&path).map_err(failed(&path, "reading"))?;
            if let Some(Reading::Whole(salt)) = found {
                return Ok(salt);
            }
            let salt = Self::random().map_err(failed(&path, "asking for random bytes"))?;
            let mut place = [0; Self::BYTES];
            codec::seal(&salt, 0, 0, &mut place);
            let made = Unfinished::write(unfinished.clone(), |file| file.write_all(&place))?;
            // It is read again: who was first is the one.
            if found.is_none() { made.add(&path)? } else { made.replace(&path)? }
        }
        Err(failed(&path, "making it")(io::ErrorKind::InvalidData.into()))
    }

    fn random() -> io::Result<Self> {
        let mut bytes = [0; SALT_BYTES];
        // SAFETY: the kernel writes as many bytes as the array has.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), SALT_BYTES, 0) };
        match usize::try_from(count) {
            Err(_) => Err(io::Error::last_os_error()),
            // Up to 256 bytes come in one piece (getrandom(2)).
            Ok(SALT_BYTES) => Ok(Self::from_bytes(bytes)),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What is in the file, if there is one.
fn read(path: &Path) -> io::Result<Option<Reading<Salt>>> {
    let Some(file) = folder::open(path)? else { return Ok(None) };
    let mut place = Vec::new();
    // One byte more shows that there is more.
    file.take(Salt::BYTES as u64 + 1).read_to_end(&mut place)?;
    Ok(Some(codec::open(&place, 0)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use super::*;

    fn member(slot: u16) -> MemberId {
        MemberId { slot, generation: 1 }
    }

    #[test]
    fn all_members_have_the_salt_of_the_first() {
        let pool = tempfile::tempdir().unwrap();
        let ask = |slot| Salt::of_pool(pool.path(), member(slot)).unwrap();
        let salts: Vec<_> = thread::scope(|scope| {
            let members: Vec<_> = (0..8).map(|slot| scope.spawn(move || ask(slot))).collect();
            members.into_iter().map(|member| member.join().unwrap()).collect()
        });
        assert!(salts.iter().all(|salt| *salt == salts[0]));
        assert_eq!(ask(9), salts[0]);
        let files: Vec<_> = fs::read_dir(pool.path()).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!((files.len(), files[0].file_name().to_str()), (1, Some("salt")));
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Salt::of_pool(other.path(), member(0)).unwrap(), salts[0], "pools have their own");
    }

    #[test]
    fn a_damaged_salt_is_replaced() {
        let pool = tempfile::tempdir().unwrap();
        let path = pool.path().join("salt");
        let ask = || Salt::of_pool(pool.path(), member(3)).unwrap();
        let mut last = ask();
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[30] ^= 1;
        let longer = [&whole[..], &[0]].concat();
        for damaged in [&flipped[..], &longer, &whole[..50], &[], &[0; Salt::BYTES]] {
            fs::write(&path, damaged).unwrap();
            let next = ask();
            assert_ne!(next, last);
            assert_eq!(ask(), next, "the new one stays");
            last = next;
        }
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let pool = tempfile::tempdir().unwrap();
        let error = Salt::of_pool(&pool.path().join("missing"), member(0)).unwrap_err();
        assert!(error.to_string().contains("missing/salt.0.new: making it: "), "{error}");
        fs::create_dir(pool.path().join("salt")).unwrap();
        let error = Salt::of_pool(pool.path(), member(0)).unwrap_err();
        assert!(error.to_string().contains("salt: making it: "), "{error}");
    }
}
