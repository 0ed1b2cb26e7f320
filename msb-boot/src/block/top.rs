//! The writable top of a block root: a sparse ext4 disk. A VM with a name keeps its disk under that name, in
//! `$MSB_HOME/sandboxes/NAME`; the disk of one without has no name and is gone with the VM.
//!
//! Disks are copied from a template that mke2fs has made once for the size: a few hundred blocks, the rest is holes.

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
use msb::record::{Scratch, ScratchKind};
use msb::store::layout::{self, SCRATCH_BASE, SCRATCH_DISK};
use msb::store::publish::link;
use msb::store::{home, publish};
use msb::tool::interrupt;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::args::DEFAULT_DISK;
use crate::programs;
use crate::vmm::Why;

/// Why a name cannot be had.
const TAKEN: &str = "another VM has it (stop that one, or take another --name)";

/// How the template is made. No block is kept for root, whose guest it is; nothing is written that the kernel does not need.
/// Part of its name, so that another release makes its own.
const OPTIONS: &[&str] =
    &["-m", "0", "-J", "size=32", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"];
const TEMPLATE_VERSION: u32 = 1;

/// What takes what the guest writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Top {
    /// The guest's memory.
    Memory,
    /// A disk without a name.
    Unnamed {
        /// In bytes.
        size: u64,
    },
    /// A disk that stays.
    Named {
        /// The sandbox's directory.
        dir: PathBuf,
        /// In bytes; `None` for what it has, or the default.
        size: Option<u64>,
        /// What it stands on.
        base: Vec<u8>,
        /// Whether a new one takes the place of the one that is there.
        fresh: bool,
    },
}

/// A disk that a VM finds again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reused {
    /// What its guests have written, in bytes.
    pub written: u64,
    /// When they did that last.
    pub last_written: SystemTime,
}

impl Top {
    /// The disk of the VM of this name.
    ///
    /// # Errors
    /// When nothing says where state is.
    pub(crate) fn named(name: &str, size: Option<u64>, base: &[u8], fresh: bool) -> io::Result<Self> {
        Ok(Self::Named { dir: layout::sandbox(&home::home()?, name), size, base: base.to_owned(), fresh })
    }

    /// Checks that the disk can be had, without making anything. The disk that will be used again, if there is one.
    ///
    /// # Errors
    /// As [`Self::open`], and what to install where a new one cannot be made.
    pub(crate) fn check(&self, home: &Path) -> anyhow::Result<Option<Reused>> {
        let size = match self {
            Self::Memory => return Ok(None),
            Self::Unnamed { size } => *size,
            Self::Named { dir, size, base, fresh } => {
                let path = dir.join(SCRATCH_DISK);
                let there = open_named(dir, &path, *size, base, *fresh).with_context(|| format!("disk {path:?}"))?;
                if let Some(disk) = there.filter(|_| !fresh) {
                    return Ok(Some(reused(home, &disk)?));
                }
                size.unwrap_or(DEFAULT_DISK)
            }
        };
        if !template_path(home, size).exists() {
            mke2fs()?;
        }
        Ok(None)
    }

    /// The disk's file, where it has a name.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Named { dir, .. } => Some(dir.join(SCRATCH_DISK)),
            _ => None,
        }
    }

    /// As the record has it.
    pub(crate) fn in_record(&self) -> Scratch {
        let kind = if *self == Self::Memory { ScratchKind::Memory } else { ScratchKind::Disk };
        Scratch::new(kind, self.path())
    }

    /// Takes the disk's name away, when nothing is on it that is not elsewhere.
    pub(crate) fn forget(&self) {
        if let Self::Named { dir, .. } = self {
            let _gate = gate(dir);
            let _ = fs::remove_file(dir.join(SCRATCH_DISK));
            let _ = fs::remove_file(dir.join(SCRATCH_BASE));
            // A sandbox that holds more stays.
            let _ = fs::remove_dir(dir);
        }
    }

    /// Opens the disk, with a lock that it keeps as long as somebody has it open. One that is missing is made.
    ///
    /// # Errors
    /// Words for one that another VM has, or that stands on another image.
    pub(crate) fn open(&self, home: &Path) -> anyhow::Result<Option<Open<'_>>> {
        let (file, unnamed) = match self {
            Self::Memory => return Ok(None),
            Self::Unnamed { size } => (make(home, *size)?, None),
            Self::Named { dir, size, base, fresh } => {
                let path = dir.join(SCRATCH_DISK);
                match open_named(dir, &path, *size, base, *fresh).with_context(|| format!("disk {path:?}"))? {
                    Some(disk) if !fresh => (disk, None),
                    replaced => {
                        let name = Name { dir, base, replaced };
                        (make(home, size.unwrap_or(DEFAULT_DISK))?, Some(name))
                    }
                }
            }
        };
        Ok(Some(Open { file, name: unnamed }))
    }
}

