//! The configuration of a mount, from the command line and the record.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::Merged;
use msb::overlay::upper;
use msb::record::{Mount, Record, Rootfs, Upper};
use msb::store::layout::{self, MOUNT_POINT, UPPER, WORK};
use msb::store::sandbox::{self, Owner};
use msb::store::{home, publish};
use msb::tool::interrupt::DeferExit;
use msb::{tool::source, tool::user_namespace, vm::supervisor};
use rustix::process::Pid;

use crate::access::Access;
use crate::args::Args;
use crate::kind::Kind;
use crate::mountpoint;

/// A mount to make.
#[derive(Debug)]
pub(crate) struct Config {
    /// The record, with an upper unless the mount is read-only.
    pub(crate) record: Record,
    /// Top first.
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) access: Access,
    pub(crate) kind: Kind,
    /// An absolute path without symlinks, on which nothing is mounted. The directory may be missing.
    pub(crate) mountpoint: PathBuf,
    /// Whether the tool has made the mount point, for fusermount3. The server makes any other.
    pub(crate) is_new: bool,
    /// The sandbox that was made for this mount. It is removed if the mount fails.
    made: Option<PathBuf>,
}

impl Config {
    /// Reads the record, and makes the upper and the mount point if they are missing.
    pub(crate) fn new(args: &Args) -> anyhow::Result<(Self, DeferExit)> {
        args.output.check()?;
        Self::with_record(args.record.take("msb-mount")?, args)
    }

    /// As [`Self::new`], with a record that does not come from the command line.
    pub(crate) fn with_record(mut record: Record, args: &Args) -> anyhow::Result<(Self, DeferExit)> {
        supervisor::require_ended(&mut record)?;
        let begun = DeferExit::new();
        let lower = lower(&record)?;
        if let Some(upper) = &record.upper {
            for dir in [&upper.dir, &upper.work] {
                if !dir.is_dir() {
                    bail!("upper {dir:?} is gone (run msb-patch again)");
                }
            }
        }
        let given = args.mountpoint.as_deref().map(mountpoint::locate).transpose()?;
        let mut made = None;
        if record.upper.is_none() && (!args.access.is_read_only || args.mountpoint.is_none()) {
            let sandbox = make_sandbox(&record, &lower, !args.access.is_read_only)?;
            if !args.access.is_read_only {
                let (dir, work) = (sandbox.join(UPPER), sandbox.join(WORK));
                record.upper = Some(Upper::new(dir, work));
            }
            made = Some(sandbox);
        }
        let beside = || {
            let upper = record.upper.as_ref().and_then(|upper| upper.dir.parent());
            upper.or(made.as_deref()).map(|sandbox| sandbox.join(MOUNT_POINT))
        };
        let located = match given {
            Some(path) => Ok(path),
            None => beside().context("no mount point").and_then(|path| mountpoint::locate(&path)),
        };
        let mountpoint = located.and_then(|path| {
            mountpoint::check(&path)?;
            mountpoint::check_not_over_store(&path, home::home().ok().as_deref())?;
            Ok(path)
        });
        let (access, kind) = (args.access, args.kind);
        let config = Self { lower, access, kind, mountpoint: PathBuf::new(), is_new: false, made, record };
        match mountpoint {
            Ok(mountpoint) => Ok((Self { mountpoint, ..config }, begun)),
            Err(error) => {
                config.undo();
                Err(error)
            }
        }
    }

    /// The configuration that the parent process passes to the server: its record on stdin, the rest as arguments.
    pub(crate) fn received(args: &Args) -> anyhow::Result<Self> {
        let record = source::stdin()?;
        let mountpoint = args.mountpoint.clone().context("no mount point")?;
        let is_new = args.is_new;
        let (access, kind) = (args.access, args.kind);
        Ok(Self { lower: lower(&record)?, access, kind, mountpoint, is_new, made: None, record })
    }

    /// The record with the mount, which has the type `fstype`, and which process `pid` serves.
    pub(crate) fn mounted(&self, pid: Pid, fstype: &str) -> Record {
        let mut record = self.record.clone();
        record.mount = Some(Mount::new(self.mountpoint.clone(), pid.as_raw_nonzero().get(), fstype.into()));
        record
    }

    /// The message that a terminal gets instead of the record.
    pub(crate) fn summary(&self) -> String {
        let how = if self.access.is_read_only { " read-only" } else { "" };
        format!("{0}: mounted{how}; to unmount it: msb-mount -u {0}", self.mountpoint.display())
    }

    /// The sandbox that holds the upper. An upper of the caller's own is in none.
    pub(crate) fn sandbox(&self) -> Option<&Path> {
        let parent = self.record.upper.as_ref()?.dir.parent()?;
        (parent.parent()? == layout::sandboxes(&home::home().ok()?)).then_some(parent)
    }

    /// Removes the mount point and the sandbox made for a mount that failed.
    pub(crate) fn undo(&self) {
        mountpoint::remove(&self.mountpoint, self.is_new);
        if let Some(sandbox) = &self.made {
            let _ = std::fs::remove_dir_all(sandbox);
        }
    }
}

fn lower(record: &Record) -> anyhow::Result<Vec<PathBuf>> {
    match record.rootfs()? {
        Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => Ok(lower.clone()),
        Rootfs::Disk { format, .. } => {
            bail!("a mount needs a layered or directory root, and this is a {format} disk (msb-boot takes it as it is)")
        }
    }
}

fn make_sandbox(record: &Record, lower: &[PathBuf], with_upper: bool) -> anyhow::Result<PathBuf> {
    user_namespace::keep_map()?;
    let sandbox = layout::sandbox(&home::home()?, &layout::fresh_id()?);
    let made = publish::make_private_dir(&sandbox).and_then(|()| {
        sandbox::make_held(&sandbox)?;
        Owner::of(record).create(&sandbox)?;
        if !with_upper {
            return Ok(());
        }
        upper::create(&sandbox.join(UPPER), &sandbox.join(WORK), &Merged::open(lower, None)?)
    });
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&sandbox);
    }
    made.with_context(|| format!("sandbox {sandbox:?}"))?;
    Ok(sandbox)
}
