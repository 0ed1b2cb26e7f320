//! Finding the supervisor of a VM that a record names. A record is not trusted and process IDs are reused, so a process ID alone does
//! not identify a supervisor: the process must have the recorded start time, belong to this user, and have the VM's run directory
//! open.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::record::{self, Record, RootKind, ScratchKind, Vm};
use crate::vm::name;

/// The argument with which msb-boot starts itself as a supervisor.
pub const ROLE: &str = "--as-supervisor";

/// What the kernel appends to the path of an open directory that was removed.
const DELETED: &[u8] = b" (deleted)";

/// The run directory of a VM according to its record: the directory of its socket.
pub fn run_dir(vm: &Vm) -> Option<&Path> {
    vm.endpoint.unix.parent().filter(|dir| dir.file_name().is_some_and(|name| name == vm.name.as_str()))
}

/// When a process was started, in clock ticks since the host's boot.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] for a process that does not exist.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22 of `/proc/PID/stat`. The second field is the process's name in parentheses, which may hold anything.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A pidfd of the VM's supervisor, if it is running. `None` also if its process ID was reused, or if it is another user's.
///
/// # Errors
/// Those of `pidfd_open(2)`.
pub fn find(vm: &Vm) -> io::Result<Option<OwnedFd>> {
    let (Some(dir), Some(pid)) = (run_dir(vm), Pid::from_raw(vm.pid).filter(|_| vm.pid > 1)) else { return Ok(None) };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
        other => other?,
    };
    let is_recorded = |started: u64| vm.start_time.is_none_or(|recorded| recorded == started);
    if !start_time(vm.pid).is_ok_and(is_recorded) || !holds(vm.pid, dir) {
        return Ok(None);
    }
    // If the process is still alive, its ID was not reused before the checks above.
    Ok(Some(process).filter(is_alive))
}

/// Refuses a run directory of another user, whose record and locks may name this user's processes and files.
///
/// # Errors
/// The user to whom it belongs.
pub fn check_owner(dir: &Path) -> io::Result<()> {
    match fs::symlink_metadata(dir) {
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => {
            let message =
                format!("run directory {dir:?}: it belongs to the user {} (run msb-stop as that user)", meta.uid());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
        }
        _ => Ok(()),
    }
}

/// A pidfd of the supervisor that has locked the run directory `dir`, which may have been removed.
///
/// # Errors
/// Those of `pidfd_open(2)`.
pub fn of_dir(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = holder(dir).and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
        // It was found by its process ID, which may have been reused since.
        Ok(process) => Ok(Some(process).filter(|_| holds(pid.as_raw_nonzero().get(), dir)).filter(is_alive)),
    }
}

/// The records of this user's running VMs.
pub fn running() -> Vec<Record> {
    let Some(dirs) = name::run_base().ok().and_then(|base| fs::read_dir(base).ok()) else { return Vec::new() };
    let record = |dir: PathBuf| Record::parse(&fs::read(dir.join(record::FILE_NAME)).ok()?).ok();
    let records = dirs.filter_map(|entry| record(entry.ok()?.path()));
    records.filter(|record| record.vm.as_ref().is_some_and(|vm| matches!(find(vm), Ok(Some(_))))).collect()
}

/// The names of the VMs whose shared root is the directory `root`.
pub fn sharing(root: &Path) -> Vec<String> {
    let number = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let is_root = |path: &Path| path == root || (number(path).is_some() && number(path) == number(root));
    let shares = |record: &Record| record.mount.as_ref().is_some_and(|mount| is_root(&mount.path));
    let vms = running().into_iter().filter(shares).filter_map(|record| record.vm);
    vms.filter(|vm| vm.root == RootKind::Share).map(|vm| vm.name).collect()
}

/// A list of VMs for a message.
pub fn vm_names(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("VM {name:?}")).collect();
    quoted.join(" and ")
}

/// Why a record's root cannot be changed or mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InUse {
    /// The record's VM is running: the caller has to stop it first.
    #[error("VM {name:?} is running on this record's root ({advice})")]
    Running {
        /// The VM's name.
        name: String,
        /// How to stop it.
        advice: String,
    },
    /// The host does not tell whether the VM is running.
    #[error("supervisor: {0}")]
    Unknown(io::Error),
}

/// For a tool that changes or mounts a record's root: refuses a record whose VM is running, and removes the member `vm` if the
/// VM has ended.
///
/// # Errors
/// See [`InUse`].
pub fn require_ended(record: &mut Record) -> Result<(), InUse> {
    let Some(vm) = &record.vm else { return Ok(()) };
    if find(vm).map_err(InUse::Unknown)?.is_some() {
        return Err(InUse::Running { name: vm.name.clone(), advice: how_to_stop(vm) });
    }
    record.vm = None;
    Ok(())
}

fn how_to_stop(vm: &Vm) -> String {
    let (flag, what) = match &vm.scratch {
        Some(scratch) if scratch.kind == ScratchKind::Disk => {
            (" --commit", ", which brings what its guest wrote into the record's upper,")
        }
        _ => ("", ""),
    };
    format!("stop it with \"msb-stop {}{flag}\"{what} and use the record that msb-stop prints", vm.name)
}

/// The process ID of the supervisor that has locked the run directory `dir`, which may have been removed.
pub fn holder(dir: &Path) -> Option<i32> {
    let numbers = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.into_iter().find(|&pid| holds(pid, dir))
}