/// A disk that is open. One that was just made has its name still to come: what it is made for may fail.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    file: File,
    name: Option<Name<'a>>,
}

/// The name that a disk is to have.
#[derive(Debug)]
struct Name<'a> {
    /// The sandbox's directory that it belongs into.
    dir: &'a Path,
    /// What it stands on.
    base: &'a [u8],
    /// The disk that has the name yet, locked.
    replaced: Option<File>,
}

impl Open<'_> {
    /// The disk, under its name.
    ///
    /// # Errors
    /// Words for a name that another VM has taken since.
    pub(crate) fn into_file(self) -> anyhow::Result<File> {
        if let Some(Name { dir, base, replaced }) = self.name {
            self.file.sync_all()?;
            match replaced {
                None => give_name(&self.file, dir, base)?,
                Some(_) => replace(&self.file, dir, base)?,
            };
        }
        Ok(self.file)
    }
}

/// `None`: it is missing. One that is to be replaced need not fit.
fn open_named(dir: &Path, path: &Path, size: Option<u64>, base: &[u8], fresh: bool) -> anyhow::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let disk = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        other => File::from(other?),
    };
    if lock::take(&disk, Lock::TryExclusive).is_err() {
        bail!(TAKEN);
    }
    if fresh {
        return Ok(Some(disk));
    }
    let stands_on = fs::read(dir.join(SCRATCH_BASE)).context("what it stands on")?;
    if stands_on != base {
        bail!(
            "it stands on {:?}, and this root is {:?} (take another --name, or --fresh for a new disk without what that VM has written)",
            String::from_utf8_lossy(&stands_on),
            String::from_utf8_lossy(base)
        );
    }
    let has = disk.metadata()?.len();
    if size.is_some_and(|size| size != has) {
        bail!("it has {} MiB already (leave --disk out, take another --name, or --fresh for a new disk)", has >> 20);
    }
    Ok(Some(disk))
}

/// Gives a disk without a name that of a VM.
///
/// # Errors
/// Words for a name that is taken, or what linking says.
pub(crate) fn keep(home: &Path, name: &str, base: &[u8], disk: &OwnedFd) -> anyhow::Result<PathBuf> {
    give_name(disk, &layout::sandbox(home, name), base)
}

fn give_name(disk: &impl AsRawFd, dir: &Path, base: &[u8]) -> anyhow::Result<PathBuf> {
    let path = dir.join(SCRATCH_DISK);
    let give = || -> anyhow::Result<()> {
        publish::make_private_dir(dir)?;
        let _gate = gate(dir)?;
        if path.try_exists()? {
            bail!(TAKEN);
        }
        publish::write_file(&dir.join(SCRATCH_BASE), base, 0o600)?;
        link(disk, &path)?;
        Ok(publish::sync_parent(&path)?)
    };
    give().with_context(|| format!("disk {path:?}"))?;
    Ok(path)
}

/// Puts a disk without a name in the place of the one that has it.
fn replace(disk: &impl AsRawFd, dir: &Path, base: &[u8]) -> anyhow::Result<PathBuf> {
    let path = dir.join(SCRATCH_DISK);
    let replace = || -> anyhow::Result<()> {
        let _gate = gate(dir)?;
        publish::link_over(disk, &path)?;
        // In this order: a new disk that is said to stand on the old one's base is refused, and an old one is not mistaken for a new.
        publish::write_file(&dir.join(SCRATCH_BASE), base, 0o600)?;
        Ok(publish::sync_parent(&path)?)
    };
    replace().with_context(|| format!("disk {path:?}"))?;
    Ok(path)
}

fn reused(home: &Path, disk: &File) -> io::Result<Reused> {
    let meta = disk.metadata()?;
    // An empty disk has the blocks of its template.
    let empty = fs::metadata(template_path(home, meta.len())).map_or(0, |template| template.blocks());
    Ok(Reused { written: meta.blocks().saturating_sub(empty) * 512, last_written: meta.modified()? })
}

/// While this is held nobody else gives the name or takes it away, so what is said of the base is said of the disk.
fn gate(dir: &Path) -> io::Result<OwnedFd> {
    lock::open(dir, Lock::Exclusive)
}

/// A fresh disk without a name, where it can be given one, and locked.
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

/// What makes templates.
///
/// # Errors
/// What to install.
pub(crate) fn mke2fs() -> Result<PathBuf, Why> {
    programs::find("mke2fs", &["/sbin", "/usr/sbin"], "apt-get install e2fsprogs")
}

fn template_path(home: &Path, size: u64) -> PathBuf {
    layout::disk_template(home, TEMPLATE_VERSION, size)
}

/// The template for a size, made where it is missing.
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
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{mke2fs:?} ended with {}: {}", output.status, words.trim());
    }
    file.sync_all()?;
    match link(&file, &path) {
        // Another boot was faster; one is as good as the other.
        Ok(()) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(file),
        Err(error) => Err(error).with_context(|| format!("{path:?}")),
    }
}
