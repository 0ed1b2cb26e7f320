//! A cgroup for each exec, below one for all: what it may take, all of its processes at once, and what they took. A guest's
//! kernel or init may have other ideas, so nothing here may fail an exec: without cgroups its process group has to do.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::thrash;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

const ROOT: &str = "/sys/fs/cgroup";
/// A directory of our own: an init that manages cgroups leaves alone what it does not know.
const OURS: &str = "/sys/fs/cgroup/msb";
/// How long the kernel may take to end what got KILL.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// The least memory that execs leave to the agent and the kernel, in bytes.
const LEAST_RESERVE: u64 = 24 << 20;
/// How many cgroups are kept for execs to come.
const MOST_SPARE: usize = 64;

/// The cgroups of all execs.
#[derive(Debug, Default)]
pub struct Cgroups {
    usable: OnceLock<bool>,
    /// Those whose exec is over and who have processes still.
    outlived: Mutex<Vec<PathBuf>>,
    /// Those that are ready for the next execs. They are used again, for making and removing one takes the kernel nearly half as long as
    /// starting a small command.
    spare: Mutex<Vec<Cgroup>>,
    /// Whether somebody makes a spare one.
    prepares: AtomicBool,
    made: AtomicU32,
    /// What is changed in the cgroups of execs. One that an exec has given other limits is not used again.
    changes: OnceLock<Option<Changes>>,
}

impl Cgroups {
    /// A cgroup for an exec. Where it is out of memory it is ended as a whole, for half a pipeline is of no use; or only its largest
    /// process is, for the shell of a terminal should stay. `None`: there are no cgroups here, which was said once.
    pub fn take(&self, ends_as_a_whole: bool) -> Option<Cgroup> {
        if !*self.usable.get_or_init(set_up_or_say) {
            return None;
        }
        // The guest's root may have removed it, or changed it since it was put back.
        let spare = loop {
            let Some(spare) = self.spare().pop() else { break None };
            if spare.dir.exists() && !self.is_changed(&spare) {
                break Some(spare);
            }
            self.remove(spare.dir);
        };
        let cgroup = spare.or_else(|| self.make())?;
        let _ = fs::write(cgroup.dir.join("memory.oom.group"), if ends_as_a_whole { "1" } else { "0" });
        Some(cgroup)
    }

    /// Whether anybody has changed a cgroup but for its processes.
    fn is_changed(&self, cgroup: &Cgroup) -> bool {
        match (self.changes.get(), cgroup.watch) {
            (Some(Some(changes)), Some(watch)) => changes.have(watch),
            _ => true,
        }
    }

    /// Prepares for the next exec, when nobody waits for it.
    pub fn prepare(&self) {
        self.sweep();
        if self.usable.get() != Some(&true) || self.prepares.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.spare().is_empty() {
            // Not under the lock: others that start commands meanwhile make their own.
            let made = self.make();
            self.spare().extend(made);
        }
        self.prepares.store(false, Ordering::Relaxed);
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Cgroup>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> Option<Cgroup> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut cgroup = Cgroup::make(Path::new(OURS).join(number.to_string())).ok()?;
        let changes = self.changes.get_or_init(|| Changes::new().ok());
        cgroup.watch = changes.as_ref().and_then(|changes| changes.watch(&cgroup.dir).ok());
        Some(cgroup)
    }

    /// Takes back a cgroup whose exec is over.
    pub fn dispose(&self, mut cgroup: Cgroup) {
        let has_room = self.spare().len() < MOST_SPARE;
        if has_room && cgroup.is_as_new() && !self.is_changed(&cgroup) {
            cgroup.time_before = cgroup.time_in_all().unwrap_or_default();
            self.spare().push(cgroup);
        } else {
            self.remove(cgroup.dir);
        }
    }

    fn remove(&self, dir: PathBuf) {
        if fs::remove_dir(&dir).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            self.outlived.lock().unwrap_or_else(PoisonError::into_inner).push(dir);
        }
    }

    fn sweep(&self) {
        self.outlived
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|dir| fs::remove_dir(dir).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
    }
}

fn set_up_or_say() -> bool {
    match set_up() {
        Ok(missing) if missing.is_empty() => true,
        Ok(missing) => {
            crate::say(&format!("execs are not limited: this kernel's cgroups have no {}", missing.join(" and no ")));
            true
        }
        Err(error) => {
            crate::say(&format!("execs have process groups only: {OURS}: {error}"));
            false
        }
    }
}

/// Makes the cgroup for all. Says which controllers are missing.
fn set_up() -> io::Result<Vec<&'static str>> {
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))?;
    // Without it, each process that enters a cgroup waits for all processors to pass through the scheduler.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(None::<&str>, ROOT, None::<&str>, flags, Some("favordynmods"));
    match fs::create_dir(OURS) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let enable = |dir: &str, name: &str| fs::write(Path::new(dir).join("cgroup.subtree_control"), format!("+{name}"));
    let has = |name: &str| controllers.split_whitespace().any(|there| there == name);
    let mut missing = Vec::new();
    // A fork and exec takes a tenth longer in a cgroup with memory, most of it for counting the kernel's own (measured against
    // cgroup.memory=nokmem, and outside). Without that, pipes and page tables would escape the limit.
    for name in ["pids", "memory"] {
        if !has(name) || enable(ROOT, name).and_then(|()| enable(OURS, name)).is_err() {
            missing.push(name);
        }
    }
    let ours: &'static Path = Path::new(OURS);
    // Whatever execs do, some processes and some memory are left to the agent, and to the next exec that wants to look.
    let _ = fs::write(ours.join("pids.max"), (most_processes() / 8 * 7).to_string());
    if let Some(memory) = Memory::read() {
        let limit = memory.for_execs();
        if fs::write(ours.join("memory.max"), limit.to_string()).is_ok() {
            thrash::watch(ours, limit)?;
        }
    }
    Ok(missing)
}