/// Whether a process is a supervisor of this user that has `dir` open.
fn holds(pid: i32, dir: &Path) -> bool {
    is_supervisor(pid) && has_open(pid, dir).unwrap_or(false)
}

fn is_supervisor(pid: i32) -> bool {
    let proc = format!("/proc/{pid}");
    let is_ours = fs::metadata(&proc).is_ok_and(|meta| meta.uid() == rustix::process::geteuid().as_raw());
    let has_role = |arguments: Vec<u8>| arguments.split(|&byte| byte == 0).nth(1) == Some(ROLE.as_bytes());
    is_ours && fs::read(format!("{proc}/cmdline")).is_ok_and(has_role)
}

fn has_open(pid: i32, dir: &Path) -> io::Result<bool> {
    let there = fs::symlink_metadata(dir).ok().map(|meta| (meta.dev(), meta.ino()));
    let removed = real(dir).into_os_string().into_vec();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let link = entry?.path();
        let target = match fs::read_link(&link) {
            // Only root of the same user namespace may see what this user's processes have open, but everybody sees locks.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let locks = fs::read_to_string("/proc/locks")?;
                return Ok(there.is_some_and(|(_, inode)| has_lock(&locks, pid, inode)));
            }
            target => target.unwrap_or_default().into_os_string().into_vec(),
        };
        let is_there = there.is_some() && fs::metadata(&link).ok().map(|meta| (meta.dev(), meta.ino())) == there;
        if is_there || target.strip_suffix(DELETED) == Some(&removed) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `/proc/locks` says that a process has an exclusive flock(2) lock on a file with this inode number.
fn has_lock(locks: &str, pid: i32, inode: u64) -> bool {
    locks.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[_, "FLOCK", _, "WRITE", owner, file, ..] = &fields[..] else { return false };
        // The device in it is not always that of stat(2).
        owner.parse() == Ok(pid) && file.rsplit(':').next().and_then(|number| number.parse().ok()) == Some(inode)
    })
}

/// The path as the kernel shows it: symlinks are resolved as far as it exists.
fn real(path: &Path) -> PathBuf {
    let mut missing: Vec<&OsStr> = Vec::new();
    let mut above = path;
    loop {
        if let Ok(real) = above.canonicalize() {
            return missing.iter().rev().fold(real, |path, name| path.join(name));
        }
        match (above.parent(), above.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name);
                above = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

fn is_alive(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)) == Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exclusive_lock_of_the_process_itself_counts() {
        let locks = "1: FLOCK  ADVISORY  WRITE 12 00:2f:77 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 13 00:2f:77 0 EOF\n\
                     2: FLOCK  ADVISORY  READ  14 00:2f:77 0 EOF\n3: POSIX  ADVISORY  WRITE 15 00:2f:77 0 EOF\n";
        for (pid, inode, has) in [(12, 77, true), (12, 7, false), (13, 77, false), (14, 77, false), (15, 77, false)] {
            assert_eq!(has_lock(locks, pid, inode), has, "{pid} {inode}");
        }
    }

    #[test]
    fn a_start_time_is_read_for_any_process_name() {
        let stat = |name: &str| {
            let fields: Vec<String> = (3..=52).map(|number: u32| (number * 100).to_string()).collect();
            format!("42 ({name}) {}", fields.join(" "))
        };
        for name in ["msb-boot", "a b", ") 1 2 3 (", "x) R 1 1 1"] {
            assert_eq!(parse_start_time(stat(name).as_bytes()), Some(2200), "{name}");
        }
        for bad in ["", "42", "42 (x) R 1 2", "42 (x) a b c d e f g h i j k l m n o p q r s t"] {
            assert_eq!(parse_start_time(bad.as_bytes()), None, "{bad}");
        }
        let ours = i32::try_from(std::process::id()).unwrap();
        assert_eq!(start_time(ours).unwrap(), start_time(ours).unwrap());
    }

    #[test]
    fn a_vm_that_has_ended_is_removed_from_its_record() {
        let vm = |top: Option<&str>| {
            serde_json::from_value::<Vm>(serde_json::json!({
                "name": "worker", "pid": 1 << 30, "vmm": "qemu", "root": "block", "cpus": 1, "memory_mib": 1,
                "top": top.map(|kind| serde_json::json!({"kind": kind})),
                "endpoint": {"unix": "/nowhere/worker/agent.sock", "port": 1}, "kernel_log": "/nowhere/log",
                "timings_ms": {"spawn": 0, "kernel": 0, "agent": 0, "ready": 0},
            }))
            .unwrap()
        };
        let mut record = Record { vm: Some(vm(None)), ..Record::new() };
        require_ended(&mut record).unwrap();
        assert_eq!(record, Record::new());
        require_ended(&mut record).unwrap();
        for (top, commits) in [(Some("disk"), true), (Some("memory"), false), (None, false)] {
            let advice = how_to_stop(&vm(top));
            assert!(advice.contains("\"msb-stop worker"), "{advice}");
            assert_eq!(advice.contains("--commit\", which brings"), commits, "{advice}");
        }
    }

    #[test]
    fn a_path_is_resolved_as_far_as_it_exists() {
        let base = tempfile::tempdir().unwrap();
        let real_base = base.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(".", base.path().join("link")).unwrap();
        assert_eq!(real(&base.path().join("link/msb/worker")), real_base.join("msb/worker"));
        assert_eq!(real(&base.path().join("link")), real_base);
    }
}
