//! Which cgroups were changed by others.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// Detects changes to files in cgroups with inotify(7).
#[derive(Debug)]
pub struct Changes {
    inotify: OwnedFd,
    /// The cgroups that were changed, by their watch.
    changed: Mutex<Changed>,
}

#[derive(Debug, Default)]
struct Changed {
    watches: HashSet<i32>,
    /// Whether events were lost.
    overflowed: bool,
}

impl Changes {
    /// Files to which agentd itself writes.
    const HARMLESS: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.kill"];

    /// No cgroup is watched yet.
    ///
    /// # Errors
    /// Those of `inotify_init1(2)`.
    pub fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { inotify, changed: Mutex::default() })
    }

    /// Watches a cgroup.
    ///
    /// # Errors
    /// Those of `inotify_add_watch(2)`.
    pub fn watch(&self, dir: &Path) -> io::Result<i32> {
        let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::ATTRIB | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(&self.inotify, dir, what)?;
        self.lock().watches.remove(&watch);
        Ok(watch)
    }

    fn lock(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the cgroup with this watch was changed. The processes that could do so have ended, so all events have arrived.
    pub fn include(&self, watch: i32) -> bool {
        let mut changed = self.lock();
        let mut block = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&self.inotify, &mut block);
        while let Ok(event) = events.next() {
            if event.events().contains(ReadFlags::IGNORED) {
                // The cgroup was removed. Its watch number is not reused.
                changed.watches.remove(&event.wd());
                continue;
            }
            changed.overflowed |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            let name = event.file_name().map(CStr::to_string_lossy).unwrap_or_default();
            // The kernel changes memory.events and its like.
            if !Self::HARMLESS.contains(&&*name) && !name.contains(".events") {
                changed.watches.insert(event.wd());
            }
        }
        changed.overflowed || changed.watches.contains(&watch)
    }
}
