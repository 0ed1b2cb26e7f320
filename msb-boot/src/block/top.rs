//! The writable top of a block root: a sparse ext4 disk. A VM with a name keeps its disk under that name, in
//! `$MSB_HOME/sandboxes/NAME`; the disk of one without has no name and is gone with the VM.
//!
//! Disks are copied from a template that mke2fs has made once for the size: a few hundred blocks, the rest is holes.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use msb::overlay::upper::copy_data;
use msb::record::{self, TopKind};
use msb::state;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::args::DEFAULT_DISK;
use crate::programs;
use crate::vmm::Why;

/// The disk's file in a sandbox's directory.
const DISK: &str = "top.ext4";
/// The file beside it that says what the disk stands on: without that it makes no sense.
const BASE: &str = "top.base";

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
    },
}

impl Top {
    /// The disk of the VM of this name.
    ///
    /// # Errors
    /// When nothing says where state is.
    pub(crate) fn named(name: &str, size: Option<u64>, base: &[u8]) -> io::Result<Self> {
        Ok(Self::Named { dir: state::home()?.join("sandboxes").join(name), size, base: base.to_owned() })
    }

    /// The disk's file, where it has a name.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Named { dir, .. } => Some(dir.join(DISK)),
            _ => None,
        }
    }

    /// As the record has it.
    pub(crate) fn in_record(&self) -> record::Top {
        let kind = if *self == Self::Memory { TopKind::Memory } else { TopKind::Disk };
        record::Top { kind, path: self.path(), unknown: record::Unknown::new() }
    }

    /// Takes the disk's name away, when nothing is on it that is not elsewhere.
    pub(crate) fn forget(&self) {
        if let Self::Named { dir, .. } = self {
            let _ = fs::remove_file(dir.join(DISK));
            let _ = fs::remove_file(dir.join(BASE));
            // A sandbox that holds more stays.
            let _ = fs::remove_dir(dir);
        }
    }

    /// Opens the disk, made where it is missing, with a lock that it keeps as long as somebody has it open.
    ///
    /// # Errors
    /// Words for one that another VM has, or that stands on another image.
    pub(crate) fn open(&self, home: &Path) -> anyhow::Result<Option<File>> {
        match self {
            Self::Memory => Ok(None),
            Self::Unnamed { size } => {
                let dir = home.join("sandboxes");
                state::make_private_dir(&dir).with_context(|| format!("{dir:?}"))?;
                let disk = make(home, &dir, *size).with_context(|| format!("disk in {dir:?}"))?;
                lock(&disk)?;
                Ok(Some(disk))
            }
            Self::Named { dir, size, base } => {
                let path = dir.join(DISK);
                open_named(home, dir, &path, *size, base).with_context(|| format!("disk {path:?}")).map(Some)
            }
        }
    }
}

fn open_named(home: &Path, dir: &Path, path: &Path, size: Option<u64>, base: &[u8]) -> anyhow::Result<File> {
    state::make_private_dir(dir)?;
    // While this is held nobody else makes the disk, or takes it away.
    let gate = File::open(dir)?;
    rustix::fs::flock(&gate, FlockOperation::LockExclusive)?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let disk = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(disk) => File::from(disk),
        Err(rustix::io::Errno::NOENT) => {
            state::write_file(&dir.join(BASE), base, 0o600)?;
            let disk = make(home, dir, size.unwrap_or(DEFAULT_DISK))?;
            disk.sync_all()?;
            let unnamed = format!("/proc/self/fd/{}", disk.as_raw_fd());
            rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
            state::sync_parent(path)?;
            disk
        }
        Err(error) => return Err(error.into()),
    };
    if lock(&disk).is_err() {
        bail!("another VM has it (stop that one, or take another --name)");
    }
    let stands_on = fs::read(dir.join(BASE)).context("what it stands on")?;
    if stands_on != base {
        bail!(
            "it stands on {:?}, and this root is {:?} (take another --name, or remove {dir:?} with what that VM has written)",
            String::from_utf8_lossy(&stands_on),
            String::from_utf8_lossy(base)
        );
    }
    let has = disk.metadata()?.len();
    if size.is_some_and(|size| size != has) {
        bail!("it has {} MiB already (leave --disk out, or take another --name)", has >> 20);
    }
    Ok(disk)
}

/// Gives a disk without a name that of a VM.
///
/// # Errors
/// What linking says.
pub(crate) fn keep(home: &Path, name: &str, base: &[u8], disk: &OwnedFd) -> anyhow::Result<PathBuf> {
    let dir = home.join("sandboxes").join(name);
    state::make_private_dir(&dir).with_context(|| format!("{dir:?}"))?;
    state::write_file(&dir.join(BASE), base, 0o600)?;
    let (path, unnamed) = (dir.join(DISK), format!("/proc/self/fd/{}", disk.as_raw_fd()));
    rustix::fs::linkat(CWD, unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW).with_context(|| format!("{path:?}"))?;
    state::sync_parent(&path)?;
    Ok(path)
}

fn lock(disk: &File) -> io::Result<()> {
    Ok(rustix::fs::flock(disk, FlockOperation::NonBlockingLockExclusive)?)
}

/// A fresh disk without a name in `dir`.
fn make(home: &Path, dir: &Path, size: u64) -> anyhow::Result<File> {
    let template = template(home, size)?;
    let disk = unnamed(dir)?;
    copy_data(&template, &disk, size)?;
    Ok(disk)
}

fn unnamed(dir: &Path) -> io::Result<File> {
    Ok(rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?.into())
}

/// What makes templates.
///
/// # Errors
/// What to install.
pub(crate) fn mke2fs() -> Result<PathBuf, Why> {
    programs::find("mke2fs", &["/sbin", "/usr/sbin"], "apt-get install e2fsprogs")
}

/// The template for a size, made where it is missing.
fn template(home: &Path, size: u64) -> anyhow::Result<File> {
    let dir = home.join("templates");
    let path = dir.join(format!("ext4-{TEMPLATE_VERSION}-{size}"));
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.with_context(|| format!("{path:?}")),
    }
    let mke2fs = mke2fs()?;
    state::make_private_dir(&dir).with_context(|| format!("{dir:?}"))?;
    let file = unnamed(&dir).with_context(|| format!("{dir:?}"))?;
    file.set_len(size)?;
    let output = Command::new(&mke2fs)
        .args(["-q", "-F", "-t", "ext4"])
        .args(OPTIONS)
        .arg("/proc/self/fd/0")
        .env_clear()
        .stdin(Stdio::from(file.try_clone()?))
        .output()
        .with_context(|| format!("{mke2fs:?}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{mke2fs:?} ended with {}: {}", output.status, words.trim());
    }
    file.sync_all()?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, name, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
        // Another boot was faster; one is as good as the other.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(file),
        Err(error) => Err(error).with_context(|| format!("{path:?}")),
    }
}
