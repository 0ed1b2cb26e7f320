//! How much one pull may write: the caller's limits, and space that stays free for others. A layer does not say reliably how
//! large it is when unpacked, so this is counted while it is written.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::HumanBytes;

/// How many bytes are written between two checks of the free space.
const INTERVAL: u64 = 16 << 20;
/// How much stays free: a hundredth of the file system, this many bytes at most.
const MAX_RESERVE: u64 = 256 << 20;

/// The limits of `--max-size` and `--max-files`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The total size of the files of all layers, in bytes.
    pub(crate) size: u64,
    /// The number of files, directories and links of all layers.
    pub(crate) files: u64,
}

/// A limit was exceeded.
#[derive(Debug)]
pub(crate) struct Exceeded(String);

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Exceeded {}

/// Counts what a pull writes, and what it cannot write.
pub(crate) struct Budget {
    limits: Limits,
    size: AtomicU64,
    files: AtomicU64,
    unchecked: AtomicU64,
    left_out: AtomicU64,
    home: File,
}

impl Budget {
    /// For a pull into the store at `home`.
    ///
    /// # Errors
    /// The errors of opening the directory.
    pub(crate) fn new(limits: Limits, home: &Path) -> io::Result<Self> {
        let zero = AtomicU64::default;
        Ok(Self { limits, size: zero(), files: zero(), unchecked: zero(), left_out: zero(), home: File::open(home)? })
    }

    /// Counts a file that is about to be made.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub(crate) fn file(&self) -> anyhow::Result<()> {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = self.limits.files;
        if files > limit {
            return Err(Exceeded(format!("the image has more than {limit} files (allow more with --max-files)")).into());
        }
        Ok(())
    }

    /// Counts a device node that this user cannot make.
    pub(crate) fn left_out(&self) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// How many device nodes were left out.
    pub(crate) fn devices_left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Counts bytes of a file that are about to be written.
    ///
    /// # Errors
    /// [`Exceeded`]; [`io::ErrorKind::StorageFull`] where too little space would be left.
    pub(crate) fn data(&self, length: u64) -> anyhow::Result<()> {
        self.check_size(self.size.fetch_add(length, Ordering::Relaxed).saturating_add(length))?;
        self.check_space(length)
    }

    /// Counts the size of a sparse file, which may be larger than its data.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub(crate) fn holes(&self, length: u64) -> anyhow::Result<()> {
        let before = self.size.load(Ordering::Relaxed);
        self.check_size(before.saturating_add(length))?;
        self.size.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Counts bytes of an archive that are about to be spooled: compressed data may unpack to any size here as well.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub(crate) fn spool(&self, length: u64) -> anyhow::Result<()> {
        self.check_space(length)
    }

    fn check_size(&self, size: u64) -> anyhow::Result<()> {
        let limit = self.limits.size;
        if size > limit {
            let limit = HumanBytes(limit);
            return Err(Exceeded(format!("the image unpacks to more than {limit} (allow more with --max-size)")).into());
        }
        Ok(())
    }

    fn check_space(&self, length: u64) -> anyhow::Result<()> {
        if self.unchecked.fetch_add(length, Ordering::Relaxed) + length < INTERVAL {
            return Ok(());
        }
        self.unchecked.store(0, Ordering::Relaxed);
        let file_system = rustix::fs::fstatvfs(&self.home)?;
        let free = file_system.f_bavail.saturating_mul(file_system.f_frsize);
        let reserve = (file_system.f_blocks.saturating_mul(file_system.f_frsize) / 100).min(MAX_RESERVE);
        if free < reserve {
            let (free, reserve) = (HumanBytes(free), HumanBytes(reserve));
            let message = format!("only {free} are free, and {reserve} have to stay so");
            return Err(io::Error::new(io::ErrorKind::StorageFull, message).into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_over_all_layers() {
        let home = tempfile::tempdir().unwrap();
        let budget = Budget::new(Limits { size: 10, files: 2 }, home.path()).unwrap();
        budget.data(6).unwrap();
        budget.holes(4).unwrap();
        assert!(budget.data(1).unwrap_err().to_string().contains("more than 10 B"));
        budget.file().unwrap();
        budget.file().unwrap();
        assert!(budget.file().unwrap_err().is::<Exceeded>());
        // An archive that is spooled is not the image, and a device that is left out takes nothing.
        budget.spool(100).unwrap();
        budget.left_out();
        assert_eq!(budget.devices_left_out(), 1);
    }
}
