//! `delete`: nothing of a container stays, however its create, its VM or an earlier delete has ended.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::args::{Delete, Global};
use crate::cgroup::Freezer;
use crate::plan::Namespace;
use crate::state::{self, Container, StateDir, Status};
use crate::{hooks, kill, log, namespaces, net, pod, process, tool};

/// How long a killed process may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// Deletes a container.
///
/// # Errors
/// It runs, or does not exist, and --force is not given.
pub(crate) fn delete(global: &Global, args: &Delete) -> anyhow::Result<()> {
    let root = global.root()?;
    let dir = StateDir::of(&root, &args.id)?;
    if !dir.exists() && args.force {
        return Ok(());
    }
    let locked = match dir.clone().lock() {
        // Another delete was faster.
        Err(_) if args.force && !dir.exists() => return Ok(()),
        other => other?,
    };
    let dir = &locked.dir;
    let container = match dir.load() {
        Ok(container) => container,
        Err(error) if dir.has_state() && !args.force => {
            return Err(error.context(format!("container {:?}: its state cannot be read (use --force)", args.id)));
        }
        // A create was killed before it had written anything, or another release has written it.
        Err(_) => {
            stop_vm(dir, &state::vm_name(&root, &args.id))?;
            return dir.remove().context("state");
        }
    };
    let status = dir.status(&container);
    if !args.force && !matches!(status, Status::Stopped | Status::Creating) {
        bail!(
            "container {:?}: it cannot be deleted, because it is {} (end it, or use --force)",
            args.id,
            status.as_str()
        );
    }
    remove(dir, &container)?;
    // Nobody is helped by a container that cannot be deleted.
    let document = dir.document(&container, Status::Stopped);
    if let Err(error) = hooks::run("poststop", &container.poststop, &document) {
        log::write(global, "warning", &format!("{error:#}"));
    }
    Ok(())
}

/// Ends what runs of a container, and removes what there is of it.
///
/// # Errors
/// The first thing that could not be removed, after the others were tried.
pub(crate) fn remove(dir: &StateDir, container: &Container) -> anyhow::Result<()> {
    let mut results = Vec::new();
    let freezer = Freezer::of(&container.cgroup);
    if freezer.is_frozen() {
        results.push(freezer.set(false));
    }
    if let Some(member) = &container.member {
        kill::end_in_pod(dir, container);
        pod::detach(dir.root(), member);
    }
    if let Some(stand_in) = &container.stand_in {
        results.push(process::kill(stand_in, ENDING).context("process of the container"));
    }
    if container.has_own_vm() {
        results.push(stop_vm(dir, &container.vm));
    }
    if !container.plugged.is_empty() {
        unplug(container);
    }
    let cgroup = container.cgroup.remove().context("cgroup");
    if cgroup.is_ok() {
        results.push(dir.remove().context("state"));
    }
    // With the state another delete can try again.
    results.push(cgroup);
    results.into_iter().collect()
}

/// Ends the VM. Its processes must be gone before its cgroup is removed, and its name must be free for the next container of this ID.
fn stop_vm(dir: &StateDir, vm: &str) -> anyhow::Result<()> {
    let mut stop = tool::command("msb-stop")?;
    stop.args(["-q", "-t", "0"]);
    // A VM of which there is no record was being booted: its supervisor ends with the msb-boot that was killed.
    match dir.record().exists() {
        true => stop.arg("-r").arg(dir.record()),
        false => stop.arg(vm),
    };
    // A guest that is killed makes it fail. What counts is whether anything is left, which the cgroup tells.
    let _ = stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    Ok(())
}

/// Gives the interfaces back. The namespace may be gone with them.
fn unplug(container: &Container) {
    if let Namespace::Path(path) = &container.network {
        let _ = namespaces::in_network(path, || {
            net::unplug(&container.plugged);
            Ok(())
        });
    }
}
