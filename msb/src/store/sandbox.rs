//! Who has a sandbox. An upper that a pipe made without `--upper` belongs to the mount or the VM that uses it: each user holds a
//! shared lock on the sandbox's file `hold`, and notes the time when it ends. One that nobody has held for a day is garbage. A
//! sandbox without that file, such as that of a VM's name or of a commit, stays until someone removes it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Error;
use super::layout::{self, HOLD, OWNER, SCRATCH_BASE, SCRATCH_DISK, SCRATCH_NEEDS, UPPER, WORK};
use super::publish::{remove_tree, staging_path, write_file};
use crate::lock::{self, Lock};
use crate::record::{Record, Rootfs};

/// Why a disk cannot be removed.
const DISK_IN_USE: &str = "a VM has the disk (stop it first; another MSB_RUN may have it)";

/// The largest `owner.json` that is read, in bytes.
const MAX_OWNER: u64 = 1 << 20;

/// What a sandbox belongs to, in its `owner.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// The reference of the image.
    pub image: Option<String>,
    /// The directories below the upper, top first.
    pub lower: Vec<PathBuf>,
    /// Where the upper was last mounted.
    pub mount: Option<PathBuf>,
    /// The VM that used it last.
    pub vm: Option<String>,
}

impl Owner {
    /// The image and the lower directories of a record.
    pub fn of(record: &Record) -> Self {
        let lower = match &record.rootfs {
            Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) => lower.clone(),
            _ => Vec::new(),
        };
        Self { image: record.image.as_ref().map(|image| image.reference.clone()), lower, ..Self::default() }
    }

    /// Reads the owner of a sandbox; an empty one if there is none.
    pub fn read(sandbox: &Path) -> Self {
        let path = sandbox.join(OWNER);
        let is_small = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_OWNER);
        let text = if is_small { fs::read(path).unwrap_or_default() } else { Vec::new() };
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Writes the owner of a sandbox that is being made.
    ///
    /// # Errors
    /// The error of writing.
    pub fn create(&self, sandbox: &Path) -> io::Result<()> {
        fs::write(sandbox.join(OWNER), serde_json::to_vec(self)?)
    }

    /// Replaces the owner of a sandbox.
    ///
    /// # Errors
    /// The error of writing.
    fn write(&self, sandbox: &Path) -> io::Result<()> {
        write_file(&sandbox.join(OWNER), &serde_json::to_vec(self)?, 0o600)
    }
}

/// Marks a new sandbox as one that lives as long as its users.
///
/// # Errors
/// The error of making the file.
pub fn make_held(sandbox: &Path) -> io::Result<()> {
    lock::make(&sandbox.join(HOLD), Lock::TryShared).map(drop)
}

/// The use of a sandbox by msb-patch, a mount or a VM. Dropping it notes the time.
#[derive(Debug)]
pub struct Hold(File);

impl Hold {
    /// Holds the sandbox of an upper, or of scripts, and changes its owner; `None` if it is not in a sandbox that a pipe made.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if the sandbox was removed meanwhile; else the error of opening or writing.
    pub fn take(upper: &Path, change: impl FnOnce(&mut Owner)) -> io::Result<Option<Self>> {
        let Some(sandbox) = upper.parent().filter(|dir| layout::is_sandbox(dir)) else { return Ok(None) };
        let file = match File::options().write(true).open(sandbox.join(HOLD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // What cannot be written cannot be removed either.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(None),
            other => other?,
        };
        // Others lock it for a moment, or until the sandbox is removed.
        lock::take(&file, Lock::Shared)?;
        if rustix::fs::fstat(&file)?.st_nlink == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its sandbox was removed"));
        }
        // A length marks a user who has not ended properly yet.
        file.set_len(1)?;
        let hold = Self(file);
        let old = Owner::read(sandbox);
        let mut owner = old.clone();
        change(&mut owner);
        if owner != old {
            owner.write(sandbox)?;
        }
        Ok(Some(hold))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Only the last user removes the mark: another one may be killed later. A refused upgrade loses the shared lock, which ends
        // here anyway.
        if lock::take(&self.0, Lock::TryExclusive).is_ok() {
            let _ = self.0.set_len(0);
        }
        let _ = self.0.set_modified(SystemTime::now());
    }
}

/// The state of a sandbox's `hold`.
#[derive(Debug)]
pub enum Held {
    /// The sandbox has none, or is on a file system that cannot be written: it stays.
    Kept,
    /// msb-patch, a mount or a VM uses it.
    Now,
    /// Nobody has held it since then. While the file is open, nobody can.
    Since(SystemTime, File),
}

/// Whether somebody holds a sandbox. A user that was killed left no time, so it counts as ended now.
///
/// # Errors
/// The error of opening or of `flock(2)`.
pub fn held(sandbox: &Path) -> io::Result<Held> {
    let file = match File::options().write(true).open(sandbox.join(HOLD)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::Kept),
        // What cannot be written cannot be removed either.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(Held::Kept),
        other => other?,
    };
    match lock::take(&file, Lock::TryExclusive) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Held::Now),
        other => other?,
    }
    let meta = file.metadata()?;
    if meta.len() == 0 {
        return Ok(Held::Since(meta.modified()?, file));
    }
    let now = SystemTime::now();
    file.set_len(0)?;
    file.set_modified(now)?;
    Ok(Held::Since(now, file))
}

