//! Which VMs there are, and the state of each: from the run directories, and for those that are stopped from the store.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use msb::record::{self, PublishedPort, Record, Rootfs};
use msb::store::layout::{self, HOLD};
use msb::store::sandbox::{self, Owner};
use msb::store::{home, snapshot};
use msb::vm::rundir::{self, Ended, Restarting};
use msb::vm::{name, supervisor};
use serde::Serialize;

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its agent has not reported yet.
    Starting,
    /// It runs.
    Running,
    /// Its supervisor starts it again.
    Restarting,
    /// msb-stop has asked it to stop.
    Stopping,
    /// It has ended, and nobody has stopped it with msb-stop yet.
    Dead,
    /// It was stopped, and its disk is kept.
    Stopped,
}

impl State {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Dead => "dead",
            Self::Stopped => "stopped",
        }
    }

    /// Whether processes of the VM are there.
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Dead | Self::Stopped)
    }
}

impl Serialize for State {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A VM, as msb-ls prints it. Members are null where they are not known.
#[derive(Clone, Debug, Serialize)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// How a dead VM ended, or why a VM starts again.
    pub reason: Option<String>,
    /// The reference of its image, or the directory or the disk of its root.
    pub image: Option<String>,
    /// `krun` or `qemu`.
    pub vmm: Option<String>,
    /// `share`, `block` or `disk`.
    pub root: Option<String>,
    /// The init that runs as PID 1.
    pub init: Option<String>,
    /// Virtual processors.
    pub cpus: Option<u8>,
    /// Memory, in MiB.
    pub memory_mib: Option<u32>,
    /// Seconds since it was started; for a stopped VM since its disk was last written.
    pub age_s: Option<u64>,
    /// The ports of the host that lead to the guest.
    pub ports: Vec<PublishedPort>,
    /// The process ID of its supervisor.
    pub pid: Option<i32>,
    /// Its run directory; for a stopped VM the directory of its disk.
    pub dir: PathBuf,
    /// Its record.
    #[serde(skip)]
    pub record: Option<Record>,
}

/// This user's VMs, sorted by name; with `all` also those that are stopped.
///
/// # Errors
/// That no variable names the directories, or one that cannot be read.
pub fn vms(all: bool) -> anyhow::Result<Vec<Vm>> {
    let base = name::run_base().context("run directory (set MSB_RUN)")?;
    let mut vms: Vec<Vm> = names(&base)?.into_iter().filter_map(|name| of_run_dir(&base.join(name))).collect();
    if all {
        let sandboxes = layout::sandboxes(&home::home()?);
        let is_listed = |name: &String| vms.iter().any(|vm| vm.name == *name);
        let kept: Vec<String> = names(&sandboxes)?.into_iter().filter(|name| !is_listed(name)).collect();
        vms.extend(kept.into_iter().filter_map(|name| stopped(&sandboxes.join(name))));
    }
    vms.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(vms)
}

/// The VM with this name, if it has a run directory.
///
/// # Errors
/// That no variable names the directory of run directories.
pub fn named(name: &str) -> anyhow::Result<Option<Vm>> {
    Ok(of_run_dir(&name::run_dir(name).context("run directory (set MSB_RUN)")?))
}

/// The uppers of pipes that this VM was the last to use, or that its disk needs, except those that a snapshot or another VM needs.
///
/// # Errors
/// A directory that cannot be read.
pub fn uppers_of(home: &Path, name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let needs = sandbox::needs_of(&layout::sandbox(home, name));
    let is_own = |dir: &PathBuf| needs.contains(dir) || Owner::read(dir).vm.as_deref() == Some(name);
    let sandboxes = names(&layout::sandboxes(home))?.into_iter().map(|id| layout::sandbox(home, &id));
    let own: Vec<PathBuf> = sandboxes.filter(|dir| dir.join(HOLD).exists() && is_own(dir)).collect();
    if own.is_empty() {
        return Ok(own);
    }
    let others = vms(false)?.into_iter().filter(|vm| vm.name != name).filter_map(|vm| vm.record);
    let saved = snapshot::records(home).with_context(|| format!("{:?}", layout::snapshots(home)))?;
    let needed: Vec<Record> = others.chain(saved.into_iter().map(|(_, record)| record)).collect();
    let disks = sandbox::all_needs(home).with_context(|| format!("{:?}", layout::sandboxes(home)))?;
    let stopped = disks.into_iter().filter(|(other, _)| other != name);
    let below_disks: Vec<PathBuf> = stopped.flat_map(|(_, needs)| needs).collect();
    let is_needed = |dir: &PathBuf| below_disks.contains(dir) || needed.iter().any(|record| record.has_sandbox(dir));
    Ok(own.into_iter().filter(|dir| !is_needed(dir)).collect())
}

/// The names in a directory that are names of VMs.
fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let names = entries(dir)?.into_iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
    Ok(names.filter(|text| name::check(text).is_ok()).collect())
}

/// The entries of a directory; none if it does not exist.
fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("{dir:?}"))?,
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

