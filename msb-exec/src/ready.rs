//! The record of a VM that may still be booting: its file appears once the VM answers.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use msb::record::Record;
use msb::tool::source::{self, SourceError, VmRecord};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

/// The longest wait: adding more to an `Instant` may overflow.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads the record of a running VM, and waits up to `timeout` for it to appear.
///
/// # Errors
/// Those of [`VmRecord::take`]; after the wait, the last one.
pub fn take(from: &VmRecord, timeout: Option<Duration>) -> anyhow::Result<Record> {
    let name = from.record.clone().or_else(source::variable).filter(|name| name != "-");
    let (Some(timeout), Some(name)) = (timeout, name.as_deref()) else {
        // The previous stage writes the record to stdin once the VM is up.
        return Ok(from.take(None)?);
    };
    let deadline = Instant::now() + timeout.min(MAX_WAIT);
    let candidates = candidates(name)?;
    loop {
        // Before the file is looked for, so that no event is missed.
        let watch = watch(&candidates).context("inotify")?;
        let why = match source::named(name) {
            Ok(record) if record.vm.is_some() => return Ok(record),
            Ok(_) => anyhow::anyhow!("record {name:?}: it has no running VM"),
            Err(error) => error.into(),
        };
        if !wait(&watch, deadline).context("inotify")? {
            return Err(anyhow::anyhow!("{why:#} (waited {timeout:?} for it)"));
        }
    }
}

/// Whether the VM runs, but its run directory was removed.
pub fn is_lost(error: &anyhow::Error) -> bool {
    error.downcast_ref().and_then(SourceError::lost).is_some()
}

/// The files that a name may refer to.
fn candidates(name: &str) -> io::Result<Vec<PathBuf>> {
    source::candidates(name).into_iter().map(std::path::absolute).collect()
}

/// Watches the directory of each file, or its nearest ancestor that exists.
fn watch(candidates: &[PathBuf]) -> io::Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let events = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MODIFY
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    for file in candidates {
        let above = || file.ancestors().skip(1);
        let watched =
            above().find(|dir: &&Path| inotify::add_watch(&watch, *dir, events | WatchFlags::ONLYDIR).is_ok());
        if watched.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
    }
    Ok(watch)
}

/// Waits for an event; returns false at the deadline.
fn wait(watch: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&limit)) {
        Ok(0) => return Ok(false),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    // The events themselves do not matter: the record is looked for again.
    let mut block = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(watch, &mut block);
    while events.next().is_ok() {}
    Ok(true)
}
