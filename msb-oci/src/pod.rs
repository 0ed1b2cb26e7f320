//! A pod whose containers run in one VM, that of the sandbox. They share its network, and so localhost.
//!
//! The VM's share is the tree of the sandbox. When a container is created, its tree is mounted below it, in the mount namespace of the VM's
//! supervisor. By mount propagation it appears in the jail that serves the share.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::record::Record;
use msb::vm::supervisor;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

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

/// Finds the pod's VM of a container: that of the sandbox that the config names, or of the sandbox with the same network namespace.
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
    /// Where a container is mounted in the VM. No other container gets that name.
    pub(crate) fn member(&self, stand_in: &Identity) -> Member {
        Member { sandbox: self.sandbox.id.clone(), tree_name: format!("{}-{}", stand_in.pid, stand_in.start_time) }
    }

    /// Mounts the tree of a container in that of the sandbox.
    ///
    /// # Errors
    /// Those of mounting. The VM has ended.
    pub(crate) fn attach(&self, member: &Member, tree: &OwnedFd) -> anyhow::Result<()> {
        let place = self.dir.tree().join(&member.tree_name);
        in_namespace_of_vm(&self.dir, || {
            fs::create_dir(&place)?;
            Ok(move_mount(tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
        })
        .context("mount in the VM of the pod")
    }
}

/// Unmounts the tree of a container from that of its sandbox. Does nothing if the VM has ended.
pub(crate) fn detach(root: &Path, member: &Member) {
    let Ok(dir) = StateDir::of(root, &member.sandbox) else { return };
    let place = dir.tree().join(&member.tree_name);
    let _ = in_namespace_of_vm(&dir, || {
        let _ = unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        Ok(fs::remove_dir(&place)?)
    });
}

fn in_namespace_of_vm<T: Send>(dir: &StateDir, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let record = Record::parse(&fs::read(dir.record())?).context("record of the VM")?;
    let supervisor = record.vm.as_ref().map(supervisor::find).transpose()?.flatten();
    let supervisor = supervisor.context("the VM has ended (create the pod again)")?;
    namespaces::in_mounts(&supervisor, work)
}
