//! A sandbox that is being made: in a staging directory among the others, and visible in one rename. The lock on its staging
//! directory tells it from an abandoned one, which the next maker of a sandbox removes.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::publish::{make_private_dir, remove_tree, staging_path, sync_parent};
use super::{Error, layout, sync};
use crate::lock::{self, Lock};
use crate::overlay::error::At;

/// A sandbox that is being made.
#[derive(Debug)]
pub struct Draft {
    /// The staging directory.
    pub dir: PathBuf,
    /// Where the sandbox will be.
    pub to: PathBuf,
    _lock: OwnedFd,
}

impl Draft {
    /// Starts a sandbox in the directory `sandboxes`, and removes abandoned staging directories there.
    ///
    /// # Errors
    /// The error of making or locking.
    pub fn begin(sandboxes: &Path) -> Result<Self, Error> {
        make_private_dir(sandboxes).at(|| format!("{sandboxes:?}"))?;
        // No other process may find the staging directory between its making and its locking, and take it for abandoned.
        let _gate = lock::open(sandboxes, Lock::Exclusive).at(|| format!("{sandboxes:?}"))?;
        remove_abandoned(sandboxes);
        let to = sandboxes.join(layout::fresh_id()?);
        let dir = staging_path(&to);
        make_private_dir(&dir).at(|| format!("{dir:?}"))?;
        let lock = lock::open(&dir, Lock::TryExclusive).at(|| format!("{dir:?}"))?;
        Ok(Self { dir, to, _lock: lock })
    }

    /// Syncs the sandbox and makes it visible. Returns why a crash of the machine may undo that, if it may.
    ///
    /// # Errors
    /// The error of syncing the files or of renaming; nothing is visible then.
    pub fn publish(&self) -> io::Result<Option<io::Error>> {
        sync::tree(&self.dir)?;
        fs::rename(&self.dir, &self.to)?;
        Ok(sync_parent(&self.to).err())
    }

    /// Removes the sandbox, visible or not.
    pub fn discard(&self) {
        let _ = fs::rename(&self.to, &self.dir);
        let _ = remove_tree(&self.dir);
    }
}

/// Removes staging directories that nobody has locked. One that cannot be removed is left to `msb-store gc`, which reports it.
fn remove_abandoned(sandboxes: &Path) {
    for child in fs::read_dir(sandboxes).into_iter().flatten().flatten() {
        let path = child.path();
        if layout::is_staging(&path)
            && let Ok(_lock) = lock::open(&path, Lock::TryExclusive)
        {
            let _ = remove_tree(&path);
        }
    }
}
