//! Whether other members have published since one last looked, without reading what.

use std::fs;
use std::hash::Hasher as _;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use twox_hash::XxHash3_64;

use super::sketch::parse_name;

/// A number that is another whenever one of the others has published, left or joined: each sketch is a new file.
///
/// # Errors
/// The pool's folder cannot be read.
pub(super) fn version(pool: &Path, own_slot: u16) -> io::Result<u64> {
    let mut version = 0;
    for entry in fs::read_dir(pool)? {
        let entry = entry?;
        let sketch = entry.file_name().to_str().and_then(parse_name);
        let Some((slot, true)) = sketch.filter(|(slot, _)| *slot != own_slot) else { continue };
        // It may have been replaced since the folder was read.
        let Ok(metadata) = entry.metadata() else { continue };
        let mut hasher = XxHash3_64::new();
        hasher.write_u16(slot);
        hasher.write_u64(metadata.ino());
        hasher.write_i64(metadata.mtime());
        hasher.write_i64(metadata.mtime_nsec());
        // In whatever order they come.
        version ^= hasher.finish();
    }
    Ok(version)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::fingerprint::{Fingerprint, SALT_BYTES, Salt};
    use super::super::sketch::Sketches;
    use super::*;
    use crate::ledger::MemberId;

    #[test]
    fn what_others_publish_is_noticed_and_ones_own_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let salt = Salt::from_bytes([5; SALT_BYTES]);
        let mut members = [0, 1].map(|slot| Sketches::new(folder.path(), MemberId { slot, generation: 1 }));
        let publish = |sketches: &mut Sketches| {
            sketches.publish(&salt, [Fingerprint::from_number(7).unwrap()].into_iter()).unwrap();
        };
        let mut versions = vec![version(folder.path(), 0).unwrap()];
        for number in [1, 0, 1] {
            publish(&mut members[number]);
            versions.push(version(folder.path(), 0).unwrap());
        }
        members[1].withdraw().unwrap();
        versions.push(version(folder.path(), 0).unwrap());
        let is_news: Vec<_> = versions.windows(2).map(|pair| pair[0] != pair[1]).collect();
        assert_eq!(is_news, [true, false, true, true]);
        assert_eq!(versions[0], versions[4], "nobody else has any");
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(version(folder.path(), 0).is_err());
    }
}
