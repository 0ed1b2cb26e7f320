//! Users of layers. While a process uses layers of the store, it holds a shared lock on each of them, so that nobody removes
//! them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fstat, stat, utimensat};

use super::{Error, layout};
use crate::lock::{self, Lock};
use crate::overlay::error::At;

/// Locks those of the directories that are layers in a store, until the descriptors are closed. Their last use is now.
///
/// # Errors
/// [`Error::Caller`] for a layer that was removed.
pub fn hold(lower: &[PathBuf]) -> Result<Vec<OwnedFd>, Error> {
    let mut held = Vec::new();
    for dir in lower {
        if let Some((home, id)) = layout::stored_layer(dir) {
            held.push(hold_one(dir)?);
            touch(home, id);
        }
    }
    Ok(held)
}

/// Locks one layer of a store until the descriptor is closed. It does not count as a use.
///
/// # Errors
/// [`Error::Caller`] for a layer that was removed.
pub fn hold_one(dir: &Path) -> Result<OwnedFd, Error> {
    let gone = || Error::Caller(format!("layer {dir:?} was removed from the store (pull its image again)"));
    match lock::open(dir, Lock::Shared) {
        Ok(held) => {
            // It may have been removed between the opening and the locking.
            let ours = fstat(&held).map_err(io::Error::from).at(|| format!("layer {dir:?}"))?;
            let is_there = stat(dir).is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino));
            if is_there { Ok(held) } else { Err(gone()) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(gone()),
        Err(error) => Err(error).at(|| format!("layer {dir:?}")),
    }
}

/// Notes that a layer is used now. Its checksums carry the time, since the layer itself must not change.
pub fn touch(home: &Path, id: &str) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: now };
    // A store that cannot be written has no garbage to collect.
    let _ = utimensat(CWD, layout::checksums(home, id), &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// When a layer was last used, as far as the store knows.
pub fn last_use(home: &Path, id: &str) -> Option<SystemTime> {
    std::fs::symlink_metadata(layout::checksums(home, id)).and_then(|meta| meta.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_in_use_is_locked_and_one_that_is_removed_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let layer = layout::layer(home.path(), &"a".repeat(64));
        let elsewhere = home.path().join("elsewhere");
        std::fs::create_dir_all(&layer).unwrap();
        let held = hold(&[layer.clone(), elsewhere.clone()]).unwrap();
        assert_eq!(held.len(), 1);
        let second = hold(std::slice::from_ref(&layer)).unwrap();
        drop(held);
        assert!(lock::open(&layer, Lock::TryExclusive).is_err());
        drop(second);
        let removing = lock::open(&layer, Lock::TryExclusive).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| hold(std::slice::from_ref(&layer)));
            std::fs::rename(&layer, layer.with_file_name(".removed")).unwrap();
            drop(removing);
            let error = waiting.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Caller(_)) && error.to_string().contains("pull its image again"), "{error}");
        });
    }
}
