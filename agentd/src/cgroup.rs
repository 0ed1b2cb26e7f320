//! A cgroup for each exec, below one for all of them: it limits the exec, finds all of its processes, and counts their CPU time. A guest's
//! kernel may lack cgroups and its init may change them, so no error here fails an exec: its process group is used instead.

mod changes;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use changes::Changes;
use msb::wire::container::Limits;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::console;
use crate::container::Failed;
use crate::limited::{Limited, need_cpu};
use crate::thrash::{self, CONTAINER};

const ROOT: &str = "/sys/fs/cgroup";
/// The parent of all cgroups of execs. An init that manages cgroups does not touch cgroups of others.
const OURS: &str = "/sys/fs/cgroup/msb";
/// How long killed processes may take to end.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// The least memory that is reserved for the agent and the kernel, in bytes.
const LEAST_RESERVE: u64 = 24 << 20;
/// Whether the OOM killer ends all processes of a cgroup, or the largest alone.
const OOM_GROUP: &str = "memory.oom.group";
/// The most cgroups that are kept for later execs.
const MOST_SPARE: usize = 64;

/// The cgroups of all execs.
#[derive(Debug, Default)]
pub struct Cgroups {
    usable: OnceLock<bool>,
    /// Cgroups of execs that have ended, with processes that are still being killed.
    outlived: Mutex<Vec<PathBuf>>,
    /// Cgroups for the next execs. They are reused: creating and removing one takes nearly half as long as starting a small command.
    spare: Mutex<Vec<Cgroup>>,
    /// Whether a thread is creating a spare one.
    prepares: AtomicBool,
    made: AtomicU32,
    /// Detects changes to the cgroups. One whose limits were changed is not reused.
    changes: OnceLock<Option<Changes>>,
}

impl Cgroups {
    /// A cgroup for an exec. When it is out of memory, the OOM killer ends all of its processes, because half a pipeline is useless, or
    /// only the largest, so that the shell on a terminal survives. `None`: there are no cgroups, which was logged once.
    pub fn take(&self, kills_whole_group: bool) -> Option<Cgroup> {
        if !*self.usable.get_or_init(set_up_or_log) {
            return None;
        }
        // Root in the guest may have removed or changed a spare one.
        let spare = loop {
            let Some(spare) = self.spare().pop() else { break None };
            if spare.dir.exists() && !self.is_changed(&spare) {
                break Some(spare);
            }
            self.remove(spare.dir);
        };
        let mut cgroup = spare.or_else(|| self.make())?;
        if !kills_whole_group {
            let _ = fs::write(cgroup.dir.join(OOM_GROUP), "0");
            // It is not reused.
            cgroup.watch = None;
        }
        Some(cgroup)
    }

