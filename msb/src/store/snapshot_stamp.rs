//! Detects that a large file of a snapshot has not changed since its digest was checked. Each write updates the file's ctime, and no system
//! call sets it, so the same inode number, size and times mean the same content. The stamps are in `verified`, beside the file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::publish;

/// The file with the stamps.
const VERIFIED: &str = "verified";
/// How long before a read the last change must be. The kernel's clock for timestamps ticks at least every 10 ms, so a write during the read
/// could leave the ctime unchanged.
const STEP: Duration = Duration::from_millis(20);

/// The members of a file's `stat` that change when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of an open file.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Whether the digest of the file `name` was verified with this stamp.
    pub(super) fn is_noted(&self, dir: &Path, name: &str) -> bool {
        read(dir).get(name) == Some(self)
    }

    /// Records that the digest of this file was correct, unless it may have changed since the read began at `since`. If that cannot be
    /// recorded, the next check reads the file again.
    pub fn note(&self, dir: &Path, name: &str, file: &File, since: SystemTime) {
        if Self::of(file).ok().as_ref() != Some(self) || !self.is_older_than(since) {
            return;
        }
        let mut stamps = read(dir);
        stamps.insert(name.to_owned(), *self);
        if let Ok(text) = serde_json::to_vec(&stamps) {
            let _ = publish::write_volatile_file(&dir.join(VERIFIED), &text, 0o600);
        }
    }

    fn is_older_than(&self, since: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0).ok().zip(u32::try_from(self.changed.1).ok());
        let changed = changed.map(|(seconds, nanos)| Duration::new(seconds, nanos) + STEP);
        changed.zip(since.duration_since(UNIX_EPOCH).ok()).is_some_and(|(changed, since)| changed <= since)
    }
}

fn read(dir: &Path) -> BTreeMap<String, Stamp> {
    fs::read(dir.join(VERIFIED)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_valid_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        fs::write(&path, "memory").unwrap();
        let file = File::open(&path).unwrap();
        let stamp = Stamp::of(&file).unwrap();
        assert!(!stamp.is_noted(dir.path(), "memory"));
        let changed = UNIX_EPOCH + Duration::new(stamp.changed.0.unsigned_abs(), stamp.changed.1 as u32);
        for (since, is_noted) in [
            (changed - Duration::from_secs(1), false),
            (changed + STEP - Duration::from_millis(1), false),
            (changed + STEP, true),
        ] {
            stamp.note(dir.path(), "memory", &file, since);
            assert_eq!(stamp.is_noted(dir.path(), "memory"), is_noted);
        }
        assert!(!stamp.is_noted(dir.path(), "disk"));
        stamp.note(dir.path(), "disk", &file, changed + STEP);
        assert!(stamp.is_noted(dir.path(), "memory") && stamp.is_noted(dir.path(), "disk"));
        // Setting the mtime back does not hide a write.
        std::thread::sleep(STEP);
        fs::write(&path, "memorx").unwrap();
        let written = File::options().write(true).open(&path).unwrap();
        written
            .set_modified(UNIX_EPOCH + Duration::new(stamp.modified.0.unsigned_abs(), stamp.modified.1 as u32))
            .unwrap();
        let other = Stamp::of(&file).unwrap();
        assert!(other.modified == stamp.modified && other.size == stamp.size && other != stamp);
        assert!(!other.is_noted(dir.path(), "memory"));
        // A file that changes while it is read.
        other.note(dir.path(), "memory", &File::open(dir.path()).unwrap(), SystemTime::now() + STEP);
        assert!(!other.is_noted(dir.path(), "memory"));
        fs::write(dir.path().join(VERIFIED), "{").unwrap();
        assert!(!stamp.is_noted(dir.path(), "memory"));
    }
}
