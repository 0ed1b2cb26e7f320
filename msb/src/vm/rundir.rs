//! The run directory of a VM: who holds it, what is in it, and what stays of it when the VM has ended.
//!
//! The VM's supervisor holds a lock on the directory itself as long as it lives; every process of the VM, the
//! supervisor included, holds one on the file [`ALIVE`]. So whoever gets the first knows that nobody looks after the VM,
//! and whoever then gets the second knows that nothing of it runs any more. When a VM ends by itself, the supervisor
//! leaves the record, the logs and [`ENDED`]; msb-stop, or the next msb-boot of that name, removes them.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::overlay::beneath::{Dir, Name};
use crate::store::publish;

/// The socket on which the agent answers.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The directory in which the VM's sockets appear while it boots. Whatever serves the VM can make files in it, so what is of
/// use is taken out, and the directory away, when the agent has reported.
pub const DOOR: &str = "door";
/// What the guest's kernel and agentd said.
pub const KERNEL_LOG: &str = "kernel.log";
/// What they said before that, where it was too much for one file.
pub const OLD_KERNEL_LOG: &str = "kernel.log.1";
/// What the supervisor did and saw.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// The part of it that was too much for one file.
pub const OLD_SUPERVISOR_LOG: &str = "supervisor.log.1";
/// The directory that is the guest's first root.
pub const BOOT_SHARE: &str = "share";
/// The file that every process of the VM holds a lock on.
pub const ALIVE: &str = "alive";
/// How the VM ended, an [`Ended`].
pub const ENDED: &str = "ended.json";
/// What came of a commit, a [`Committed`].
pub const COMMITTED: &str = "committed.json";
/// What msb-stop wants of the supervisor, a [`Stop`].
pub const STOP: &str = "stop.json";
/// The file that is locked while [`STOP`] is read and written again.
const STOP_LOCK: &str = "stop.lock";
/// The file that each msb-stop holds a lock on until it has read how the VM ended.
pub const READERS: &str = "readers.lock";
/// How far a guest that still writes data back has extended the grace, an [`Extended`].
pub const EXTENDED: &str = "extended.json";
/// Present while the supervisor starts the VM again: a [`Restarting`].
pub const RESTARTING: &str = "restarting.json";

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The message for people, without the VM's name.
    pub reason: String,
    /// Whether it was asked to stop and did not within its grace.
    pub forced: bool,
    /// What ended it.
    #[serde(default)]
    pub cause: Cause,
    /// How many commands did not end within the grace and were killed.
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
    /// An end in order.
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

    /// An end for which nobody asked.
    pub fn failure(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::by(Cause::Failure) }
    }

    /// The end of a VM that was asked to stop, and had to be killed.
    pub fn forced(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), forced: true, ..Self::by(Cause::Stop) }
    }

    /// Whether this is how a VM should end.
    pub fn is_orderly(&self) -> bool {
        !self.forced && matches!(self.cause, Cause::Stop | Cause::PowerOff | Cause::Reboot)
    }
}

/// Until when a VM that was asked to stop has time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extended {
    /// On the monotonic clock, in milliseconds.
    pub until_ms: u64,
}

/// A VM that is started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarting {
    /// Why it had ended.
    pub reason: String,
}

/// A wish that comes before SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// How long the guest may take, in milliseconds.
    pub grace_ms: u64,
    /// Whether what the guest wrote is to come into the record's upper.
    #[serde(default)]
    pub commit: bool,
}

/// How a commit went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Committed {
    /// The upper that has it.
    Into {
        /// The layer.
        dir: PathBuf,
        /// Its work directory.
        work: PathBuf,
    },
    /// Why it did not, in words; nothing has changed then.
    Failed(String),
}

/// Asks for a stop: leaves a [`Stop`] in the run directory `dir`. A commit that an earlier wish asked for stays asked for, whoever
/// asks again and for what.
///
/// # Errors
/// What locking or writing says.
pub fn ask_to_stop(dir: &Path, grace_ms: u64, commit: bool) -> io::Result<()> {
    let lock = File::options().create(true).append(true).mode(0o600).open(dir.join(STOP_LOCK))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let commit = commit || find::<Stop>(dir, STOP).is_some_and(|earlier| earlier.commit);
    leave(dir, STOP, &Stop { grace_ms, commit })
}

/// As long as what this returns is open, [`Held::await_readers`] waits: the caller wants to read how the VM ends.
///
/// # Errors
/// What opening or locking says.
pub fn be_reader(dir: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).mode(0o600).open(dir.join(READERS))?;
    rustix::fs::flock(&file, FlockOperation::LockShared)?;
    Ok(file)
}

/// Puts an [`Ended`] or a [`Stop`] into the run directory `dir`.
///
/// # Errors
/// What writing says.
pub fn leave(dir: &Path, file: &str, note: &impl Serialize) -> io::Result<()> {
    publish::write_file(&dir.join(file), &serde_json::to_vec(note)?, 0o600)
}

/// Reads an [`Ended`] or a [`Stop`]; `None` where there is none that can be read.
pub fn find<N: DeserializeOwned>(dir: &Path, file: &str) -> Option<N> {
    serde_json::from_slice(&fs::read(dir.join(file)).ok()?).ok()
}