/// The VM of a run directory; `None` if the directory is gone, or was left by a VM that never ran.
fn of_run_dir(dir: &Path) -> Option<Vm> {
    let mut vm = Vm::new(dir, State::Starting)?;
    vm.age_s = age(&dir.join(rundir::ALIVE));
    // A record is made by a rename, so what is there is whole.
    vm.record = fs::read(dir.join(record::FILE_NAME)).ok().and_then(|text| Record::parse(text.trim_ascii_end()).ok());
    let Some(record) = &vm.record else {
        // Without a supervisor it was left by a boot that was killed, or is not locked yet.
        vm.pid = supervisor::holder(dir);
        return vm.pid.is_some().then_some(vm);
    };
    let recorded = record.vm.clone()?;
    vm.image = image(record);
    vm.vmm = text(&recorded.vmm);
    vm.root = text(&recorded.root);
    vm.init = recorded.init.clone();
    (vm.cpus, vm.memory_mib) = (Some(recorded.cpus), Some(recorded.memory_mib));
    vm.ports = recorded.net.as_ref().map(|net| net.ports.clone()).unwrap_or_default();
    let is_alive = matches!(supervisor::find(&recorded), Ok(Some(_)));
    vm.pid = is_alive.then_some(recorded.pid);
    let restarting = rundir::read::<Restarting>(dir, rundir::RESTARTING);
    (vm.state, vm.reason) = match (is_alive, restarting) {
        (true, _) if dir.join(rundir::STOP).exists() => (State::Stopping, None),
        (true, Some(restarting)) => (State::Restarting, Some(restarting.reason)),
        (true, None) => (State::Running, None),
        (false, _) => {
            let ended = rundir::read::<Ended>(dir, rundir::ENDED);
            // It may have been stopped, and its directory removed, since the record was read.
            let reason = match ended {
                Some(ended) => ended.reason,
                None if dir.exists() => "its supervisor was killed".into(),
                None => return None,
            };
            (State::Dead, Some(reason))
        }
    };
    Some(vm)
}

/// The VM of a name that has a disk in the store.
fn stopped(sandbox: &Path) -> Option<Vm> {
    let disk = sandbox.join(layout::SCRATCH_DISK);
    let mut vm = Vm::new(sandbox, State::Stopped).filter(|_| disk.exists())?;
    vm.age_s = age(&disk);
    Some(vm)
}

impl Vm {
    fn new(dir: &Path, state: State) -> Option<Self> {
        Some(Self {
            name: dir.file_name()?.to_str()?.to_owned(),
            state,
            reason: None,
            image: None,
            vmm: None,
            root: None,
            init: None,
            cpus: None,
            memory_mib: None,
            age_s: None,
            ports: Vec::new(),
            pid: None,
            dir: dir.to_owned(),
            record: None,
        })
    }
}

fn image(record: &Record) -> Option<String> {
    match (&record.image, &record.rootfs) {
        (Some(image), _) => Some(image.reference.clone()),
        (None, Some(Rootfs::Dir { lower, .. } | Rootfs::Layers { lower, .. })) => {
            lower.first().map(|dir| dir.display().to_string())
        }
        (None, Some(Rootfs::Disk { path, .. })) => Some(path.display().to_string()),
        (None, None) => record.mount.as_ref().map(|mount| mount.path.display().to_string()),
    }
}

/// The name of a variant, as in the record.
fn text(variant: &impl Serialize) -> Option<String> {
    Some(serde_json::to_value(variant).ok()?.as_str()?.to_owned())
}

/// The seconds since a file was last written.
fn age(file: &Path) -> Option<u64> {
    let written = fs::metadata(file).and_then(|meta| meta.modified()).ok()?;
    Some(SystemTime::now().duration_since(written).unwrap_or_default().as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_without_a_supervisor_holds_a_dead_vm() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("worker");
        fs::create_dir(&dir).unwrap();
        assert!(of_run_dir(&dir).is_none(), "an abandoned directory");
        let socket = dir.join(rundir::AGENT_SOCKET);
        let record = serde_json::json!({
            "msb": 1, "image": {"ref": "docker.io/library/alpine:latest"},
            "vm": {"name": "worker", "pid": 1 << 30, "vmm": "qemu", "root": "block", "cpus": 2, "memory_mib": 512,
                "endpoint": {"unix": socket, "port": 1}, "kernel_log": dir.join("kernel.log"),
                "timings_ms": {"spawn": 0, "kernel": 0, "agent": 0, "ready": 0}},
        });
        fs::write(dir.join(record::FILE_NAME), record.to_string()).unwrap();
        let vm = of_run_dir(&dir).unwrap();
        assert_eq!((vm.state, vm.reason.as_deref()), (State::Dead, Some("its supervisor was killed")));
        assert_eq!((vm.vmm.as_deref(), vm.image.as_deref()), (Some("qemu"), Some("docker.io/library/alpine:latest")));
        rundir::write(&dir, rundir::ENDED, &Ended::failure("QEMU ended with 1")).unwrap();
        assert_eq!(of_run_dir(&dir).unwrap().reason.as_deref(), Some("QEMU ended with 1"));
    }
}
