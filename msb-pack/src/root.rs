//! The root of a record: its layers, and its upper, which nobody may change while it is read.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::Merged;
use msb::overlay::upper::{in_use, lock_to_read};
use msb::record::{Record, Rootfs};
use msb::store::layers;

/// A root that is being read.
pub(crate) struct Root {
    /// The lower directories, top first.
    pub(crate) lower: Vec<PathBuf>,
    /// The upper, if it has changes.
    pub(crate) upper: Option<PathBuf>,
    /// Nobody removes the layers meanwhile.
    _layers: Vec<OwnedFd>,
    _lock: Option<OwnedFd>,
}

impl Root {
    /// Opens the root of a record.
    ///
    /// # Errors
    /// A root that is a disk, that another process writes, or that has a layer which was removed.
    pub(crate) fn open(record: &Record) -> anyhow::Result<Self> {
        let lower = match record.rootfs()? {
            Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => lower.clone(),
            Rootfs::Disk { format, .. } => {
                bail!("the root is a {format} disk, and only layers and directories can be packed (copy the disk)")
            }
        };
        let mut root = Self { _layers: layers::hold(&lower)?, lower, upper: None, _lock: None };
        let Some(upper) = &record.upper else { return Ok(root) };
        root._lock = match lock_to_read(&upper.work) {
            Ok(lock) => Some(lock),
            // Nothing can write an upper without its work directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!(in_use(&upper.dir)),
            Err(error) => return Err(error).with_context(|| format!("work {:?}", upper.work)),
        };
        root.upper = Some(upper.dir.clone());
        if !root.has_changes()? {
            root.upper = None;
        }
        Ok(root)
    }

    /// Whether the upper changes anything.
    fn has_changes(&self) -> anyhow::Result<bool> {
        let (base, merged) = (self.base()?, self.merged()?);
        let key = |root: &Merged| -> io::Result<_> {
            let stat = root.top().0.stat()?;
            Ok((stat.st_mode, stat.st_uid, stat.st_gid))
        };
        Ok(!merged.names_to_compare(&base)?.is_empty() || key(&merged)? != key(&base)?)
    }

    /// The merged tree.
    ///
    /// # Errors
    /// Those of opening the layers.
    pub(crate) fn merged(&self) -> anyhow::Result<Merged> {
        Merged::open(&self.lower, self.upper.as_deref()).context("root")
    }

    /// The tree without the upper.
    ///
    /// # Errors
    /// Those of opening the layers.
    pub(crate) fn base(&self) -> anyhow::Result<Merged> {
        Merged::open(&self.lower, None).context("root")
    }

    /// A lower directory on those below it, and those below it alone, if there are any.
    ///
    /// # Errors
    /// Those of opening the layers.
    pub(crate) fn layer(&self, number: usize) -> anyhow::Result<(Option<Merged>, Merged)> {
        let below = &self.lower[number + 1..];
        let base = (!below.is_empty()).then(|| Merged::open(below, None)).transpose()?;
        Ok((base, Merged::open(below, Some(&self.lower[number]))?))
    }

    /// The directories for the kernel's overlayfs, top first.
    pub(crate) fn stack(&self, top: Option<&Path>) -> Vec<PathBuf> {
        top.map(Path::to_owned).into_iter().chain(self.upper.clone()).chain(self.lower.iter().cloned()).collect()
    }
}
