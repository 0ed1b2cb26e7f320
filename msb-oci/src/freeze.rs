//! `pause` and `resume`: the container's cgroup is frozen with its VM.

use anyhow::bail;

use crate::args::Global;
use crate::cgroup::Freezer;
use crate::state::{StateDir, Status};

/// Freezes a container.
///
/// # Errors
/// It does not run.
pub(crate) fn pause(global: &Global, id: &str) -> anyhow::Result<()> {
    set(global, id, true)
}

/// Thaws a container.
///
/// # Errors
/// It is not paused.
pub(crate) fn resume(global: &Global, id: &str) -> anyhow::Result<()> {
    set(global, id, false)
}

fn set(global: &Global, id: &str, is_frozen: bool) -> anyhow::Result<()> {
    let locked = StateDir::of(&global.root()?, id)?.lock()?;
    let container = locked.dir.load()?;
    let (status, verb) = (locked.dir.status(&container), if is_frozen { "paused" } else { "resumed" });
    if container.member.is_some() {
        bail!("container {id:?}: it shares the VM of its pod, and cannot be {verb} alone (use the pod's sandbox)");
    }
    let expected = if is_frozen { Status::Running } else { Status::Paused };
    if status != expected && !(is_frozen && status == Status::Created) {
        bail!("container {id:?}: it cannot be {verb}, because it is {}", status.as_str());
    }
    Freezer::of(&container.cgroup).set(is_frozen)
}