    /// A cgroup with limits for a container. [`Self::dispose`] removes it with the last one in it.
    ///
    /// # Errors
    /// There are no cgroups. A limit that the kernel does not have or take.
    pub fn limit(&self, limits: &Limits) -> Result<Arc<Limited>, Failed> {
        let failed = |error| ("cgroup".to_owned(), error);
        if !*self.usable.get_or_init(set_up_or_log) {
            return Err(failed(io::Error::other("the guest has none, and so no limits")));
        }
        enable_cpu_for(limits)?;
        loop {
            let dir = Path::new(OURS).join(format!("{CONTAINER}{}", self.number()));
            match Limited::make(dir, limits) {
                // An earlier agent's.
                Err((_, error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other.map(Arc::new),
            }
        }
    }

    /// A cgroup for an exec in a container with limits. The OOM killer ends one process, as on a host.
    ///
    /// # Errors
    /// Those of creating it.
    pub fn take_in(&self, limited: Arc<Limited>) -> io::Result<Cgroup> {
        match Cgroup::make(limited.dir().join(self.number().to_string())) {
            Ok(mut cgroup) => {
                let _ = fs::write(cgroup.dir.join(OOM_GROUP), "0");
                cgroup.limited = Some(limited);
                Ok(cgroup)
            }
            Err(error) => {
                self.release(limited);
                Err(error)
            }
        }
    }

    /// Changes limits of a container.
    ///
    /// # Errors
    /// A limit that the kernel does not have or take.
    pub fn change(&self, limited: Arc<Limited>, limits: &Limits) -> Result<(), Failed> {
        let changed = enable_cpu_for(limits).and_then(|()| limited.change(limits));
        // The container may have ended meanwhile.
        self.release(limited);
        changed
    }

    /// Removes the cgroup of a container with the last one in it.
    fn release(&self, limited: Arc<Limited>) {
        if let Some(limited) = Arc::into_inner(limited) {
            self.remove(limited.into_dir());
        }
    }

    fn number(&self) -> u32 {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether anything but the processes of a cgroup has changed.
    fn is_changed(&self, cgroup: &Cgroup) -> bool {
        match (self.changes.get(), cgroup.watch) {
            (Some(Some(changes)), Some(watch)) => changes.include(watch),
            _ => true,
        }
    }

    /// Removes old cgroups and creates a spare one, while no caller waits.
    pub fn prepare(&self) {
        self.sweep();
        if self.usable.get() != Some(&true) || self.prepares.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.spare().is_empty() {
            // The lock is not held meanwhile, so other execs can start. They create their own cgroup.
            let made = self.make();
            self.spare().extend(made);
        }
        self.prepares.store(false, Ordering::Relaxed);
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Cgroup>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> Option<Cgroup> {
        let mut cgroup = Cgroup::make(Path::new(OURS).join(self.number().to_string())).ok()?;
        let changes = self.changes.get_or_init(|| Changes::new().ok());
        cgroup.watch = changes.as_ref().and_then(|changes| changes.watch(&cgroup.dir).ok());
        Some(cgroup)
    }

    /// Keeps or removes the cgroup of an exec that has ended.
    pub fn dispose(&self, mut cgroup: Cgroup) {
        thrash::forget(&cgroup.dir);
        if let Some(limited) = cgroup.limited.take() {
            self.remove(cgroup.dir);
            return self.release(limited);
        }
        let has_room = self.spare().len() < MOST_SPARE;
        if has_room && cgroup.is_empty() && !self.is_changed(&cgroup) {
            cgroup.begin_counts();
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

/// Enables the controller that limits of the processors need. Only now: with it, processes of different cgroups share the processors by
/// their cgroups.
///
/// # Errors
/// The kernel does not have it.
fn enable_cpu_for(limits: &Limits) -> Result<(), Failed> {
    let enabled = match need_cpu(limits) {
        true => [ROOT, OURS].into_iter().try_for_each(|dir| enable(dir, "cpu")),
        false => Ok(()),
    };
    enabled.map_err(|error| ("cgroup".to_owned(), error))
}

fn set_up_or_log() -> bool {
    match set_up() {
        Ok(missing) if missing.is_empty() => true,
        Ok(missing) => {
            console::log(&format!("execs are not limited: the kernel's cgroups lack {}", missing.join(" and ")));
            true
        }
        Err(error) => {
            console::log(&format!("execs have process groups only: {OURS}: {error}"));
            false
        }
    }
}

/// Creates the parent cgroup. Returns the names of the controllers that are missing.
fn set_up() -> io::Result<Vec<&'static str>> {
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))?;
    // Without favordynmods, each process that enters a cgroup waits for an RCU grace period.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(None::<&str>, ROOT, None::<&str>, flags, Some("favordynmods"));
    match fs::create_dir(OURS) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let has = |name: &str| controllers.split_whitespace().any(|there| there == name);
    let mut missing = Vec::new();
    // With the memory controller, fork and exec take a tenth longer, mostly for the accounting of kernel memory (measured against
    // cgroup.memory=nokmem). Without it, pipes and page tables would escape the limit.
    for name in ["pids", "memory"] {
        if !has(name) || enable(ROOT, name).and_then(|()| enable(OURS, name)).is_err() {
            missing.push(name);
        }
    }
    let ours = Path::new(OURS);
    // Some processes and memory are reserved for the agent, and for an exec that investigates.
    let _ = fs::write(ours.join("pids.max"), (most_processes() / 8 * 7).to_string());
    if let Some(memory) = Memory::read() {
        let limit = memory.for_execs();
        if fs::write(ours.join("memory.max"), limit.to_string()).is_ok() {
            thrash::watch(ours.to_owned(), None)?;
        }
    }
    Ok(missing)
}

/// Enables a controller for the cgroups below one.
fn enable(dir: &str, controller: &str) -> io::Result<()> {
    fs::write(Path::new(dir).join("cgroup.subtree_control"), format!("+{controller}"))
}

/// The most processes and threads that the kernel allows, read once.
fn most_processes() -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    *MOST.get_or_init(|| {
        let limit = |name| fs::read_to_string(name).ok().and_then(|text| text.trim().parse().ok());
        let limits = ["/proc/sys/kernel/threads-max", "/proc/sys/kernel/pid_max"].into_iter().filter_map(limit);
        limits.min().unwrap_or(1 << 15)
    })
}

/// The machine's memory according to `/proc/meminfo`, in bytes.
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

    /// The limit of all execs together: what is available now without the reserve, or half of the memory if that is more. With a higher
    /// limit the machine would thrash for minutes before the OOM killer acts.
    fn for_execs(self) -> u64 {
        self.available.saturating_sub(LEAST_RESERVE.max(self.total / 16)).max(self.total / 2)
    }
}

/// The cgroup of one exec.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    entrance: OwnedFd,
    /// The files that are read for each exec. They stay open, because a caller waits while they are read. `None`: the kernel has none.
    events: Option<File>,
    cpu_stat: Option<File>,
    memory_events: Option<File>,
    /// Its watch of [`Changes`].
    watch: Option<i32>,
    /// The container's that it is in.
    limited: Option<Arc<Limited>>,
    /// The CPU time of earlier execs in this cgroup, in microseconds: in user mode and in the kernel.
    time_before: (u64, u64),
    /// How many processes of earlier execs the OOM killer has ended.
    oom_kills_before: u64,
}

impl Cgroup {
    fn make(dir: PathBuf) -> io::Result<Self> {
        match fs::create_dir(&dir) {
            // An earlier agent has created it, and its execs are in the counts.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let _ = fs::write(dir.join("pids.max"), (most_processes() / 4 * 3).to_string());
        let _ = fs::write(dir.join(OOM_GROUP), "1");
        let entrance = File::options().write(true).open(dir.join("cgroup.procs"))?.into();
        let [events, cpu_stat, memory_events] =
            ["cgroup.events", "cpu.stat", "memory.events"].map(|name| File::open(dir.join(name)).ok());
        let mut cgroup = Self {
            dir,
            entrance,
            events,
            cpu_stat,
            memory_events,
            watch: None,
            limited: None,
            time_before: (0, 0),
            oom_kills_before: 0,
        };
        cgroup.begin_counts();
        Ok(cgroup)
    }

    /// Has the counts of the next exec begin here: the kernel's are those of all execs that were in the cgroup.
    fn begin_counts(&mut self) {
        self.time_before = self.total_time().unwrap_or_default();
        self.oom_kills_before = self.total_oom_kills();
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cgroup of its container, if that has limits.
    pub fn limited(&self) -> Option<&Arc<Limited>> {
        self.limited.as_ref()
    }

    /// The open `cgroup.procs`: a process that writes "0" to it enters the cgroup.
    pub fn entrance(&self) -> BorrowedFd<'_> {
        self.entrance.as_fd()
    }

    /// The processes in it now.
    pub fn processes(&self) -> Vec<i32> {
        let list = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 1).collect()
    }

