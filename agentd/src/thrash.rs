//! Thrashing: commands have filled their memory limit, and the pages of the running programs are evicted and read again all the time.
//! The kernel takes that for progress and may go on for minutes before the OOM killer acts. Pressure stall information would show it,
//! but libkrunfw's kernel is built without that, so refaults are counted here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{console, sys};

/// The start of the names of containers' cgroups, in that of all execs.
pub const CONTAINER: &str = "container-";
/// How long refaults are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// How many consecutive windows must have too many refaults.
const WINDOWS: u32 = 3;
/// How many refaults in a window are too many.
const MANY: u64 = 250;

/// The cgroups of execs of which a process was killed.
static KILLED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn killed() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    KILLED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a process in the cgroup of an exec was killed because it thrashed.
pub fn has_killed_in(cgroup: &Path) -> bool {
    killed().contains(cgroup)
}

/// The exec of a cgroup has ended.
pub fn forget(cgroup: &Path) {
    killed().remove(cgroup);
}

/// Starts a thread that watches the cgroup of all execs or of a container, and kills the largest exec in it when it thrashes. The thread
/// ends with the writer of `end`.
///
/// # Errors
/// Those of opening the cgroup's files and of starting the thread.
pub fn watch(cgroup: PathBuf, end: Option<PipeReader>) -> io::Result<()> {
    let mut events = File::open(cgroup.join("memory.events"))?;
    let watch = move || {
        loop {
            // Waits until the limit is hit again.
            let seen = events.rewind().and_then(|()| events.read_to_string(&mut String::new()));
            let mut fds = vec![PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            fds.extend(end.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::empty())));
            if seen.is_err() || poll(&mut fds, PollTimeout::NONE).is_err() || fds.get(1).is_some_and(has_events) {
                return;
            }
            if thrashes(&cgroup) {
                kill_largest(&cgroup);
            }
        }
    };
    thread::Builder::new().name("thrash".into()).spawn(watch).map(drop)
}

fn has_events(fd: &PollFd<'_>) -> bool {
    fd.revents().is_some_and(|events| !events.is_empty())
}

/// Whether the cgroup thrashes in each of the next windows.
fn thrashes(cgroup: &Path) -> bool {
    // The limit may have been changed. "max" is no number: without a limit nothing thrashes.
    let limit = fs::read_to_string(cgroup.join("memory.max")).ok().and_then(|text| text.trim().parse().ok());
    let (Some(limit), Some(mut before)) = (limit, Usage::read(cgroup)) else { return false };
    for _ in 0..WINDOWS {
        thread::sleep(WINDOW);
        let Some(now) = Usage::read(cgroup) else { return false };
        if !now.thrashes_since(before, limit) {
            return false;
        }
        before = now;
    }
    true
}

/// The relevant part of `memory.stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    /// Anonymous memory, in bytes.
    anon: u64,
    /// Pages of files that were evicted and read again.
    refaults: u64,
}

impl Usage {
    fn read(cgroup: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(cgroup.join("memory.stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let value = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Some(Self { anon: value("anon ")?, refaults: value("workingset_refault_file ")? })
    }

    /// Programs that read large files have refaults too. They do not thrash: most of their memory is page cache.
    fn thrashes_since(self, before: Self, limit: u64) -> bool {
        self.anon > limit / 10 * 9 && self.refaults.saturating_sub(before.refaults) >= MANY
    }
}

/// The entries of a cgroup: those below it, and its files.
fn children(cgroup: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(cgroup).into_iter().flatten().filter_map(|child| Some(child.ok()?.path()))
}

fn kill_largest(cgroup: &Path) {
    // A container's cgroup has those of its execs.
    let is_container =
        |child: &Path| child.file_name().is_some_and(|name| name.as_bytes().starts_with(CONTAINER.as_bytes()));
    let execs =
        children(cgroup).flat_map(|child| if is_container(&child) { children(&child).collect() } else { vec![child] });
    let sized = execs.filter_map(|child| Some((fs::read_to_string(child.join("memory.current")).ok()?, child)));
    let parsed = sized.filter_map(|(bytes, child)| Some((bytes.trim().parse::<u64>().ok()?, child)));
    let Some((bytes, largest)): Option<(u64, PathBuf)> = parsed.max() else { return };
    console::log(&format!(
        "out of memory: the commands are thrashing; killing the largest, {} MiB in {largest:?}",
        bytes >> 20
    ));
    killed().insert(largest.clone());
    // Like the OOM killer, this respects memory.oom.group.
    if fs::read_to_string(largest.join("memory.oom.group")).is_ok_and(|text| text.trim() == "0") {
        let list = fs::read_to_string(largest.join("cgroup.procs")).unwrap_or_default();
        if let Some(pid) = largest_process(list.lines().filter_map(|line| line.parse().ok())) {
            sys::signal_process(pid, SIGKILL);
        }
    } else if let Err(error) = fs::write(largest.join("cgroup.kill"), "1") {
        console::log(&format!("{largest:?}: {error}"));
    }
}

/// The process with the most resident memory.
fn largest_process(pids: impl Iterator<Item = i32>) -> Option<i32> {
    let pages = |pid: i32| -> Option<u64> {
        fs::read_to_string(format!("/proc/{pid}/statm")).ok()?.split_whitespace().nth(1)?.parse().ok()
    };
    pids.filter(|&pid| pid > 1).filter_map(|pid| Some((pages(pid)?, pid))).max().map(|(_, pid)| pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_exec_is_killed_also_in_a_container() {
        let scratch = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: u64| {
            fs::create_dir_all(scratch.path().join(path)).unwrap();
            fs::write(scratch.path().join(path).join("memory.current"), format!("{bytes}\n")).unwrap();
        };
        let (alone, contained) = (scratch.path().join("1"), scratch.path().join("container-2/3"));
        [("1", 5), ("container-2", 11), ("container-2/3", 7), ("container-2/4", 4)]
            .iter()
            .for_each(|(path, bytes)| put(path, *bytes));
        kill_largest(scratch.path());
        assert_eq!(fs::read_to_string(contained.join("cgroup.kill")).unwrap(), "1");
        assert!(has_killed_in(&contained) && !has_killed_in(&alone));
        forget(&contained);
        assert!(!has_killed_in(&contained));
    }

    #[test]
    fn who_has_no_memory_for_files_and_reads_them_again_thrashes() {
        let stat = |anon: u64, refaults: u64| {
            let text = format!(
                "anon {anon}\nfile 4096\nanon_thp 7\nworkingset_refault_anon 3\nworkingset_refault_file {refaults}\n"
            );
            Usage::parse(&text).unwrap()
        };
        let before = stat(0, 1000);
        assert_eq!(before, Usage { anon: 0, refaults: 1000 });
        assert!(stat(95 << 20, 1000 + MANY).thrashes_since(before, 100 << 20));
        assert!(!stat(95 << 20, 1000 + MANY - 1).thrashes_since(before, 100 << 20));
        assert!(!stat(80 << 20, 9000).thrashes_since(before, 100 << 20));
        assert_eq!(Usage::parse("anon 1\n"), None);
    }
}