/// The most processes and threads that the kernel makes, as it was when it was first asked.
fn most_processes() -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    *MOST.get_or_init(|| {
        let limit = |name| fs::read_to_string(name).ok().and_then(|text| text.trim().parse().ok());
        let limits = ["/proc/sys/kernel/threads-max", "/proc/sys/kernel/pid_max"].into_iter().filter_map(limit);
        limits.min().unwrap_or(1 << 15)
    })
}

/// The machine's memory, in bytes, as /proc/meminfo has it.
#[derive(Clone, Copy, Debug)]
struct Memory {
    total: u64,
    available: u64,
}

impl Memory {
    fn read() -> Option<Self> {
        let info = fs::read_to_string("/proc/meminfo").ok()?;
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
        };
        Some(Self { total: value("MemTotal")?, available: value("MemAvailable")? })
    }

    /// What all execs may take. It has to be there, or the kernel would look for it in the programs' own pages, which
    /// are read again at once: that goes on for minutes before it ends anybody. Half of the machine they get in any case.
    fn for_execs(self) -> u64 {
        self.available.saturating_sub(LEAST_RESERVE.max(self.total / 16)).max(self.total / 2)
    }
}

/// Changes of files in cgroups, which the kernel tells also for its own files (inotify(7)).
#[derive(Debug)]
struct Changes {
    inotify: OwnedFd,
    /// The watches of cgroups that were changed.
    changed: Mutex<Changed>,
}

#[derive(Debug, Default)]
struct Changed {
    watches: HashSet<i32>,
    /// Whether some were lost.
    are_unknown: bool,
}

impl Changes {
    /// What agentd itself writes to, and what the kernel does.
    const HARMLESS: [&str; 4] = ["cgroup.procs", "cgroup.threads", "cgroup.kill", "memory.oom.group"];

    fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { inotify, changed: Mutex::default() })
    }

    fn watch(&self, dir: &Path) -> io::Result<i32> {
        let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::ATTRIB | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(&self.inotify, dir, what)?;
        self.lock().watches.remove(&watch);
        Ok(watch)
    }

    fn lock(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was a change in a cgroup, by its watch. A process that made one has ended, so that it has been told.
    fn have(&self, watch: i32) -> bool {
        let mut changed = self.lock();
        let mut block = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&self.inotify, &mut block);
        while let Ok(event) = events.next() {
            if event.events().contains(ReadFlags::IGNORED) {
                // It is gone, and its number does not come again.
                changed.watches.remove(&event.wd());
                continue;
            }
            changed.are_unknown |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            let name = event.file_name().map(CStr::to_string_lossy).unwrap_or_default();
            // Counters that a program may wait for are changed by the kernel.
            if !Self::HARMLESS.contains(&&*name) && !name.contains(".events") {
                changed.watches.insert(event.wd());
            }
        }
        changed.are_unknown || changed.watches.contains(&watch)
    }
}

/// The cgroup of one exec.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    entrance: OwnedFd,
    /// Its watch of [`Changes`].
    watch: Option<i32>,
    /// The processor time that was taken in it before this exec, in microseconds: in user mode and in the kernel.
    time_before: (u64, u64),
}

impl Cgroup {
    fn make(dir: PathBuf) -> io::Result<Self> {
        match fs::create_dir(&dir) {
            // Of an agent before this one.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let _ = fs::write(dir.join("pids.max"), (most_processes() / 4 * 3).to_string());
        let entrance = File::options().write(true).open(dir.join("cgroup.procs"))?.into();
        Ok(Self { dir, entrance, watch: None, time_before: (0, 0) })
    }

    /// A process that writes "0" here is in.
    pub fn entrance(&self) -> BorrowedFd<'_> {
        self.entrance.as_fd()
    }

    /// The processes in it now.
    pub fn processes(&self) -> Vec<i32> {
        let list = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 1).collect()
    }

    /// Ends all processes in it, and waits until they have. True: there is none any more.
    pub fn end(&self) -> bool {
        let Ok(mut events) = File::open(self.dir.join("cgroup.events")) else { return false };
        if !is_populated(&mut events) {
            return true;
        }
        if fs::write(self.dir.join("cgroup.kill"), "1").is_err() {
            return false;
        }
        let deadline = Instant::now() + KILL_GRACE;
        loop {
            if !is_populated(&mut events) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
        }
    }

    /// Whether there is no process in it, and no cgroup below it.
    fn is_as_new(&self) -> bool {
        let is_empty = File::open(self.dir.join("cgroup.events")).is_ok_and(|mut events| !is_populated(&mut events));
        is_empty && fs::metadata(&self.dir).is_ok_and(|meta| meta.nlink() == 2)
    }

    /// The processor time of all that was in it for this exec, in microseconds: in user mode and in the kernel.
    pub fn time(&self) -> Option<(u64, u64)> {
        let (user, system) = self.time_in_all()?;
        let (user_before, system_before) = self.time_before;
        Some((user.saturating_sub(user_before), system.saturating_sub(system_before)))
    }

    fn time_in_all(&self) -> Option<(u64, u64)> {
        let text = fs::read_to_string(self.dir.join("cpu.stat")).ok()?;
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Some((value("user_usec ")?, value("system_usec ")?))
    }
}

fn is_populated(events: &mut File) -> bool {
    let mut text = String::new();
    let read = events.rewind().and_then(|()| events.read_to_string(&mut text));
    read.is_ok() && text.lines().any(|line| line == "populated 1")
}
