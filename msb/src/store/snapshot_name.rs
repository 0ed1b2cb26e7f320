//! Names of snapshots. `snapshot-names/NAME` has the digest of the snapshot and that of its sources. A name appears with a rename, and a
//! name without its snapshot is ignored, so a kill at any moment leaves a valid name or none.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::layout::{self, SCRATCH_DISK};
use super::{publish, snapshot};
use crate::lock::{self, Lock};
use crate::record::{Record, Snapshot};
use crate::vm::name;

/// How the names of VMs begin that are saved for a name.
const VM_PREFIX: &str = "snapshot-";

/// The content of a name's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The digest of the snapshot's sources.
    pub key: String,
    /// The snapshot: `sha256:HEX`.
    pub digest: String,
}

impl Named {
    /// Reads a name. `None` if there is no such name, or its snapshot is gone.
    pub fn read(home: &Path, name: &str) -> Option<Self> {
        read(home, &layout::snapshot_name(home, name))
    }

    /// The snapshot, which may be gone. `None` if the digest is malformed.
    pub fn snapshot(&self, home: &Path) -> Option<Snapshot> {
        let hex = self.digest.strip_prefix("sha256:").filter(|hex| layout::is_id(hex))?;
        Some(Snapshot::new(layout::snapshot(home, hex), self.digest.clone()))
    }

    /// Assigns the name to this snapshot, unless another snapshot with the same key has it already. Returns the snapshot that is left
    /// without the name: the previous one, or this one. Calls `before` with the previous one while that still has the name.
    ///
    /// # Errors
    /// Those of writing, of the lock, and of `before`; then the name stays where it was.
    pub fn assign(
        &self,
        home: &Path,
        name: &str,
        before: impl FnOnce(&Self) -> io::Result<()>,
    ) -> io::Result<Option<Self>> {
        publish::make_private_dir(&layout::snapshot_names(home))?;
        let _lock = lock(home)?;
        let there = Self::read(home, name);
        if let Some(there) = &there
            && there.key == self.key
        {
            return Ok((there != self).then(|| self.clone()));
        }
        there.as_ref().map_or(Ok(()), before)?;
        publish::write_file(&layout::snapshot_name(home, name), &serde_json::to_vec(self)?, 0o600)?;
        Ok(there)
    }
}

/// A new name for a VM that is saved for a name, and for the sandbox with its upper.
///
/// # Errors
/// The error of `getrandom(2)`.
pub fn fresh_vm() -> io::Result<String> {
    Ok(format!("{VM_PREFIX}{}", layout::fresh_id()?))
}

/// The sandbox with the upper of a snapshot, if it was made for snapshots alone: it has a name of [`fresh_vm`], and no VM's disk.
pub fn sandbox_of(home: &Path, record: &Record) -> Option<PathBuf> {
    let name = record.upper.as_ref()?.dir.parent()?.file_name()?.to_str()?;
    let id = name.strip_prefix(VM_PREFIX)?;
    let sandbox = layout::sandbox(home, name);
    let is_own = layout::is_fresh_id(id) && record.has_sandbox(&sandbox);
    (is_own && !sandbox.join(SCRATCH_DISK).exists()).then_some(sandbox)
}