/// A run directory that is held: nobody else holds it, and the path leads to it.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    _lock: OwnedFd,
}

impl Held {
    /// Makes the directory where it is missing, and takes hold of it. `None`: another process holds it.
    ///
    /// # Errors
    /// What making or opening says.
    pub fn make(path: &Path) -> io::Result<Option<Self>> {
        publish::make_private_dir(path.parent().unwrap_or(Path::new("/")))?;
        loop {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            match Self::take(path) {
                // Its last holder removed it in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
    }

    /// Takes hold of a directory that is there. `None`: another process holds it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where it is gone; else what opening says.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::open(path, flags, Mode::empty())?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        // The lock may be on a directory that was removed, or replaced, before it was ours.
        let ours = rustix::fs::fstat(&lock)?;
        let there = fs::symlink_metadata(path)?;
        if (ours.st_dev, ours.st_ino) != (there.dev(), there.ino()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Some(Self { path: path.to_owned(), _lock: lock }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens [`ALIVE`] with a shared lock, for the supervisor to keep and its children to inherit; they cannot write to it.
    ///
    /// # Errors
    /// What opening or locking says.
    pub fn show_life(&self) -> io::Result<File> {
        self.open_alive()?;
        let file = File::open(self.path.join(ALIVE))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(file)
    }

    /// Takes [`AGENT_SOCKET`] out of [`DOOR`] and removes that. Nothing can be made in it any more, also not by who has it as
    /// its own directory still.
    ///
    /// # Errors
    /// What renaming says, and [`io::ErrorKind::InvalidData`] for something that is no socket.
    pub fn close_door(&self) -> io::Result<()> {
        let socket = self.path.join(AGENT_SOCKET);
        fs::rename(self.path.join(DOOR).join(AGENT_SOCKET), &socket)?;
        if !fs::symlink_metadata(&socket)?.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a socket"));
        }
        // The directory is private already; this is for whoever makes it less so.
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        Dir::open(&self.path)?.remove_tree(Name::new(OsStr::new(DOOR))?)
    }

    /// Waits until no process of the VM is left. It has no time limit: run it where waiting does no harm.
    ///
    /// # Errors
    /// What opening or locking says.
    pub fn await_death(&self) -> io::Result<()> {
        Ok(rustix::fs::flock(self.open_alive()?, FlockOperation::LockExclusive)?)
    }

    /// Waits until everybody who wanted to know has read how the VM ended. It has no time limit either.
    ///
    /// # Errors
    /// What opening or locking says.
    pub fn await_readers(&self) -> io::Result<()> {
        match File::open(self.path.join(READERS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Ok(rustix::fs::flock(other?, FlockOperation::LockExclusive)?),
        }
    }

    fn open_alive(&self) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).mode(0o600).open(self.path.join(ALIVE))
    }

    /// Removes everything in the directory except the names in `keep`. Returns whether there was anything to remove.
    ///
    /// # Errors
    /// What removing says.
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

    /// Removes the directory and all in it.
    ///
    /// # Errors
    /// What removing says.
    pub fn remove(self) -> io::Result<()> {
        self.clear(&[])?;
        fs::remove_dir(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_holds_a_directory_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("msb/worker");
        let held = Held::make(&path).unwrap().unwrap();
        assert!(Held::make(&path).unwrap().is_none());
        assert!(Held::take(&path).unwrap().is_none());
        drop(held);
        assert!(Held::take(&path).unwrap().is_some());
    }

    #[test]
    fn a_directory_that_is_gone_cannot_be_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker");
        Held::make(&path).unwrap().unwrap().remove().unwrap();
        assert!(!path.exists());
        assert_eq!(Held::take(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn clearing_keeps_what_is_named_and_says_whether_there_was_anything_else() {
        let dir = tempfile::tempdir().unwrap();
        let held = Held::make(&dir.path().join("worker")).unwrap().unwrap();
        leave(held.path(), ENDED, &Ended::forced("x")).unwrap();
        fs::create_dir_all(held.path().join("share/msb")).unwrap();
        assert!(held.clear(&[ENDED]).unwrap());
        assert!(!held.clear(&[ENDED]).unwrap());
        assert_eq!(find::<Ended>(held.path(), ENDED).unwrap().reason, "x");
        assert_eq!(find::<Stop>(held.path(), STOP), None);
    }

    #[test]
    fn a_commit_that_was_asked_for_once_stays_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        for (grace_ms, commit, expected) in
            [(5, false, false), (10_000, true, true), (2_000, false, true), (0, false, true)]
        {
            ask_to_stop(dir.path(), grace_ms, commit).unwrap();
            assert_eq!(find::<Stop>(dir.path(), STOP), Some(Stop { grace_ms, commit: expected }));
        }
    }

    #[test]
    fn only_an_end_that_the_host_or_the_guest_wanted_is_in_order() {
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
    fn an_end_that_an_earlier_release_left_is_read() {
        let ended: Ended = serde_json::from_str(r#"{"reason":"stopped","forced":false}"#).unwrap();
        assert_eq!(ended, Ended::failure("stopped"));
        let text = serde_json::to_string(&Ended::by(Cause::PowerOff)).unwrap();
        assert_eq!(text, r#"{"reason":"the guest powered off","forced":false,"cause":"poweroff","killed":0}"#);
    }
}
