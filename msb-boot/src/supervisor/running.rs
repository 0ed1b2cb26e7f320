//! The record of a VM that runs.

use std::path::PathBuf;

use anyhow::Context;
use msb::record::{Endpoint, Record, Timings, Vm};
use msb::vm::supervisor;
use msb::wire::exec::Ready;

use super::machine::Machine;
use crate::config::Config;
use crate::volume::Volume;

/// The record that the VM was asked for, with its member `vm`.
///
/// # Errors
/// The time at which this process was started cannot be read.
pub(super) fn record(
    config: &Config,
    machine: &Machine<'_>,
    endpoint: Endpoint,
    log: PathBuf,
    ready: &Ready,
    timings: Timings,
) -> anyhow::Result<Record> {
    let Config { name, vmm, root, root_why, record, .. } = config;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let mut running = Vm::new(name.clone(), pid, vmm.in_record(), root.kind(), endpoint, log);
    running.start_time = Some(supervisor::start_time(pid).context("when the supervisor was started")?);
    running.root_why = Some(root_why.clone());
    running.scratch = root.scratch();
    running.cpus = machine.vm.cpus;
    running.memory_mib = machine.vm.memory_mib;
    let saved = || config.saved.as_ref()?.machine().init.clone();
    running.init = ready.init.clone().or_else(saved);
    (running.net, running.cards) = config.networks.in_record(&machine.vm);
    running.volumes = config.volumes.iter().map(Volume::in_record).collect();
    running.timings_ms = timings;
    running.restarts = machine.restarts;
    let mut record = record.clone();
    record.vm = Some(running);
    Ok(record)
}
