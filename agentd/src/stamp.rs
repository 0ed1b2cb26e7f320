//! The stamp of a file or directory: what shows that it has changed.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The least age of the last change for a stamp to be relied on, in seconds.
const SETTLED: i64 = 2;

/// What changes with the content: device, inode, size, and the ctime in seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    ctime: i64,
    ctime_nsec: i64,
}

impl Stamp {
    /// The stamp of what a path leads to. `None`: it cannot be told.
    pub fn of(path: &Path) -> Option<Self> {
        Some(Self::from(&fs::metadata(path).ok()?))
    }

    /// Whether the last change is so old that another one would have another ctime.
    pub fn is_settled(&self) -> bool {
        let age =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed() - self.ctime);
        age >= SETTLED
    }
}

impl From<&Metadata> for Stamp {
    fn from(meta: &Metadata) -> Self {
        Self { dev: meta.dev(), ino: meta.ino(), size: meta.size(), ctime: meta.ctime(), ctime_nsec: meta.ctime_nsec() }
    }
}
