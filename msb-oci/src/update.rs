//! `update`: other limits for the cgroup, which is that in the guest for a container in the VM of its pod. The guest's memory and
//! processors stay as they were booted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use msb::store::publish;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::args::{Global, Update};
use crate::plan::Limits;
use crate::state::{Container, Member, StateDir, Status};
use crate::tool;

/// The longest document, in bytes.
const MAX_DOCUMENT: u64 = 1 << 20;

/// Changes the limits.
///
/// # Errors
/// More memory than the guest was booted with.
pub(crate) fn update(global: &Global, args: &Update) -> anyhow::Result<()> {
    let locked = StateDir::of(&global.root()?, &args.id)?.lock()?;
    let container = locked.dir.load()?;
    if locked.dir.status(&container) == Status::Stopped {
        bail!("container not running");
    }
    if let Some(member) = &container.member {
        return in_pod(&locked.dir, &container, member, resources(args)?);
    }
    if !container.cgroup.exists() {
        bail!(
            "container {:?}: it has no cgroup, and so no limits (run the engine as root, or with a delegated cgroup)",
            args.id
        );
    }
    let resources = resources(args)?;
    let limits = Limits::of(&resources, container.overhead_mib);
    if let (Some(asked), Some(booted)) = (limits.memory, container.memory)
        && asked > booted
    {
        bail!(
            "memory limit of {} MiB: the VM was booted with {} MiB, and cannot get more (create the container again)",
            (asked >> 20).saturating_sub(container.overhead_mib),
            (booted >> 20).saturating_sub(container.overhead_mib),
        );
    }
    if limits.memory.is_some() && container.memory.is_none() {
        // Only the cgroup is limited: the guest would be killed for what it may use.
        bail!(
            "memory limit: the VM was booted without one, and has the memory of its boot (create the container again)"
        );
    }
    // The state keeps the limit of the boot: a limit that was lowered can be raised to it again.
    container.cgroup.limit(&limits)
}

/// Changes the limits that a container has in the guest.
fn in_pod(dir: &StateDir, container: &Container, member: &Member, asked: LinuxResources) -> anyhow::Result<()> {
    let sandbox_dir = StateDir::of(dir.root(), &member.sandbox)?;
    let sandbox = sandbox_dir.load()?;
    if sandbox_dir.status(&sandbox) == Status::Paused {
        bail!("container {:?}: its pod is paused (resume the sandbox first)", container.id);
    }
    let limit = asked.memory().as_ref().and_then(|memory| memory.limit()).filter(|limit| *limit > 0);
    if let (Some(asked), Some(booted)) = (limit, sandbox.memory)
        && let booted = booted.saturating_sub(sandbox.overhead_mib << 20)
        && asked.unsigned_abs() > booted
    {
        bail!(
            "memory limit of {} MiB: the VM of the pod was booted with {} MiB, and cannot get more (create the pod again)",
            asked >> 20,
            booted >> 20,
        );
    }
    let limits = in_guest(&asked);
    if limits == LinuxResources::default() {
        return Ok(());
    }
    let id = container.exec_id.context("its command has not been prepared")?;
    let file = dir.limits();
    publish::write_volatile_file(&file, &serde_json::to_vec(&limits)?, 0o600).with_context(|| format!("{file:?}"))?;
    let mut exec = tool::command("msb-exec")?;
    exec.args(["-q", "-r"]).arg(dir.record_for(container)).arg("--limits").arg(&file).arg(id.to_string());
    tool::output(&mut exec).map(drop)
}

/// What of the resources has a meaning in a guest, without what says nothing. The limit of a container without a limit of PIDs is 0 in
/// `oci_spec`, which leaves the present one.
fn in_guest(asked: &LinuxResources) -> LinuxResources {
    let mut limits = LinuxResources::default();
    limits.set_memory(asked.memory().filter(|memory| memory.limit().is_some_and(|limit| limit != 0)));
    limits.set_pids(asked.pids().filter(|pids| pids.limit() != 0));
    let is_given = |cpu: &LinuxCpu| {
        let (shares, quota, period) = (cpu.shares(), cpu.quota(), cpu.period());
        shares.is_some_and(|n| n > 0) || quota.is_some_and(|n| n != 0) || period.is_some_and(|n| n > 0)
    };
    limits.set_cpu(asked.cpu().clone().filter(is_given));
    limits
}

fn resources(args: &Update) -> anyhow::Result<LinuxResources> {
    let mut resources = match &args.resources {
        Some(path) if path == Path::new("-") => read(std::io::stdin()).context("stdin")?,
        Some(path) => File::open(path).map_err(Into::into).and_then(read).with_context(|| format!("{path:?}"))?,
        None => LinuxResources::default(),
    };
    if args.memory.is_some() {
        let mut memory: LinuxMemory = resources.memory().unwrap_or_default();
        memory.set_limit(args.memory);
        resources.set_memory(Some(memory));
    }
    if args.cpu_share.is_some() || args.cpu_quota.is_some() || args.cpu_period.is_some() {
        let mut cpu: LinuxCpu = resources.cpu().clone().unwrap_or_default();
        cpu.set_shares(args.cpu_share.or(cpu.shares()));
        cpu.set_quota(args.cpu_quota.or(cpu.quota()));
        cpu.set_period(args.cpu_period.or(cpu.period()));
        resources.set_cpu(Some(cpu));
    }
    Ok(resources)
}

fn read(input: impl Read) -> anyhow::Result<LinuxResources> {
    let mut text = Vec::new();
    input.take(MAX_DOCUMENT).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_what_is_limited_there_and_nothing_if_that_says_nothing() {
        for (asked, given) in [
            (r#"{"memory":{"limit":1048576,"swap":7}}"#, Some("memory")),
            (r#"{"memory":{"limit":-1}}"#, Some("memory")),
            (r#"{"pids":{"limit":7}}"#, Some("pids")),
            (r#"{"pids":{"limit":-1}}"#, Some("pids")),
            (r#"{"cpu":{"shares":2}}"#, Some("cpu")),
            (r#"{"cpu":{"quota":-1}}"#, Some("cpu")),
            (r#"{"cpu":{"period":5000,"cpus":"0"}}"#, Some("cpu")),
            (r#"{"cpu":{"cpus":"0","shares":0,"quota":0,"period":0}}"#, None),
            (r#"{"memory":{"limit":0},"pids":{"limit":0}}"#, None),
            (r#"{"memory":{"swap":7},"blockIO":{"weight":10}}"#, None),
        ] {
            let limits = in_guest(&serde_json::from_str(asked).unwrap());
            let value = serde_json::to_value(&limits).unwrap();
            let names: Vec<&str> =
                ["memory", "pids", "cpu", "blockIO"].into_iter().filter(|name| value.get(name).is_some()).collect();
            assert_eq!(names, given.into_iter().collect::<Vec<_>>(), "{asked}");
            assert_eq!(limits == LinuxResources::default(), given.is_none(), "{asked}");
        }
    }
}