    /// Kills all processes in it and waits for their end. True: none is left.
    pub fn end(&self) -> bool {
        let Some(events) = &self.events else { return false };
        if !is_populated(events) {
            return true;
        }
        if fs::write(self.dir.join("cgroup.kill"), "1").is_err() {
            return false;
        }
        let deadline = Instant::now() + KILL_GRACE;
        loop {
            if !is_populated(events) {
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

    /// Whether it has neither processes nor child cgroups.
    fn is_empty(&self) -> bool {
        let has_no_process = self.events.as_ref().is_some_and(|events| !is_populated(events));
        has_no_process && fs::metadata(&self.dir).is_ok_and(|meta| meta.nlink() == 2)
    }

    /// The CPU time of this exec, in microseconds: in user mode and in the kernel.
    pub fn time(&self) -> Option<(u64, u64)> {
        let (user, system) = self.total_time()?;
        let (user_before, system_before) = self.time_before;
        Some((user.saturating_sub(user_before), system.saturating_sub(system_before)))
    }

    /// Whether a process of this exec was killed for want of memory: by the OOM killer, or because it thrashed.
    pub fn was_out_of_memory(&self) -> bool {
        self.total_oom_kills() > self.oom_kills_before || thrash::has_killed_in(&self.dir)
    }

    fn total_oom_kills(&self) -> u64 {
        let text = self.memory_events.as_ref().and_then(read_again).unwrap_or_default();
        value(&text, "oom_kill ").unwrap_or(0)
    }

    fn total_time(&self) -> Option<(u64, u64)> {
        let text = read_again(self.cpu_stat.as_ref()?)?;
        Some((value(&text, "user_usec ")?, value(&text, "system_usec ")?))
    }
}

/// Reads a short file of a cgroup from its beginning, with one system call.
fn read_again(file: &File) -> Option<String> {
    let mut block = [0; 4096];
    let got = file.read_at(&mut block, 0).ok()?;
    Some(String::from_utf8_lossy(&block[..got]).into_owned())
}

/// The number in the line that begins with `name`.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn is_populated(events: &File) -> bool {
    read_again(events).is_some_and(|text| text.lines().any(|line| line == "populated 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_an_exec_are_without_those_of_earlier_ones_in_its_cgroup() {
        let scratch = tempfile::tempdir().unwrap();
        let put = |(user, system): (u64, u64), oom_kills: u64| {
            let write = |name: &str, text: String| fs::write(scratch.path().join(name), text).unwrap();
            write("cgroup.procs", String::new());
            write("cpu.stat", format!("usage_usec 9\nuser_usec {user}\nsystem_usec {system}\n"));
            write("memory.events", format!("oom 7\noom_kill {oom_kills}\noom_group_kill 7\n"));
        };
        // As an earlier agent has left it.
        put((1000, 100), 2);
        let mut cgroup = Cgroup::make(scratch.path().to_owned()).unwrap();
        assert_eq!((cgroup.was_out_of_memory(), cgroup.time()), (false, Some((0, 0))));
        put((1007, 101), 3);
        assert_eq!((cgroup.was_out_of_memory(), cgroup.time()), (true, Some((7, 1))));
        // The next exec in it.
        cgroup.begin_counts();
        assert_eq!((cgroup.was_out_of_memory(), cgroup.time()), (false, Some((0, 0))));
        put((1008, 103), 4);
        assert_eq!((cgroup.was_out_of_memory(), cgroup.time()), (true, Some((1, 2))));
    }
}
