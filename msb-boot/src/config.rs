//! What is to be booted, checked: whatever can be wrong before a process starts is said here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use msb::boot::{self, Boot, MountStep};
use msb::record::{Mount, Record, Rootfs};
use msb::{exit, rundir, state};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::args::{Args, RootChoice};
use crate::disk::Disk;
use crate::qemu::Parts;
use crate::vmm::{self, Kind, Root, Vm};
use crate::{TOOL, bootshare, defaults, kernel, programs};

/// `sun_path` of `sockaddr_un`, with its NUL.
const SOCKET_PATH_MAX: usize = 108;

/// All that the supervisor needs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The VM's name.
    pub name: String,
    /// The VM.
    pub vm: Vm,
    /// How the root reaches the guest, as the record has it.
    pub root: String,
    /// For the agent.
    pub boot: Boot,
    /// The agent's file.
    pub agent: PathBuf,
    /// Where the guest's console goes; none for the run directory.
    pub kernel_log: Option<PathBuf>,
    /// The scripts' files by name.
    pub scripts: BTreeMap<String, PathBuf>,
    /// How long the guest may take until its agent answers.
    pub timeout: Duration,
    /// The record that the VM is added to.
    pub record: Record,
    /// When the record was there, on the monotonic clock.
    pub started: Duration,
}

/// The time on the monotonic clock, which all processes of the machine share.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Config {
    /// Checks the flags and the record, and finds all that the VM needs.
    ///
    /// # Errors
    /// Words for the first thing that is wrong.
    pub(crate) fn check(args: &Args, record: Record) -> anyhow::Result<Self> {
        let started = now();
        if let Some(vm) = &record.vm {
            bail!("the record has a VM already, {:?} (stop it with msb-stop, which passes the record on)", vm.name);
        }
        let root = root(&record, args)?;
        let name = match &args.name {
            Some(name) => name.clone(),
            None => format!("vm-{}", state::fresh_id()?),
        };
        let scripts = scripts(&record, args)?;
        for words in more_than_there_is(args)? {
            exit::warn(TOOL, &words);
        }
        let agent = programs::agent()?;
        let library = kernel::library()?;
        let (kind, words) = vmm::choose(args.vmm)?;
        if let Some(words) = words {
            exit::warn(TOOL, &words);
        }
        vmm::privileges()?;
        let qemu = match kind {
            Kind::Qemu => Some(Parts::find(&library)?),
            Kind::Krun => {
                kernel::check(&library)?;
                None
            }
        };
        let vm = Vm {
            vmm: kind,
            dir: run_dir(&name)?,
            cpus: args.cpus,
            memory_mib: args.memory,
            kernel: library,
            root,
            qemu,
            overlay: None,
            links: Vec::new(),
        };
        let image = record.image.as_ref().map(|image| image.config.clone()).unwrap_or_default();
        let boot = Boot {
            version: boot::VERSION,
            hostname: name.clone(),
            mounts: vec![mount_step(&vm.root)],
            defaults: defaults::defaults(&image, args)?,
            init: defaults::init(&image, args),
        };
        let root = match vm.root {
            Root::Share(_) => "share",
            Root::Disk(_) => "disk",
        };
        let timeout = Duration::from_secs(args.timeout.into());
        let record = Record { scripts: scripts.clone(), ..record };
        let kernel_log = args.kernel_log.as_ref().map(std::path::absolute).transpose()?;
        Ok(Self { name, vm, root: root.into(), boot, agent, kernel_log, scripts, timeout, record, started })
    }
}

/// Words for what the VM is to have and this machine has not: it runs all the same, and badly.
fn more_than_there_is(args: &Args) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let cpus = std::thread::available_parallelism()?.get();
    if usize::from(args.cpus) > cpus {
        words.push(format!("{} processors are more than the {cpus} of this machine, and take turns", args.cpus));
    }
    let memory = nix::sys::sysinfo::sysinfo()?.ram_total() >> 20;
    if u64::from(args.memory) > memory {
        words.push(format!("{} MiB of memory are more than the {memory} MiB of this machine", args.memory));
    }
    Ok(words)
}

