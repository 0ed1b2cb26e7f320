//! The record of a VM that may not be up yet: its file appears when the VM answers.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use msb::record::Record;
use msb::tool::exit::{self, coded};
use msb::tool::source::{self, VmRecord};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

/// The longest wait: more than a clock may be able to add.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Takes the record of a running VM, if need be as soon as there is one.
///
/// # Errors
/// What [`VmRecord::take`] says; after the wait what it says last.
pub fn take(from: &VmRecord, patience: Option<Duration>) -> anyhow::Result<Record> {
    let name = from.record.clone().or_else(source::variable).filter(|name| name != "-");
    let (Some(patience), Some(name)) = (patience, name.as_deref()) else {
        // From stdin it comes when the stage before has it.
        return from.take(None);
    };
    let deadline = Instant::now() + patience.min(LONGEST);
    let places = places(name)?;
    loop {
        // First, so that nothing that happens from here on is missed.
        let watch = watch(&places).context("inotify")?;
        let why = match source::named(name) {
            Ok(record) if record.vm.is_some() => return Ok(record),
            Ok(_) => anyhow::anyhow!("record {name:?}: it has no running VM"),
            Err(error) => error,
        };
        if !wait(&watch, deadline).context("inotify")? {
            let waited = format!("{why:#} (waited {patience:?} for it)");
            return Err(coded(exit::TOOL_FAILED, waited));
        }
    }
}

/// The files that a name may stand for.
fn places(name: &str) -> io::Result<Vec<PathBuf>> {
    source::places(name).into_iter().map(std::path::absolute).collect()
}

/// Watches the directory of each file, or the nearest one above that is there.
fn watch(places: &[PathBuf]) -> io::Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let events = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MODIFY
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    for place in places {
        let above = || place.ancestors().skip(1);
        let watched =
            above().find(|dir: &&Path| inotify::add_watch(&watch, *dir, events | WatchFlags::ONLYDIR).is_ok());
        if watched.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
    }
    Ok(watch)
}

/// Waits until something happens; false where nothing does in time.
fn wait(watch: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&limit)) {
        Ok(0) => return Ok(false),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    // What it was is of no interest: the record is looked for again.
    let mut block = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(watch, &mut block);
    while events.next().is_ok() {}
    Ok(true)
}
