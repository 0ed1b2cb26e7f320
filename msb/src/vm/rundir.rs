//! The run directory of a VM: its locks, its files, and what remains of it when the VM has ended.
//!
//! The VM's supervisor holds a lock on the directory itself while it runs. Every process of the VM, including the supervisor,
//! holds a lock on the file [`ALIVE`]. A process that gets the first lock knows that the VM has no supervisor; if it then gets the
//! second one, no process of the VM is left. When a VM ends by itself, the supervisor leaves the record, the logs and [`ENDED`];
//! msb-stop, or the next msb-boot of that name, removes them.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::lock::{self, Lock};
use crate::overlay::beneath::{Dir, Name};
use crate::store::publish;

/// The socket on which the agent answers.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The socket directory: the VM's sockets appear in it during boot. The processes that serve the VM can create files in it, so the
/// agent's socket is moved out and the directory is removed once the agent has reported.
pub const SOCKET_DIR: &str = "door";
/// The output of the guest's kernel and of agentd.
pub const KERNEL_LOG: &str = "kernel.log";
/// The previous file of that log, after a rotation.
pub const OLD_KERNEL_LOG: &str = "kernel.log.1";
/// The directory with the output of detached commands, see [`exec_log`].
pub const EXECS: &str = "execs";
/// The supervisor's log.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// The previous file of that log, after a rotation.
pub const OLD_SUPERVISOR_LOG: &str = "supervisor.log.1";

/// Where the older part of a log is, which is rotated when it has its full size.
pub fn older_part(log: &Path) -> PathBuf {
    let mut older = log.as_os_str().to_owned();
    older.push(".1");
    older.into()
}

/// The output of the detached command with this ID, of the VM with the run directory `dir`: frames
/// [`Output`](crate::wire::Message::Output) and [`Execs`](crate::wire::Message::Execs), as the agent has sent them.
pub fn exec_log(dir: &Path, id: u32) -> PathBuf {
    dir.join(EXECS).join(id.to_string())
}

/// What has passed between the guest and its network: a [`Traffic`], as [`Traffic::to_text`] writes it.
pub const TRAFFIC: &str = "traffic";
/// The socket on which the supervisor saves the VM, if that can be saved.
pub const SNAPSHOT_SOCKET: &str = "snapshot.sock";
/// The directory with the mount points of the volumes, which the guest gets as a share.
pub const VOLUMES: &str = "volumes";
/// The initramfs, while it is being written.
pub const INITRAMFS: &str = "initramfs";
/// The path of the shared root, from before the boot on.
pub const SHARED_ROOT: &str = "shared-root";
/// The file that every process of the VM holds a lock on.
pub const ALIVE: &str = "alive";
/// How the VM ended: an [`Ended`].
pub const ENDED: &str = "ended.json";
/// The result of a commit: a [`Committed`].
pub const COMMITTED: &str = "committed.json";
/// The request of msb-stop: a [`StopRequest`].
pub const STOP: &str = "stop.json";
/// The file that is locked while [`STOP`] is read and rewritten.
const STOP_LOCK: &str = "stop.lock";
/// The file on which every msb-stop holds a lock until it has read how the VM ended.
pub const READERS: &str = "readers.lock";
/// The new deadline of a guest that is still writing data back: an [`Extended`].
pub const EXTENDED: &str = "extended.json";
/// Present while the supervisor restarts the VM: a [`Restarting`].
pub const RESTARTING: &str = "restarting.json";

/// What has passed between a guest and its network, in frames with their Ethernet headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the guest received.
    pub received_bytes: u64,
    /// Frames that the guest received.
    pub received_frames: u64,
    /// Bytes that the guest sent.
    pub sent_bytes: u64,
    /// Frames that the guest sent.
    pub sent_frames: u64,
}

impl Traffic {
    /// Four numbers of 20 digits, so that a writer replaces all of the file with one call.
    pub fn to_text(self) -> String {
        format!(
            "{:020} {:020} {:020} {:020}\n",
            self.received_bytes, self.received_frames, self.sent_bytes, self.sent_frames
        )
    }

    /// Reads the file in a run directory. `None`: the guest has no network.
    pub fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(TRAFFIC)).ok()?;
        let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
        let mut next = || numbers.next();
        let (received_bytes, received_frames) = (next()?, next()?);
        Some(Self { received_bytes, received_frames, sent_bytes: next()?, sent_frames: next()? })
    }
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The message for people, without the VM's name.
    pub reason: String,
    /// Whether it was asked to stop and had to be killed.
    pub forced: bool,
    /// What ended it.
    #[serde(default)]
    pub cause: Cause,
    /// How many commands did not end within the grace period and were killed.
    #[serde(default)]
    pub killed: u32,
}

/// What ended a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// It was asked to stop.
    Stop,
    /// The guest powered off, or halted.
    PowerOff,
    /// The guest rebooted.
    Reboot,
    /// The guest's kernel panicked.
    Panic,
    /// A process of the VM failed or was killed.
    #[default]
    Failure,
}

