//! The scratch disk of a block root, which holds what the guest writes: a sparse ext4 file. A VM with a name keeps its disk in
//! `$MSB_HOME/sandboxes/NAME`. The disk of a VM without a name is an unlinked file, which disappears with the VM.
//!
//! A disk is a copy of a template. mke2fs makes the template of each size once; it has a few hundred blocks, and holes.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, bail};
use msb::lock::{self, Lock};
use msb::overlay::copy_data;
use msb::record::{self, Record, ScratchKind};
use msb::store::layout::{self, SCRATCH_BASE, SCRATCH_DISK, SCRATCH_NEEDS};
use msb::store::publish::link;
use msb::store::{home, publish, sandbox};
use msb::tool::interrupt;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::program;
use crate::unusable::Unusable;

/// The size of a disk by default, in bytes.
const DEFAULT_SIZE: u64 = 4 << 30;
/// Why a name cannot be used.
const TAKEN: &str = "another VM has it (stop that one, or take another --name)";

/// The options for the template: no blocks are reserved for root, and nothing is written that the kernel does not need.
const OPTIONS: &[&str] =
    &["-m", "0", "-J", "size=32", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"];
/// Part of the template's name. A release with other options has another number and makes its own templates.
const TEMPLATE_VERSION: u32 = 1;

/// The place for what the guest writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scratch {
    /// A tmpfs in the guest's memory.
    Memory,
    /// A disk that is removed when the VM ends.
    Unnamed {
        /// In bytes.
        size: u64,
    },
    /// A disk that stays.
    Named {
        /// The sandbox's directory.
        dir: PathBuf,
        /// In bytes; `None` for the size of the existing disk, or the default.
        size: Option<u64>,
        /// The name of the tree below the disk.
        base: Vec<u8>,
        /// Whether a new disk replaces an existing one.
        fresh: bool,
    },
}

/// An existing disk that the VM will use again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Existing {
    /// How much its guests have written, in bytes.
    pub written: u64,
    /// When they last wrote.
    pub last_written: SystemTime,
}

impl Scratch {
    /// A new disk that is removed when the VM ends.
    pub(crate) fn unnamed(size: Option<u64>) -> Self {
        Self::Unnamed { size: size.unwrap_or(DEFAULT_SIZE) }
    }

    /// The disk of the VM with this name.
    ///
    /// # Errors
    /// A message if no variable names the state directory.
    pub(crate) fn named(name: &str, size: Option<u64>, base: &[u8], fresh: bool) -> io::Result<Self> {
        Ok(Self::Named { dir: layout::sandbox(&home::home()?, name), size, base: base.to_owned(), fresh })
    }

    /// Checks that the disk can be opened or made, and makes nothing. Returns the disk that will be used again, if there is one.
    ///
    /// # Errors
    /// As [`Self::open`], and the package to install if a new disk is needed and cannot be made.
    pub(crate) fn check(&self, home: &Path) -> anyhow::Result<Option<Existing>> {
        let size = match self {
            Self::Memory => return Ok(None),
            Self::Unnamed { size } => *size,
            Self::Named { dir, size, base, fresh } => {
                let path = dir.join(SCRATCH_DISK);
                let opened = open_named(dir, &path, *size, base, *fresh).with_context(|| format!("disk {path:?}"))?;
                if let Some(disk) = opened.filter(|_| !fresh) {
                    return Ok(Some(existing(home, &disk)?));
                }
                size.unwrap_or(DEFAULT_SIZE)
            }
        };
        if !template_path(home, size).exists() {
            mke2fs()?;
        }
        Ok(None)
    }

    /// The disk's file, if it has a name.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Named { dir, .. } => Some(dir.join(SCRATCH_DISK)),
            _ => None,
        }
    }

    /// Its description for the record.
    pub(crate) fn in_record(&self) -> record::Scratch {
        let kind = if *self == Self::Memory { ScratchKind::Memory } else { ScratchKind::Disk };
        record::Scratch::new(kind, self.path())
    }

    /// Removes the disk of a VM with a name, once its content is committed.
    pub(crate) fn remove(&self) {
        if let Self::Named { dir, .. } = self {
            let _lock = lock_directory(dir);
            for file in [SCRATCH_DISK, SCRATCH_BASE, SCRATCH_NEEDS] {
                let _ = fs::remove_file(dir.join(file));
            }
            // Fails for a sandbox that holds other files, which stays.
            let _ = fs::remove_dir(dir);
        }
    }

    /// Opens the disk, and makes it if it is missing. The disk is locked as long as the file is open.
    ///
    /// # Errors
    /// A disk that another VM uses, or that belongs to another image.
    pub(crate) fn open(&self, home: &Path) -> anyhow::Result<Option<Open<'_>>> {
        let (file, name) = match self {
            Self::Memory => return Ok(None),
            Self::Unnamed { size } => (make(home, *size)?, None),
            Self::Named { dir, size, base, fresh } => {
                let path = dir.join(SCRATCH_DISK);
                match open_named(dir, &path, *size, base, *fresh).with_context(|| format!("disk {path:?}"))? {
                    Some(disk) if !fresh => (disk, None),
                    replaced => {
                        let name = Name { dir, base, replaced };
                        (make(home, size.unwrap_or(DEFAULT_SIZE))?, Some(name))
                    }
                }
            }
        };
        Ok(Some(Open { file, name }))
    }
}

