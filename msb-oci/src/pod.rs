//! A pod whose containers are in one VM, which is that of its sandbox: they share the network, and with it localhost.
//!
//! The VM's share is the tree of the sandbox. The tree of a container is mounted below that when the container is created. The mount
//! namespace in which that is done is the one of the VM's supervisor, and it reaches the jail that serves the share by propagation.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use serde_json::Value;

use crate::namespaces;
use crate::plan::{Namespace, Plan};
use crate::process::{self, Identity};
use crate::state::{self, Container, Member, StateDir};

/// A sandbox with a VM.
#[derive(Debug)]
pub(crate) struct Pod {
    dir: StateDir,
    sandbox: Container,
}

/// Finds the VM that a container belongs in: that of the sandbox which the config names, or of the one whose network namespace it has.
///
/// # Errors
/// The VM has ended.
pub(crate) fn find(root: &Path, plan: &Plan) -> anyhow::Result<Option<Pod>> {
    if plan.is_sandbox {
        return Ok(None);
    }
    let named = plan.sandbox().and_then(|id| {
        let dir = StateDir::of(root, id).ok()?;
        let sandbox = dir.load().ok()?;
        Some((dir, sandbox))
    });
    let found = match (named, &plan.namespaces.network) {
        (Some(named), _) => Some(named).filter(|(_, sandbox)| sandbox.is_pod_vm),
        (None, Namespace::Path(path)) => by_network(root, path),
        (None, Namespace::New) => None,
    };
    let Some((dir, sandbox)) = found else { return Ok(None) };
    if !sandbox.stand_in.as_ref().is_some_and(process::is_alive) {
        bail!("the VM of the pod has ended (create the pod again)");
    }
    Ok(Some(Pod { dir, sandbox }))
}

fn by_network(root: &Path, path: &Path) -> Option<(StateDir, Container)> {
    let of = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let wanted = of(path)?;
    let has_it = |sandbox: &Container| {
        let pid = sandbox.stand_in.as_ref().filter(|stand_in| process::is_alive(stand_in)).map(|stand_in| stand_in.pid);
        pid.and_then(|pid| of(&PathBuf::from(format!("/proc/{pid}/ns/net")))) == Some(wanted)
    };
    let all = state::all(root).ok()?;
    all.into_iter().find(|(_, sandbox)| sandbox.is_pod_vm && has_it(sandbox))
}

impl Pod {
    /// The place of the container that this process stands for.
    pub(crate) fn member(&self, stand_in: &Identity) -> Member {
        Member { sandbox: self.sandbox.id.clone(), place: format!("{}-{}", stand_in.pid, stand_in.start_time) }
    }

    /// Mounts the tree of a container in that of the sandbox.
    ///
    /// # Errors
    /// Those of mounting. The VM has ended.
    pub(crate) fn attach(&self, member: &Member, tree: &OwnedFd) -> anyhow::Result<()> {
        let place = self.dir.tree().join(&member.place);
        in_namespace_of_vm(&self.dir, || {
            fs::create_dir(&place)?;
            Ok(move_mount(tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
        })
        .context("mount in the VM of the pod")
    }
}

/// Unmounts the tree of a container from that of its sandbox. The VM may be gone with it.
pub(crate) fn detach(root: &Path, member: &Member) {
    let Ok(dir) = StateDir::of(root, &member.sandbox) else { return };
    let place = dir.tree().join(&member.place);
    let _ = in_namespace_of_vm(&dir, || {
        let _ = unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        Ok(fs::remove_dir(&place)?)
    });
}

fn in_namespace_of_vm<T: Send>(dir: &StateDir, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let record: Value = serde_json::from_slice(&fs::read(dir.record())?).context("record of the VM")?;
    let supervisor: Identity = serde_json::from_value(record["vm"].clone()).context("record of the VM")?;
    let supervisor = process::open(&supervisor).context("the VM has ended")?;
    namespaces::in_mounts(&supervisor, work)
}