impl Ended {
    /// An end with this cause.
    pub fn by(cause: Cause) -> Self {
        let reason = match cause {
            Cause::Stop => "stopped",
            Cause::PowerOff => "the guest powered off",
            Cause::Reboot => "the guest rebooted",
            Cause::Panic => "the guest's kernel panicked",
            Cause::Failure => "failed",
        };
        Self { reason: reason.into(), forced: false, cause, killed: 0 }
    }

    /// The end of a VM that failed.
    pub fn failure(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::by(Cause::Failure) }
    }

    /// The end of a VM that was asked to stop, and had to be killed.
    pub fn forced(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), forced: true, ..Self::by(Cause::Stop) }
    }

    /// Whether the VM ended as the host or the guest wanted.
    pub fn is_orderly(&self) -> bool {
        !self.forced && matches!(self.cause, Cause::Stop | Cause::PowerOff | Cause::Reboot)
    }
}

/// The deadline of a VM that was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extended {
    /// The deadline on the monotonic clock, in milliseconds.
    pub until_ms: u64,
}

/// A restart in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarting {
    /// Why the VM had ended.
    pub reason: String,
}

/// A request to stop, written before SIGTERM is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// The grace period, in milliseconds.
    pub grace_ms: u64,
    /// Whether to commit the guest's writes into the record's upper.
    #[serde(default)]
    pub commit: bool,
}

/// The result of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Committed {
    /// The upper that the writes were committed into.
    Into {
        /// The layer.
        dir: PathBuf,
        /// Its work directory.
        work: PathBuf,
    },
    /// Why the commit failed; the upper is unchanged.
    Failed(String),
}

/// Writes a [`StopRequest`] into the run directory `dir`. A commit that an earlier request asked for remains requested.
///
/// # Errors
/// Those of locking and writing.
pub fn request_stop(dir: &Path, grace_ms: u64, commit: bool) -> io::Result<()> {
    let _lock = lock::make(&dir.join(STOP_LOCK), Lock::Exclusive)?;
    let commit = commit || read::<StopRequest>(dir, STOP).is_some_and(|earlier| earlier.commit);
    write(dir, STOP, &StopRequest { grace_ms, commit })
}

/// Registers a reader of the VM's end: [`LockedRunDir::await_readers`] waits while the returned file is open.
///
/// # Errors
/// Those of opening and locking.
pub fn register_reader(dir: &Path) -> io::Result<File> {
    lock::make(&dir.join(READERS), Lock::Shared)
}

/// Writes one of the JSON files of the run directory `dir`.
///
/// # Errors
/// Those of writing.
pub fn write(dir: &Path, file: &str, note: &impl Serialize) -> io::Result<()> {
    publish::write_volatile_file(&dir.join(file), &serde_json::to_vec(note)?, 0o600)
}

/// Reads one of the JSON files of the run directory `dir`; `None` if it does not exist or cannot be parsed.
pub fn read<N: DeserializeOwned>(dir: &Path, file: &str) -> Option<N> {
    serde_json::from_slice(&fs::read(dir.join(file)).ok()?).ok()
}

/// A run directory that this process has locked, and that its path refers to.
#[derive(Debug)]
pub struct LockedRunDir {
    path: PathBuf,
    _lock: OwnedFd,
}