/// An open disk. A new one gets its name last, because the steps before may fail.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    file: File,
    name: Option<Name<'a>>,
}

/// The name for a new disk.
#[derive(Debug)]
struct Name<'a> {
    /// The sandbox's directory.
    dir: &'a Path,
    /// The name of the tree below the disk.
    base: &'a [u8],
    /// The disk that has the name now, locked.
    replaced: Option<File>,
}

impl Open<'_> {
    /// Gives a new disk its name, and returns the file.
    ///
    /// # Errors
    /// A name that another VM has taken meanwhile.
    pub(crate) fn into_file(self) -> anyhow::Result<File> {
        if let Some(Name { dir, base, replaced }) = self.name {
            self.file.sync_all()?;
            match replaced {
                None => give_name(&self.file, dir, base, None)?,
                Some(_) => replace(&self.file, dir, base)?,
            };
        }
        Ok(self.file)
    }
}

/// Opens and locks the disk of a name; `None` if there is none. A disk that will be replaced (`fresh`) is not compared with `size` and
/// `base`.
fn open_named(dir: &Path, path: &Path, size: Option<u64>, base: &[u8], fresh: bool) -> anyhow::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let disk = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        other => File::from(other?),
    };
    if lock::take(&disk, Lock::TryExclusive).is_err() {
        bail!(TAKEN);
    }
    // msb-rm has removed it in between.
    if rustix::fs::fstat(&disk)?.st_nlink == 0 {
        return Ok(None);
    }
    if fresh {
        return Ok(Some(disk));
    }
    let its_base = fs::read(dir.join(SCRATCH_BASE)).context("the image it belongs to")?;
    if its_base != base {
        bail!(
            "it belongs to {:?}, and this root is {:?} (take another --name, or --fresh for a new disk without what that VM has written)",
            String::from_utf8_lossy(&its_base),
            String::from_utf8_lossy(base)
        );
    }
    let existing_size = disk.metadata()?.len();
    if size.is_some_and(|size| size != existing_size) {
        bail!(
            "it has {} MiB already (leave --disk out, take another --name, or --fresh for a new disk)",
            existing_size >> 20
        );
    }
    Ok(Some(disk))
}

/// Gives an unnamed disk the name of the record's VM, so that it stays.
///
/// # Errors
/// A name that is taken, or a disk that cannot be linked.
pub(crate) fn keep(home: &Path, name: &str, base: &[u8], record: &Record, disk: &OwnedFd) -> anyhow::Result<PathBuf> {
    give_name(disk, &layout::sandbox(home, name), base, Some(record))
}

/// Writes the list of the sandboxes that the disk's VM needs for its next boot.
///
/// # Errors
/// The error of writing.
pub(crate) fn note_needs(path: &Path, record: &Record) -> anyhow::Result<()> {
    let note = || sandbox::note_needs(path.parent().unwrap_or(path), record);
    note().with_context(|| format!("disk {path:?}"))
}

fn give_name(disk: &impl AsRawFd, dir: &Path, base: &[u8], record: Option<&Record>) -> anyhow::Result<PathBuf> {
    let path = dir.join(SCRATCH_DISK);
    let give = || -> anyhow::Result<()> {
        publish::make_private_dir(dir)?;
        let _lock = lock_directory(dir)?;
        if path.try_exists()? {
            bail!(TAKEN);
        }
        publish::write_file(&dir.join(SCRATCH_BASE), base, 0o600)?;
        if let Some(record) = record {
            sandbox::note_needs(dir, record)?;
        }
        link(disk, &path)?;
        Ok(publish::sync_parent(&path)?)
    };
    give().with_context(|| format!("disk {path:?}"))?;
    Ok(path)
}