/// Writes the list of the other sandboxes that a VM with a named disk needs for its next boot: those of its upper and its scripts. The
/// caller must hold the disk's lock.
///
/// # Errors
/// The error of writing or removing.
pub fn note_needs(sandbox: &Path, record: &Record) -> io::Result<()> {
    let paths = record.upper_and_scripts();
    let needs = paths.filter_map(|path| path.ancestors().find(|dir| layout::is_sandbox(dir)));
    let needs: BTreeSet<&Path> = needs.filter(|dir| *dir != sandbox).collect();
    let path = sandbox.join(SCRATCH_NEEDS);
    if needs.is_empty() {
        return remove_tree(&path);
    }
    let text = serde_json::to_vec(&needs)?;
    if fs::read(&path).is_ok_and(|old| old == text) { Ok(()) } else { write_file(&path, &text, 0o600) }
}

/// Reads the list of [`note_needs`]. It is empty if the sandbox has no disk.
pub fn needs_of(sandbox: &Path) -> Vec<PathBuf> {
    let is_small = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_OWNER);
    let text = Some(sandbox.join(SCRATCH_NEEDS)).filter(|path| is_small(path) && sandbox.join(SCRATCH_DISK).exists());
    text.and_then(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).unwrap_or_default()
}

/// The sandboxes that VMs need to be booted again, for each VM that needs any.
///
/// # Errors
/// Those of reading the directory of sandboxes.
pub fn all_needs(home: &Path) -> io::Result<Vec<(String, Vec<PathBuf>)>> {
    let entries = match fs::read_dir(layout::sandboxes(home)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let needs = needs_of(&path);
        if !needs.is_empty() && !layout::is_staging(&path) {
            all.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), needs));
        }
    }
    Ok(all)
}

/// Removes a sandbox that nothing uses. False: there is none.
///
/// # Errors
/// [`Error::Caller`] for one that is in use.
pub fn remove(sandbox: &Path) -> Result<bool, Error> {
    let lock = match lock::open(sandbox, Lock::Exclusive) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    // Another process had it, and has removed it.
    if rustix::fs::fstat(&lock).map_err(io::Error::from)?.st_nlink == 0 {
        return Ok(false);
    }
    let upper = "its upper is in use (unmount it, or stop the VM that has it)";
    let parts = [(SCRATCH_DISK, DISK_IN_USE), (WORK, upper), (HOLD, upper)];
    let locked = parts.map(|(part, in_use)| lock_part(&sandbox.join(part), in_use));
    let _locks = locked.into_iter().collect::<Result<Vec<_>, _>>()?;
    // With another name nobody finds half of it. While it is locked, no other tool takes it for abandoned.
    let removed = staging_path(sandbox);
    fs::rename(sandbox, &removed)?;
    remove_tree(&removed)?;
    Ok(true)
}

/// Removes the scratch disk of a VM's name, and its sandbox if nothing else is in that. False: there is none.
///
/// # Errors
/// [`Error::Caller`] for one that is in use.
pub fn remove_disk(sandbox: &Path) -> Result<bool, Error> {
    let disk = sandbox.join(SCRATCH_DISK);
    if !disk.try_exists()? {
        return Ok(false);
    }
    if !sandbox.join(UPPER).exists() {
        return remove(sandbox);
    }
    // As msb-boot does when it gives a disk its name.
    let _sandbox = lock::open(sandbox, Lock::Exclusive)?;
    let _disk = lock_part(&disk, DISK_IN_USE)?;
    fs::remove_file(&disk)?;
    for note in [SCRATCH_BASE, SCRATCH_NEEDS] {
        remove_tree(&sandbox.join(note))?;
    }
    Ok(true)
}