impl LockedRunDir {
    /// Creates the directory if it does not exist, and locks it. `None`: another process has locked it.
    ///
    /// # Errors
    /// Those of creating and opening it.
    pub fn create(path: &Path) -> io::Result<Option<Self>> {
        publish::make_private_dir(path.parent().unwrap_or(Path::new("/")))?;
        loop {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            match Self::lock(path) {
                // The previous owner of the lock removed it in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
    }

    /// Locks an existing directory. `None`: another process has locked it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it does not exist; otherwise those of opening it.
    pub fn lock(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        match lock::take(&dir, Lock::TryExclusive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        }
        // The lock may be on a directory that was removed, or replaced, before it was ours.
        let ours = rustix::fs::fstat(&dir)?;
        let there = fs::symlink_metadata(path)?;
        if (ours.st_dev, ours.st_ino) != (there.dev(), there.ino()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Some(Self { path: path.to_owned(), _lock: dir }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens [`ALIVE`] with a shared lock, for the supervisor and the children that inherit it. They cannot write to it.
    ///
    /// # Errors
    /// Those of opening and locking.
    pub fn lock_alive(&self) -> io::Result<File> {
        self.open_alive()?;
        let file = File::open(self.path.join(ALIVE))?;
        lock::take(&file, Lock::TryShared)?;
        Ok(file)
    }

    /// Moves [`AGENT_SOCKET`] out of [`SOCKET_DIR`] and removes that. Nobody can create files in it any more, including processes that
    /// have it as their working directory.
    ///
    /// # Errors
    /// Those of renaming, and [`io::ErrorKind::InvalidData`] for a file that is not a socket.
    pub fn close_socket_dir(&self) -> io::Result<()> {
        let socket = self.path.join(AGENT_SOCKET);
        fs::rename(self.path.join(SOCKET_DIR).join(AGENT_SOCKET), &socket)?;
        if !fs::symlink_metadata(&socket)?.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a socket"));
        }
        // It was made by the VM's user.
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        std::os::unix::fs::lchown(&socket, Some(uid), Some(gid))?;
        // The directory is private already; this also covers one whose mode was changed.
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        Dir::open(&self.path)?.remove_tree(Name::new(OsStr::new(SOCKET_DIR))?)
    }

    /// Waits until no process of the VM is left, without a timeout.
    ///
    /// # Errors
    /// Those of opening and locking.
    pub fn await_processes(&self) -> io::Result<()> {
        lock::take(&self.open_alive()?, Lock::Exclusive)
    }

    /// Waits until every registered reader has read how the VM ended, without a timeout.
    ///
    /// # Errors
    /// Those of opening and locking.
    pub fn await_readers(&self) -> io::Result<()> {
        match File::open(self.path.join(READERS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => lock::take(&other?, Lock::Exclusive),
        }
    }

    fn open_alive(&self) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).mode(0o600).open(self.path.join(ALIVE))
    }

    /// Removes everything in the directory except the names in `keep`. Returns whether there was anything to remove.
    ///
    /// # Errors
    /// Those of removing.
    pub fn clear(&self, keep: &[&str]) -> io::Result<bool> {
        let mut removed = false;
        let dir = Dir::open(&self.path)?;
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if !keep.iter().any(|kept| name == *kept) {
                dir.remove_tree(Name::new(&name)?)?;
                removed = true;
            }
        }
        Ok(removed)
    }

    /// Removes the directory and everything in it.
    ///
    /// # Errors
    /// Those of removing.
    pub fn remove(self) -> io::Result<()> {
        self.clear(&[])?;
        fs::remove_dir(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Traffic::read(dir.path()), None);
        let traffic = Traffic { received_bytes: 1, received_frames: 2, sent_bytes: u64::MAX, sent_frames: 4 };
        fs::write(dir.path().join(TRAFFIC), traffic.to_text()).unwrap();
        assert_eq!(Traffic::read(dir.path()), Some(traffic));
        assert_eq!(traffic.to_text().len(), Traffic::default().to_text().len());
        fs::write(dir.path().join(TRAFFIC), "1 2 3").unwrap();
        assert_eq!(Traffic::read(dir.path()), None);
    }

    #[test]
    fn one_process_locks_a_directory_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("msb/worker");
        let held = LockedRunDir::create(&path).unwrap().unwrap();
        assert!(LockedRunDir::create(&path).unwrap().is_none());
        assert!(LockedRunDir::lock(&path).unwrap().is_none());
        drop(held);
        assert!(LockedRunDir::lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_removed_directory_cannot_be_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker");
        LockedRunDir::create(&path).unwrap().unwrap().remove().unwrap();
        assert!(!path.exists());
        assert_eq!(LockedRunDir::lock(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn clearing_keeps_the_named_files_and_returns_whether_there_were_others() {
        let dir = tempfile::tempdir().unwrap();
        let held = LockedRunDir::create(&dir.path().join("worker")).unwrap().unwrap();
        write(held.path(), ENDED, &Ended::forced("x")).unwrap();
        fs::create_dir_all(held.path().join("share/msb")).unwrap();
        assert!(held.clear(&[ENDED]).unwrap());
        assert!(!held.clear(&[ENDED]).unwrap());
        assert_eq!(read::<Ended>(held.path(), ENDED).unwrap().reason, "x");
        assert_eq!(read::<StopRequest>(held.path(), STOP), None);
    }

    #[test]
    fn a_requested_commit_remains_requested() {
        let dir = tempfile::tempdir().unwrap();
        for (grace_ms, commit, expected) in
            [(5, false, false), (10_000, true, true), (2_000, false, true), (0, false, true)]
        {
            request_stop(dir.path(), grace_ms, commit).unwrap();
            assert_eq!(read::<StopRequest>(dir.path(), STOP), Some(StopRequest { grace_ms, commit: expected }));
        }
    }

    #[test]
    fn only_an_end_that_the_host_or_the_guest_wanted_is_orderly() {
        for (cause, expected) in [
            (Cause::Stop, true),
            (Cause::PowerOff, true),
            (Cause::Reboot, true),
            (Cause::Panic, false),
            (Cause::Failure, false),
        ] {
            assert_eq!(Ended::by(cause).is_orderly(), expected, "{cause:?}");
        }
        assert!(!Ended::forced("x").is_orderly());
        assert!(!Ended::failure("x").is_orderly());
    }

    #[test]
    fn an_end_written_by_an_earlier_release_is_read() {
        let ended: Ended = serde_json::from_str(r#"{"reason":"stopped","forced":false}"#).unwrap();
        assert_eq!(ended, Ended::failure("stopped"));
        let text = serde_json::to_string(&Ended::by(Cause::PowerOff)).unwrap();
        assert_eq!(text, r#"{"reason":"the guest powered off","forced":false,"cause":"poweroff","killed":0}"#);
    }
}