fn root(record: &Record, args: &Args) -> anyhow::Result<Root> {
    if args.overlay.is_some() && !matches!(record.rootfs, Some(Rootfs::Disk { .. })) {
        bail!("--overlay is for a disk root, and this record has another (leave it out)");
    }
    if let Some(mount) = &record.mount {
        check_mount(mount)?;
        return Ok(Root::Share(mount.path.clone()));
    }
    match record.rootfs()? {
        Rootfs::Layers { .. } => bail!("the record has layers and no mount (put msb-mount before msb-boot)"),
        Rootfs::Dir { lower, .. } => bail!(
            "directory root {:?} is not mounted, and the guest may not write into it itself (put msb-mount before msb-boot)",
            lower[0]
        ),
        Rootfs::Disk { path, .. } if args.root == RootChoice::Share => {
            bail!("disk {path:?} cannot be shared (leave --root out)")
        }
        Rootfs::Disk { path, format, .. } => Ok(Root::Disk(Disk::check(path, *format, args.overlay.as_deref())?)),
    }
}

fn check_mount(mount: &Mount) -> anyhow::Result<()> {
    // The kernel may remember what a dead server said of its root, but asks it how full its file system is.
    let asked = std::fs::metadata(&mount.path).and_then(|meta| Ok((meta, rustix::fs::statvfs(&mount.path)?)));
    match asked {
        Ok((meta, _)) if meta.is_dir() => Ok(()),
        Ok(_) => Err(anyhow!("mount {:?}: not a directory", mount.path)),
        Err(error) => Err(anyhow!("mount {:?}: {error} (run msb-mount again)", mount.path)),
    }
}

fn mount_step(root: &Root) -> MountStep {
    let (source, fstype) = match root {
        Root::Share(_) => ("rootfs", "virtiofs"),
        Root::Disk(_) => ("/dev/vda", "ext4"),
    };
    MountStep { source: source.into(), target: boot::NEW_ROOT.into(), fstype: fstype.into(), options: Vec::new() }
}

/// The record's scripts, and the caller's over them.
fn scripts(record: &Record, args: &Args) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut scripts = record.scripts.clone();
    for (name, file) in &args.scripts {
        let file = std::path::absolute(file).with_context(|| format!("script {name:?}"))?;
        scripts.insert(name.clone(), file);
    }
    for (name, file) in &scripts {
        msb::script::check_name(name).map_err(|why| anyhow!("script {name:?}: {why}"))?;
        if let Some(words) = bootshare::check_script(name, file)? {
            exit::warn(TOOL, &words);
        }
    }
    Ok(scripts)
}

fn run_dir(name: &str) -> anyhow::Result<PathBuf> {
    let dir = state::run_dir(name).context("run directory (set XDG_RUNTIME_DIR)")?;
    check_socket_path(&dir)?;
    Ok(dir)
}

fn check_socket_path(dir: &Path) -> anyhow::Result<()> {
    let length = vmm::ready_socket(&dir.join(rundir::DOOR)).as_os_str().len() + 1;
    if length > SOCKET_PATH_MAX {
        bail!(
            "run directory {dir:?}: {} bytes too long for the sockets in it (choose a shorter --name, or a shorter \
             XDG_RUNTIME_DIR)",
            length - SOCKET_PATH_MAX
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_run_directory_is_refused_when_a_socket_in_it_would_be_too_long() {
        assert!(check_socket_path(&Path::new("/").join("x".repeat(85))).is_ok());
        let words = check_socket_path(&Path::new("/").join("x".repeat(86))).unwrap_err().to_string();
        assert!(words.contains("1 bytes too long"), "{words}");
    }

    #[test]
    fn a_root_that_is_not_mounted_names_the_stage_that_is_missing() {
        let dir = std::env::temp_dir();
        for (rootfs, words) in [
            (Some(Rootfs::Layers { lower: vec![dir.clone()], unknown: Default::default() }), "put msb-mount before"),
            (Some(Rootfs::Dir { lower: vec![dir.clone()], unknown: Default::default() }), "put msb-mount before"),
            (None, "start with msb-pull"),
        ] {
            let record = Record { rootfs, ..Record::new() };
            let args = Args::try_parse_from(["msb-boot"]).unwrap();
            let error = root(&record, &args).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