/// Replaces the disk that has a name with an unnamed one.
fn replace(disk: &impl AsRawFd, dir: &Path, base: &[u8]) -> anyhow::Result<PathBuf> {
    let path = dir.join(SCRATCH_DISK);
    let replace = || -> anyhow::Result<()> {
        let _lock = lock_directory(dir)?;
        publish::link_over(disk, &path)?;
        // The base is written after the disk: a crash in between leaves the new disk with the old base, which is refused. The other
        // order would leave the old disk with the new base.
        publish::write_file(&dir.join(SCRATCH_BASE), base, 0o600)?;
        Ok(publish::sync_parent(&path)?)
    };
    replace().with_context(|| format!("disk {path:?}"))?;
    Ok(path)
}

fn existing(home: &Path, disk: &File) -> io::Result<Existing> {
    let meta = disk.metadata()?;
    // A disk starts with the blocks of its template.
    let empty = fs::metadata(template_path(home, meta.len())).map_or(0, |template| template.blocks());
    Ok(Existing { written: meta.blocks().saturating_sub(empty) * 512, last_written: meta.modified()? })
}

/// Locks a sandbox's directory while its disk is added, replaced or removed, so that disk and base change together.
fn lock_directory(dir: &Path) -> io::Result<OwnedFd> {
    lock::open(dir, Lock::Exclusive)
}

/// Makes an unnamed disk in the file system of the sandboxes, so that it can be linked there, and locks it.
fn make(home: &Path, size: u64) -> anyhow::Result<File> {
    let dir = layout::sandboxes(home);
    let make = || -> anyhow::Result<File> {
        publish::make_private_dir(&dir)?;
        let template = template(home, size)?;
        let disk = publish::unnamed_file(&dir)?;
        copy_data(&template, &disk, size)?;
        lock::take(&disk, Lock::TryExclusive)?;
        Ok(disk)
    };
    make().with_context(|| format!("disk in {dir:?}"))
}

/// Finds mke2fs, which makes the templates.
///
/// # Errors
/// The package to install.
pub(crate) fn mke2fs() -> Result<PathBuf, Unusable> {
    program::find("mke2fs", &["/sbin", "/usr/sbin"], "apt-get install e2fsprogs")
}

fn template_path(home: &Path, size: u64) -> PathBuf {
    layout::disk_template(home, TEMPLATE_VERSION, size)
}

/// Opens the template of a size, and makes it if it is missing.
fn template(home: &Path, size: u64) -> anyhow::Result<File> {
    let dir = layout::disk_templates(home);
    let path = template_path(home, size);
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.with_context(|| format!("{path:?}")),
    }
    let mke2fs = mke2fs()?;
    publish::make_private_dir(&dir).with_context(|| format!("{dir:?}"))?;
    let file = publish::unnamed_file(&dir).with_context(|| format!("{dir:?}"))?;
    file.set_len(size)?;
    let mut command = Command::new(&mke2fs);
    command.args(["-q", "-F", "-t", "ext4"]).args(OPTIONS).arg("/proc/self/fd/0").env_clear();
    command.stdin(Stdio::from(file.try_clone()?));
    let output = interrupt::output(&mut command).with_context(|| format!("{mke2fs:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{mke2fs:?} ended with {}: {}", output.status, stderr.trim());
    }
    file.sync_all()?;
    match link(&file, &path) {
        // Another boot has made the same template meanwhile.
        Ok(()) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(file),
        Err(error) => Err(error).with_context(|| format!("{path:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::record::Upper;

    #[test]
    fn a_disk_is_kept_only_with_the_list_of_the_sandboxes_that_its_vm_needs() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let (dir, other) = (layout::sandbox(home, "worker"), layout::sandbox(home, "other"));
        let mut record = Record::new();
        record.upper = Some(Upper::new(other.join("upper"), other.join("work")));
        // Here the list cannot be written.
        fs::create_dir_all(dir.join(SCRATCH_NEEDS)).unwrap();
        let disk = OwnedFd::from(publish::unnamed_file(&layout::sandboxes(home)).unwrap());
        keep(home, "worker", b"base", &record, &disk).unwrap_err();
        assert!(!dir.join(SCRATCH_DISK).exists());
        fs::remove_dir(dir.join(SCRATCH_NEEDS)).unwrap();
        assert_eq!(keep(home, "worker", b"base", &record, &disk).unwrap(), dir.join(SCRATCH_DISK));
        assert_eq!(sandbox::needs_of(&dir), [other]);
    }
}