/// Removes the names that have no snapshot.
///
/// # Errors
/// Those of reading and removing, and of the lock.
pub fn prune(home: &Path) -> io::Result<()> {
    let _lock = match lock(home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in fs::read_dir(layout::snapshot_names(home))? {
        let path = entry?.path();
        // Names are written under the lock, so a staging file was left by a killed process.
        if layout::is_staging(&path) || read(home, &path).is_none() {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Whether a snapshot has a name.
pub fn has_name(home: &Path, digest: &str) -> bool {
    all(home).values().any(|named| named.digest == digest)
}

/// All names that have a snapshot.
pub fn all(home: &Path) -> BTreeMap<String, Named> {
    let entries = fs::read_dir(layout::snapshot_names(home)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let names = names.filter(|name| name::check(name).is_ok());
    names.filter_map(|name| Some((name.clone(), Named::read(home, &name)?))).collect()
}

fn read(home: &Path, file: &Path) -> Option<Named> {
    let named: Named = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    named.snapshot(home)?.path.join(snapshot::DESCRIPTION).exists().then_some(named)
}

fn lock(home: &Path) -> io::Result<OwnedFd> {
    lock::open(&layout::snapshot_names(home), Lock::Exclusive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Upper;

    #[test]
    fn a_name_goes_to_the_first_snapshot_of_a_key_and_from_an_older_key_to_a_newer_one() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let make = |key: &str, digit: &str| {
            let digest = format!("sha256:{}", digit.repeat(64));
            let named = Named { key: key.into(), digest };
            let dir = named.snapshot(home).unwrap().path;
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(snapshot::DESCRIPTION), "{}").unwrap();
            named
        };
        prune(home).unwrap();
        assert_eq!(Named::read(home, "web"), None);
        let [first, same, other] = [make("a", "1"), make("a", "2"), make("b", "3")];
        let unexpected = |there: &Named| panic!("{there:?} loses its name");
        assert_eq!(first.assign(home, "web", unexpected).unwrap(), None);
        assert_eq!(first.assign(home, "web", unexpected).unwrap(), None);
        assert_eq!(same.assign(home, "web", unexpected).unwrap(), Some(same.clone()));
        assert_eq!(Named::read(home, "web"), Some(first.clone()));
        // If this process is killed from now on, another one must know which snapshot has lost its name.
        assert!(other.assign(home, "web", |_| Err(io::ErrorKind::BrokenPipe.into())).is_err());
        assert_eq!(Named::read(home, "web"), Some(first.clone()));
        let mut warned = None;
        let note = |there: &Named| {
            assert_eq!(Named::read(home, "web").as_ref(), Some(there));
            warned = Some(there.clone());
            Ok(())
        };
        assert_eq!(other.assign(home, "web", note).unwrap(), Some(first.clone()));
        assert_eq!(warned, Some(first.clone()));
        assert_eq!(Named::read(home, "web"), Some(other.clone()));
        assert_eq!(all(home), BTreeMap::from([("web".to_owned(), other.clone())]));
        // A name whose snapshot is gone is free.
        fs::remove_dir_all(other.snapshot(home).unwrap().path).unwrap();
        assert_eq!(Named::read(home, "web"), None);
        assert_eq!(first.assign(home, "web", unexpected).unwrap(), None);
        fs::write(layout::snapshot_name(home, "half"), "{\"key\":").unwrap();
        fs::copy(layout::snapshot_name(home, "web"), layout::snapshot_name(home, ".web.7.0")).unwrap();
        assert_eq!(all(home), BTreeMap::from([("web".to_owned(), first.clone())]));
        fs::write(layout::snapshot_name(home, "odd"), "{\"key\":\"a\",\"digest\":\"sha256:../x\"}").unwrap();
        prune(home).unwrap();
        assert_eq!(fs::read_dir(layout::snapshot_names(home)).unwrap().count(), 1);
        assert_eq!(Named::read(home, "web"), Some(first));
    }

    #[test]
    fn the_sandbox_of_a_snapshot_is_one_that_was_made_for_it() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let of = |name: &str| {
            let sandbox = layout::sandbox(home, name);
            let mut record = Record::new();
            record.upper = Some(Upper::new(sandbox.join(layout::UPPER), sandbox.join(layout::WORK)));
            sandbox_of(home, &record)
        };
        let vm = fresh_vm().unwrap();
        assert_eq!(of(&vm), Some(layout::sandbox(home, &vm)));
        for other in ["worker", "snapshot-", "snapshot-web", "snapshot-0123456789abc", "0123456789ab"] {
            assert_eq!(of(other), None, "{other}");
        }
        // A disk is that of a user's VM with such a name.
        fs::create_dir_all(layout::sandbox(home, &vm)).unwrap();
        fs::write(layout::sandbox(home, &vm).join(SCRATCH_DISK), "").unwrap();
        assert_eq!(of(&vm), None);
        assert_eq!(sandbox_of(home, &Record::new()), None);
    }
}
