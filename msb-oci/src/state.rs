//! The state of a container: the directory ROOT/ID.
//!
//! `state.json` is replaced by a rename. The directory is locked by each command that changes it; the kernel releases the lock of one
//! that is killed. The FIFO `start` is there until the container is started, and is `started` from then on.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::lock::{self, Lock};
use msb::store::publish;
use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cgroup::{Cgroup, Freezer};
use crate::net::Plugged;
use crate::plan::Namespace;
use crate::process::{self, Identity};

/// The version of the runtime specification that this is written for.
pub(crate) const OCI_VERSION: &str = "1.2.0";

const STATE: &str = "state.json";
const START: &str = "start";
const STARTED: &str = "started";

/// What is known about a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Container {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    pub annotations: HashMap<String, String>,
    /// Whether it only holds a pod's namespaces.
    pub is_sandbox: bool,
    /// Whether it is a sandbox with a VM, in which the containers of its pod run.
    #[serde(default)]
    pub is_pod_vm: bool,
    /// Where it is in the VM of its pod, if it runs there.
    #[serde(default)]
    pub member: Option<Member>,
    /// The name of its VM.
    pub vm: String,
    /// The process that stands for it; `None` while it is being created.
    pub stand_in: Option<Identity>,
    /// The id of its command in the guest.
    pub exec_id: Option<u32>,
    /// The msb-exec that carries the streams of its command, for a container in the VM of its pod.
    #[serde(default)]
    pub command: Option<Identity>,
    pub cgroup: Cgroup,
    /// The memory of its VM's processes besides the guest's.
    pub overhead_mib: u64,
    /// The memory limit of the cgroup in bytes, with that overhead.
    pub memory: Option<u64>,
    /// Where its interfaces are.
    pub network: Namespace,
    /// The interfaces that its VM has taken over.
    pub plugged: Vec<Plugged>,
    /// The kernel parameters of its config.
    #[serde(default)]
    pub sysctl: BTreeMap<String, String>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// Where a container is in the VM of its pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// The ID of the sandbox.
    pub sandbox: String,
    /// The name of the container's tree in that of the sandbox. It is not used again, because guests cache names.
    pub tree_name: String,
}

impl Container {
    /// Whether there is a VM that ends with it.
    pub(crate) fn has_own_vm(&self) -> bool {
        self.is_pod_vm || (!self.is_sandbox && self.member.is_none())
    }
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// As the specification spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The directory of a container.
#[derive(Clone, Debug)]
pub(crate) struct StateDir(PathBuf);

/// A directory of a container, locked.
#[derive(Debug)]
pub(crate) struct Locked {
    pub dir: StateDir,
    _lock: OwnedFd,
}

impl StateDir {
    /// The directory of the container `id`, which need not exist.
    ///
    /// # Errors
    /// An ID that is not one.
    pub(crate) fn of(root: &Path, id: &str) -> anyhow::Result<Self> {
        check_id(id)?;
        Ok(Self(root.join(id)))
    }

    /// The directory with the state of all containers.
    pub(crate) fn root(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new("/"))
    }

    pub(crate) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// Whether a create has written the state.
    pub(crate) fn has_state(&self) -> bool {
        self.0.join(STATE).exists()
    }

    /// The FIFO that is opened to start the container.
    pub(crate) fn start_fifo(&self) -> PathBuf {
        self.0.join(START)
    }

