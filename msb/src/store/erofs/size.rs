//! How much space an image of a tree takes, before it is made. mkfs.erofs writes the holes of a file out as zeros, and a file that a
//! guest has committed may be of any length.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::overlay::beneath::Entry;
use crate::store::Error;

/// The block size of an image, in bytes.
const BLOCK: u64 = 4096;

/// The size of the files of a tree in an image.
#[derive(Debug, Default)]
pub(super) struct Size {
    bytes: u64,
    /// The size of the longest file, and its path.
    longest: (u64, PathBuf),
    /// The hardlinked files that were counted, by device and inode number.
    hardlinked: HashSet<(u64, u64)>,
}

impl Size {
    /// Counts a file, but a hardlinked one only once.
    pub(super) fn add(&mut self, path: &Path, entry: &Entry) {
        let stat = entry.stat();
        let is_new = stat.st_nlink < 2 || self.hardlinked.insert((stat.st_dev, stat.st_ino));
        if entry.file_type() == FileType::RegularFile && is_new {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            self.bytes = self.bytes.saturating_add(size.next_multiple_of(BLOCK));
            if size > self.longest.0 {
                self.longest = (size, Path::new("/").join(path));
            }
        }
    }

    /// Refuses a tree that does not fit on the file system of `image`, before that is full.
    pub(super) fn check(&self, image: &File) -> Result<(), Error> {
        let free = rustix::fs::fstatvfs(image)?;
        let free = free.f_bavail.saturating_mul(free.f_frsize);
        if self.bytes <= free {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let (size, path) = &self.longest;
        Err(Error::Host(format!(
            "no space left for the image: its files have {} MiB with their holes, {} of them in {path:?}, and {} MiB are free (make \
             room, set MSB_HOME, or mount the root with msb-mount)",
            mib(self.bytes),
            mib(*size),
            free >> 20,
        )))
    }
}