fn lock_part(path: &Path, in_use: &'static str) -> Result<Option<OwnedFd>, Error> {
    match lock::open(path, Lock::TryExclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::Caller(in_use.into())),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use super::*;
    use crate::record::Upper;

    #[test]
    fn a_sandbox_in_use_stays() {
        let sandboxes = tempfile::tempdir().unwrap();
        let sandbox = sandboxes.path().join("worker");
        assert!(!remove(&sandbox).unwrap());
        fs::create_dir_all(sandbox.join(WORK)).unwrap();
        for part in [SCRATCH_DISK, HOLD] {
            fs::write(sandbox.join(part), "").unwrap();
        }
        for part in [SCRATCH_DISK, WORK, HOLD] {
            let lock = lock::open(&sandbox.join(part), Lock::TryShared).unwrap();
            assert!(matches!(remove(&sandbox), Err(Error::Caller(_))), "{part}");
            drop(lock);
        }
        assert!(remove(&sandbox).unwrap());
        assert_eq!(fs::read_dir(sandboxes.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_disk_is_removed_without_the_upper_beside_it() {
        let sandboxes = tempfile::tempdir().unwrap();
        let sandbox = sandboxes.path().join("worker");
        let names = || {
            let names = fs::read_dir(&sandbox).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
        };
        assert!(!remove_disk(&sandbox).unwrap());
        for dir in [UPPER, WORK] {
            fs::create_dir_all(sandbox.join(dir)).unwrap();
        }
        assert!(!remove_disk(&sandbox).unwrap());
        for file in [SCRATCH_DISK, SCRATCH_BASE, SCRATCH_NEEDS] {
            fs::write(sandbox.join(file), "").unwrap();
        }
        let lock = lock::open(&sandbox.join(SCRATCH_DISK), Lock::TryShared).unwrap();
        assert!(matches!(remove_disk(&sandbox), Err(Error::Caller(_))));
        drop(lock);
        assert!(remove_disk(&sandbox).unwrap());
        assert_eq!(names(), format!("{UPPER} {WORK}"));
        fs::remove_dir(sandbox.join(UPPER)).unwrap();
        fs::write(sandbox.join(SCRATCH_DISK), "").unwrap();
        assert!(remove_disk(&sandbox).unwrap());
        assert!(!sandbox.exists());
    }

    #[test]
    fn a_sandbox_is_held_by_its_users_and_free_from_the_end_of_the_last_one() {
        let home = tempfile::tempdir().unwrap();
        let sandbox = layout::sandbox(home.path(), "0123456789ab");
        let upper = sandbox.join(layout::UPPER);
        fs::create_dir_all(&upper).unwrap();
        assert!(matches!(held(&sandbox).unwrap(), Held::Kept));
        assert!(Hold::take(&upper, |_| ()).unwrap().is_none(), "not made by a pipe");
        make_held(&sandbox).unwrap();
        assert!(Hold::take(&home.path().join("upper"), |_| ()).unwrap().is_none(), "a directory of the caller");
        let long_ago = SystemTime::now() - Duration::from_secs(1 << 20);
        let set_long_ago = || File::open(sandbox.join(HOLD)).unwrap().set_modified(long_ago).unwrap();
        set_long_ago();
        assert!(matches!(held(&sandbox).unwrap(), Held::Since(since, _) if since == long_ago));
        let hold = Hold::take(&upper, |_| ()).unwrap().unwrap();
        assert!(matches!(held(&sandbox).unwrap(), Held::Now));
        set_long_ago();
        drop(hold);
        assert!(matches!(held(&sandbox).unwrap(), Held::Since(since, _) if since > long_ago), "its end counts");
        // A user who was killed, while another one ended properly.
        let other = Hold::take(&upper, |_| ()).unwrap().unwrap();
        let hold = Hold::take(&upper, |_| ()).unwrap().unwrap();
        drop(other);
        set_long_ago();
        lock::release(&hold.0).unwrap();
        assert!(matches!(held(&sandbox).unwrap(), Held::Since(since, _) if since > long_ago), "its end is not known");
    }

    #[test]
    fn the_sandboxes_that_a_disk_needs_are_listed() {
        let home = tempfile::tempdir().unwrap();
        let sandbox = |id: &str| layout::sandbox(home.path(), id);
        let disk = sandbox("worker");
        fs::create_dir_all(&disk).unwrap();
        let mut record = Record::new();
        record.upper = Some(Upper::new(sandbox("upper").join(UPPER), sandbox("upper").join(WORK)));
        record.scripts.insert("own".into(), disk.join("scripts/own"));
        record.scripts.insert("other".into(), sandbox("scripts").join("scripts/other"));
        record.scripts.insert("elsewhere".into(), "/srv/scripts/elsewhere".into());
        note_needs(&disk, &record).unwrap();
        assert!(needs_of(&disk).is_empty(), "there is no disk");
        fs::write(disk.join(SCRATCH_DISK), "").unwrap();
        assert_eq!(needs_of(&disk), [sandbox("scripts"), sandbox("upper")]);
        fs::create_dir(sandbox("other")).unwrap();
        assert_eq!(all_needs(home.path()).unwrap(), [("worker".to_owned(), needs_of(&disk))]);
        let inode = || fs::metadata(disk.join(SCRATCH_NEEDS)).unwrap().ino();
        let before = inode();
        note_needs(&disk, &record).unwrap();
        assert_eq!(inode(), before, "nothing is written");
        record.scripts.clear();
        note_needs(&disk, &record).unwrap();
        assert_eq!(needs_of(&disk), [sandbox("upper")]);
        fs::write(disk.join(SCRATCH_NEEDS), "{").unwrap();
        assert!(needs_of(&disk).is_empty());
        note_needs(&disk, &Record::new()).unwrap();
        assert!(!disk.join(SCRATCH_NEEDS).exists());
    }

    #[test]
    fn an_owner_that_is_damaged_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Owner::read(dir.path()), Owner::default());
        let owner = Owner { image: Some("a".into()), lower: vec!["/b".into()], ..Owner::default() };
        owner.write(dir.path()).unwrap();
        assert_eq!(Owner::read(dir.path()), owner);
        fs::write(dir.path().join(OWNER), "{").unwrap();
        assert_eq!(Owner::read(dir.path()), Owner::default());
    }
}