    /// The record of the VM.
    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("vm.json")
    }

    /// The record of the VM that a container is in.
    pub(crate) fn record_for(&self, container: &Container) -> PathBuf {
        match &container.member {
            Some(member) => Self(self.root().join(&member.sandbox)).record(),
            None => self.record(),
        }
    }

    /// The file with what is run in the guest, a config.json.
    pub(crate) fn guest_config(&self) -> PathBuf {
        self.0.join("guest.json")
    }

    /// A file with the process object of a further command, which this process starts.
    pub(crate) fn further_process(&self) -> PathBuf {
        self.0.join(format!("process-{}.json", std::process::id()))
    }

    /// A file with the limits that a container in the VM of its pod gets.
    pub(crate) fn limits(&self) -> PathBuf {
        self.0.join("limits.json")
    }

    /// The mount point of the container's tree.
    pub(crate) fn tree(&self) -> PathBuf {
        self.0.join("tree")
    }

    /// A mount point for temporary mounts during create.
    pub(crate) fn temporary_mount(&self) -> PathBuf {
        self.0.join("mount")
    }

    /// Makes the directory, and locks it.
    ///
    /// # Errors
    /// There is such a container already.
    pub(crate) fn make(self) -> anyhow::Result<Locked> {
        let root = self.root();
        DirBuilder::new().recursive(true).mode(0o700).create(root).with_context(|| format!("{root:?}"))?;
        match DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("container {:?} already exists", self.0.file_name().unwrap_or_default())
            }
            other => other.with_context(|| format!("{:?}", self.0))?,
        }
        self.lock()
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// There is no such container.
    pub(crate) fn lock(self) -> anyhow::Result<Locked> {
        let lock = lock::open(&self.0, Lock::Exclusive);
        let lock = lock.map_err(|error| self.missing(error))?;
        // The command that had the lock may have removed the directory, and a create have made another one.
        if rustix::fs::fstat(&lock)?.st_nlink == 0 {
            return Err(self.missing(io::ErrorKind::NotFound.into()));
        }
        Ok(Locked { dir: self, _lock: lock })
    }

    /// Reads the state.
    ///
    /// # Errors
    /// There is no such container, or it was not created to the end.
    pub(crate) fn load(&self) -> anyhow::Result<Container> {
        let path = self.0.join(STATE);
        let text = fs::read(&path).map_err(|error| self.missing(error))?;
        serde_json::from_slice(&text).with_context(|| format!("{path:?}"))
    }

    fn missing(&self, error: io::Error) -> anyhow::Error {
        let id = self.0.file_name().unwrap_or_default();
        match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!("container {id:?} does not exist"),
            _ => anyhow::Error::new(error).context(format!("container {id:?}")),
        }
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn save(&self, container: &Container) -> anyhow::Result<()> {
        let path = self.0.join(STATE);
        publish::write_volatile_file(&path, &serde_json::to_vec(container)?, 0o600).with_context(|| format!("{path:?}"))
    }

    /// What the container is doing now.
    pub(crate) fn status(&self, container: &Container) -> Status {
        match &container.stand_in {
            None => Status::Creating,
            Some(stand_in) if !process::is_alive(stand_in) => Status::Stopped,
            // Also before it is started, or nothing could thaw it.
            Some(_) if Freezer::of(&container.cgroup).is_frozen() => Status::Paused,
            Some(_) if self.start_fifo().exists() => Status::Created,
            Some(_) => Status::Running,
        }
    }

    /// Notes that the container was started.
    ///
    /// # Errors
    /// It was not created, or was started before.
    pub(crate) fn mark_started(&self) -> io::Result<()> {
        fs::rename(self.start_fifo(), self.0.join(STARTED))
    }

    /// Removes the directory.
    ///
    /// # Errors
    /// Those of removing.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // The mount point has nothing mounted on it here. It is removed as an empty directory, so that a mount would not be emptied.
        match fs::remove_dir(self.tree()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The document that `state` prints and that hooks read.
    pub(crate) fn document(&self, container: &Container, status: Status) -> Value {
        let pid = container.stand_in.as_ref().filter(|_| status != Status::Stopped).map_or(0, |stand_in| stand_in.pid);
        json!({
            "ociVersion": OCI_VERSION,
            "id": container.id,
            "pid": pid,
            "status": status.as_str(),
            "bundle": container.bundle,
            "rootfs": container.rootfs,
            "created": container.created,
            "annotations": container.annotations,
        })
    }
}

/// The containers of a root, sorted. Those that are being created or deleted are left out.
///
/// # Errors
/// Those of reading the directory.
pub(crate) fn all(root: &Path) -> io::Result<Vec<(StateDir, Container)>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let dirs = entries.filter_map(|entry| Some(StateDir(entry.ok()?.path())));
    let mut all: Vec<_> = dirs.filter_map(|dir| Some((dir.clone(), dir.load().ok()?))).collect();
    all.sort_by(|(_, one), (_, other)| one.id.cmp(&other.id));
    Ok(all)
}

/// An ID becomes a directory.
fn check_id(id: &str) -> anyhow::Result<()> {
    let is_plain = id.chars().all(|c| c.is_ascii_alphanumeric() || "_+-.".contains(c));
    if !is_plain || id.starts_with('.') || id.is_empty() || id.len() > 200 {
        bail!(
            "container ID {id:?}: 1 to 200 letters, digits, \"_\", \"+\", \"-\" or \".\" are expected, and no \".\" at the beginning"
        );
    }
    Ok(())
}

/// The name of a container's VM: readable, and another one for each root and ID. A VM's name is shorter than an ID may be.
pub(crate) fn vm_name(root: &Path, id: &str) -> String {
    let digest = Sha256::digest(format!("{}\0{id}", root.display()));
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let readable: String = id.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(12).collect();
    format!("oci-{readable}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_name() {
        for bad in ["", ".", "..", ".a", "a/b", "a b", "a\n", &"x".repeat(201)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "user.1000.7.batch.0", "A_b+c-9"] {
            assert!(check_id(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_vms_name_is_valid_and_differs_by_root_and_id() {
        let names = [("/a", "id"), ("/b", "id"), ("/a", "id+"), ("/a", &"f".repeat(64)), ("/a", &"f".repeat(63))]
            .map(|(root, id)| vm_name(Path::new(root), id));
        for (at, name) in names.iter().enumerate() {
            assert!(msb::vm::name::check(name).is_ok(), "{name}");
            assert!(!names[..at].contains(name), "{name}");
        }
    }

    #[test]
    fn a_container_is_made_once_and_its_directory_is_removed_whole() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::of(root.path(), "a").unwrap();
        let locked = dir.clone().make().unwrap();
        fs::create_dir(dir.tree()).unwrap();
        assert!(dir.clone().make().unwrap_err().to_string().contains("already exists"));
        assert!(dir.load().unwrap_err().to_string().contains("does not exist"));
        drop(locked);
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.exists());
        // What is mounted on the tree is not emptied.
        let dir = dir.make().unwrap().dir;
        fs::create_dir(dir.tree()).unwrap();
        fs::write(dir.tree().join("file"), "").unwrap();
        assert!(dir.remove().is_err());
        assert!(dir.tree().join("file").exists());
    }
}
