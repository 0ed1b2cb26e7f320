//! `update`: other limits for the cgroup. The guest's memory and processors stay as they were booted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::args::{Global, Update};
use crate::plan::Limits;
use crate::state::{StateDir, Status};

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
    if container.member.is_some() {
        bail!(
            "container {:?}: it shares the VM of its pod, where its limits cannot be changed (create the container again)",
            args.id
        );
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
