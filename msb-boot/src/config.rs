//! The configuration of a boot. [`Config::check`] checks everything that can be checked before a process starts, and creates
//! nothing; [`Config::make_files`] creates the files that the store lacks.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use msb::record::{self, Channel, Record, RestartPolicy, VmmChoice, path};
use msb::store::{home, layout};
use msb::vm::boot::{self, Boot};
use msb::vm::rundir::LockedRunDir;
use msb::vm::{name, rundir, supervisor};
use msb::{overlay::reach, tool::env, tool::exit};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::args::{Args, EndWith};
use crate::inherited_fd::InheritedFd;
use crate::network::{self, Networks};
use crate::notice::Notice;
use crate::root::Root;
use crate::saved::Saved;
use crate::unusable::Unusable;
use crate::vm::{self, Vm};
use crate::vmm::any::{self, AnyVmm};
use crate::volume::{self, Volume};
use crate::{agent, cgroup, defaults, initramfs, jail, kernel, network_args, request, resolv_conf, root_choice};

/// The size of `sun_path` in `sockaddr_un`, which includes the terminating NUL.
const SOCKET_PATH_MAX: usize = 108;

/// The configuration of a boot. The supervisor gets it as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The VM's name.
    pub name: String,
    /// The VM.
    pub vm: Vm,
    /// The VMM that runs it.
    pub vmm: AnyVmm,
    /// Its networks.
    pub networks: Networks,
    /// What is mounted in its root, in this order.
    pub volumes: Vec<Volume>,
    /// Its root.
    pub root: Root,
    /// The saved VM that it starts from.
    pub saved: Option<Saved>,
    /// Why the root has this form.
    pub root_why: String,
    /// The configuration of the agent.
    pub boot: Boot,
    /// The part of the initramfs with agentd, in the store.
    pub agent_part: PathBuf,
    /// The file for the guest's console; `None` for the one in the run directory.
    pub kernel_log: Option<PathBuf>,
    /// The scripts' files by name.
    pub scripts: BTreeMap<String, PathBuf>,
    /// Where its cgroup is made. It is empty if the VM has no limits.
    pub cgroup_parents: Vec<cgroup::Parent>,
    /// How long the agent may take to report.
    pub timeout: Duration,
    /// The record to which the VM is added.
    pub record: Record,
    /// Whether the scratch disk is committed into the record's upper when the VM has ended, for whatever reason.
    pub commit_on_stop: bool,
    /// When the VM is started again.
    pub restart: RestartPolicy,
    /// The descriptor whose event ends the VM.
    pub end_with: Option<InheritedFd>,
    /// The directory for the logs of failed boots.
    pub logs: PathBuf,
    /// The directory with the store's EROFS images.
    pub images: PathBuf,
    /// When the record was read, on the monotonic clock.
    pub started: Duration,
    /// The process whose end ends the VM.
    #[serde(skip)]
    _process: Option<OwnedFd>,
    /// agentd's file, from which that part is made.
    pub agent: PathBuf,
    /// libkrunfw, likewise.
    #[serde(skip)]
    library: PathBuf,
    /// Messages for the user about this configuration.
    #[serde(skip)]
    pub notices: Vec<Notice>,
    /// Why the VMM of first choice is not used. It is worth a message when it changes.
    #[serde(skip)]
    pub vmm_fallback: Option<String>,
    /// Why the guest has no network although that is the default, likewise.
    #[serde(skip)]
    pub network_fallback: Option<String>,
}

/// The time on the monotonic clock, which is the same for all processes.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Config {
    /// Checks the flags and the record, and finds all that the VM needs. Creates nothing.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn check(args: &Args, record: Record) -> anyhow::Result<Self> {
        let started = now();
        let mut notices = Vec::new();
        let mut request = requested(record.boot.as_ref(), args)?;
        let saved = record.snapshot.as_ref();
        let saved = saved.map(|snapshot| Saved::read(snapshot, args.new_machine_id)).transpose()?;
        ensure!(
            !(request.bare && args.new_machine_id),
            "--new-machine-id: --bare leaves the root unchanged (leave one of them out)"
        );
        ensure!(
            saved.is_some() || !args.new_machine_id,
            "--new-machine-id is for a VM that starts from a snapshot (leave it out)"
        );
        if let Some(saved) = &saved {
            saved.check_request(&mut request, &record, args.fresh)?;
        }
        let previous = record.vm.as_ref().map(require_ended).transpose()?;
        root_choice::check_flags(&record, &request)?;
        let architecture = defaults::architecture(record.image.as_ref().and_then(|image| image.platform.as_deref()))?;
        if let Some(upper) = record.upper.as_ref().filter(|_| request.commit_on_stop) {
            reach::require_private(&upper.dir).context("--commit-on-stop")?;
        }
        let choice = root_choice::choose(&record, request.root)?;
        let name = match (&request.name, previous) {
            (Some(name), _) => name.clone(),
            // The same VM boots again, so it keeps its generated name.
            (None, Some(vm)) => vm.name.clone(),
            (None, None) => format!("vm-{}", layout::fresh_id()?),
        };
        let scripts = scripts(&record, args, &mut notices)?;
        initramfs::check_size(&scripts, request.memory_mib)?;
        notices.extend(check_capacity(&request)?.into_iter().map(Notice::Warning));
        let image = record.image.as_ref().map(|image| image.config.clone()).unwrap_or_default();
        notices.extend(defaults::unknown_stop_signal(&image, &request).map(Notice::Warning));
        let (defaults, init) = (defaults::defaults(&image, &request), defaults::init(&image, &request));
        let kernel_log = request.kernel_log.as_deref().map(kernel_log).transpose()?;
        jail::check_privileges()?;
        let agent = agent::find(architecture)?;
        let library = kernel::library(architecture)?;
        let channel = request.channel.unwrap_or_default();
        let any::Choice { vmm, message, is_fallback } = any::choose(vmm_choice(request.vmm)?, architecture, channel)?;
        notices.extend(message.clone().filter(|_| args.verbose).map(Notice::Warning));
        let dir = run_dir(&name)?;
        if !args.dry_run {
            check_name(&name, &dir)?;
        }
        let mut root = root_choice::root(&record, args, &request, choice.root, &mut notices)?;
        if args.verbose {
            notices.push(Notice::Warning(format!("root: {} ({})", root.kind(), choice.why)));
        }
        let network::Choice { networks, fallback: network_fallback } =
            network::choose(&request.network, network_args::default_mode()?, &name, args.dry_run)?;
        let volumes = volume::check(&request, &mut notices)?;
        check_shares(&vmm, &root, &volumes, &record)
            .with_context(|| message.clone().filter(|_| is_fallback).unwrap_or_else(|| vmm.name().to_owned()))?;
        // The console, the vsock device and the share with the volumes are devices too.
        let others = 2 + networks.count() + usize::from(volume::is_shared(&volumes));
        if let Root::Block(block) = &mut root {
            // One is left for the balloon of QEMU, which gives the guest's free memory back.
            block.share_images(vmm.max_devices().saturating_sub(others + 1))?;
        }
        let devices = others + root.device_count();
        if devices > vmm.max_devices() {
            let max = vmm.max_devices();
            bail!("the VM has {devices} devices, and {} has room for {max} (use fewer network cards)", vmm.name());
        }
        notices.extend(network_fallback.clone().filter(|_| args.verbose).map(Notice::Warning));
        let process = match args.end_with {
            Some(EndWith::Process(pid)) => Some(inheritable_process(pid)?),
            _ => None,
        };
        let end_with = match args.end_with {
            Some(EndWith::Descriptor(fd)) => Some(InheritedFd::inherited(fd)),
            _ => process.as_ref().map(InheritedFd::of),
        };
        if let Some(fd) = end_with {
            fd.duplicate().with_context(|| format!("--end-with fd:{fd}"))?;
        }
        if args.follow_mounts && root.share().is_none() {
            bail!("--follow-mounts is for a shared root (use --root share, or leave it out)");
        }
        let vm = Vm {
            dir,
            // The supervisor sets it: it is made from its PID.
            user: 0,
            architecture,
            cpus: request.cpus,
            memory_mib: request.memory_mib,
            kernel: kernel::check(&library, architecture, vmm.boot_protocol())?,
            root_share: root.share(),
            root_follows_mounts: args.follow_mounts,
            initramfs: InheritedFd::inherited(-1),
            volumes: Vec::new(),
            drives: Vec::new(),
            cards: Vec::new(),
            channel,
            port: None,
            saving: None,
        };
        let boot = Boot {
            version: boot::VERSION,
            requested_at_ms: 0,
            hostname: request.hostname.clone().unwrap_or_else(|| name.clone()),
            mounts: volume::mount_step(&volumes).into_iter().chain(root.mount_steps()).collect(),
            defaults,
            directories: defaults::volumes(&image),
            volumes: volume::for_guest(&volumes),
            commit: false,
            bare: request.bare,
            init,
            network: network_for_guest(&networks, &request, &record),
            port: channel == Channel::Serial,
        };
        if let Some(saved) = &saved {
            saved.check_machine(&vm, &boot, &scripts, vmm.processor())?;
        }
        let overhead_mib = any::overhead_mib(vmm.name());
        let cgroup_parents = cgroup::check(&request.limits, request.memory_mib, overhead_mib)?;
        let mut record = record;
        (record.scripts, record.boot, record.vm) = (scripts.clone(), Some(request.clone()), None);
        Ok(Self {
            name,
            vm,
            vmm,
            networks,
            volumes,
            root_why: choice.why.into(),
            saved,
            boot,
            agent_part: initramfs::agent_part(&agent)?,
            agent,
            kernel_log,
            scripts,
            cgroup_parents,
            timeout: Duration::from_secs(request.timeout_s().into()),
            restart: request.restart,
            end_with,
            _process: process,
            logs: layout::failed_boots(&home::home()?),
            images: layout::images(&home::home()?),
            commit_on_stop: request.commit_on_stop && matches!(root, Root::Block(_)),
            root,
            record,
            started,
            library,
            notices,
            vmm_fallback: message.filter(|_| is_fallback && !args.verbose),
            network_fallback: network_fallback.filter(|_| !args.verbose),
        })
    }

    /// Makes the files that the store lacks: the kernel's file, the first part of the initramfs, the directories of volumes, and the
    /// images of a block root. Those take long, so `say` is called first.
    ///
    /// # Errors
    /// The file that could not be made.
    pub(crate) fn make_files(&self, say: impl Fn(&str)) -> anyhow::Result<()> {
        kernel::write(&self.library, self.vm.architecture, &self.vm.kernel)?;
        initramfs::write_agent_part(&self.agent, &self.agent_part)?;
        self.volumes.iter().try_for_each(Volume::make)?;
        match &self.root {
            Root::Block(block) if self.saved.is_none() => block.make_images(say),
            _ => Ok(()),
        }
    }

    /// The file for the guest's console.
    pub(crate) fn log_path(&self, held: &LockedRunDir) -> PathBuf {
        self.kernel_log.clone().unwrap_or_else(|| held.path().join(rundir::KERNEL_LOG))
    }
}

/// What the agent configures. Name servers of the record's patches stay, unless others were requested.
fn network_for_guest(networks: &Networks, request: &record::Boot, record: &Record) -> Option<boot::Network> {
    let mut network = networks.for_guest();
    if let Some(network) =
        network.as_mut().filter(|_| request.network.dns.is_empty() && resolv_conf::is_patched(record))
    {
        network.nameservers.clear();
    }
    network
}

/// The request: the record's, overridden by the flags.
fn requested(recorded: Option<&record::Boot>, args: &Args) -> anyhow::Result<record::Boot> {
    let mut variables = Vec::new();
    for file in &args.env_file {
        variables.extend(env::read_file(file)?);
    }
    variables.extend(args.env.iter().cloned());
    request::request(recorded, args, &variables, |name| std::env::var_os(name))
}

/// Checks that the record's VM has ended.
///
/// # Errors
/// A message if it is running.
fn require_ended(vm: &record::Vm) -> anyhow::Result<&record::Vm> {
    if supervisor::find(vm).context("supervisor")?.is_some() {
        bail!(
            "the record has a VM already, {0:?}, and it is running (stop it with \"msb-stop {0}\"; for another VM like it, take \"vm\" out: \
             jq -c 'del(.vm)')",
            vm.name
        );
    }
    Ok(vm)
}

/// The choice of the VMM: the request's, else that of `$MSB_VMM`.
///
/// # Errors
/// A usage error if the variable does not name a VMM.
pub(crate) fn vmm_choice(requested: Option<VmmChoice>) -> anyhow::Result<VmmChoice> {
    let variable = std::env::var_os("MSB_VMM").filter(|value| !value.is_empty());
    match (requested, variable) {
        (Some(choice), _) => Ok(choice),
        (None, None) => Ok(VmmChoice::Auto),
        (None, Some(value)) => <VmmChoice as clap::ValueEnum>::from_str(&value.to_string_lossy(), false)
            .map_err(|_| exit::coded(exit::USAGE, format!("MSB_VMM {value:?}: auto, krun or qemu is expected")).into()),
    }
}

/// A pidfd that the supervisor inherits.
fn inheritable_process(pid: i32) -> anyhow::Result<OwnedFd> {
    let subject = || format!("--end-with {pid}");
    let process =
        Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let process = process.with_context(subject)?;
    rustix::io::fcntl_setfd(&process, rustix::io::FdFlags::empty()).with_context(subject)?;
    Ok(process)
}

/// Warnings about more processors or memory than this machine has: the VM will run, but slowly.
///
/// # Errors
/// More memory than the machine's memory and swap.
fn check_capacity(request: &record::Boot) -> anyhow::Result<Vec<String>> {
    let mut warnings = Vec::new();
    let cpus = std::thread::available_parallelism()?.get();
    if usize::from(request.cpus) > cpus {
        warnings.push(format!("{} processors are more than the {cpus} of this machine, and take turns", request.cpus));
    }
    let system = nix::sys::sysinfo::sysinfo()?;
    let (memory, swap) = (system.ram_total() >> 20, system.swap_total() >> 20);
    if u64::from(request.memory_mib) > memory + swap {
        bail!(
            "{} MiB of memory are more than the {memory} MiB of this machine and its {swap} MiB of swap (ask for less with --memory)",
            request.memory_mib
        );
    }
    if u64::from(request.memory_mib) > memory {
        warnings.push(format!("{} MiB of memory are more than the {memory} MiB of this machine", request.memory_mib));
    }
    Ok(warnings)
}

/// Checks that the VMM can share what the VM shares with its guest, if anything.
///
/// # Errors
/// What is missing for that.
fn check_shares(vmm: &AnyVmm, root: &Root, volumes: &[Volume], record: &Record) -> Result<(), Unusable> {
    let has_volumes = volume::is_shared(volumes);
    if root.share().is_none() && !has_volumes {
        return Ok(());
    }
    vmm.check_shares().map_err(|mut missing| {
        // A mount may be all that the record has, and volumes are shared whatever the root is.
        if record.rootfs.is_some() && !has_volumes {
            missing.remedy.push_str("; or --root block");
        }
        missing
    })
}

/// Checks the file that --kernel-log names. It is made when the VM starts.
fn kernel_log(file: &Path) -> anyhow::Result<PathBuf> {
    let file = std::path::absolute(file)?;
    let dir = file.parent().unwrap_or(Path::new("/"));
    match (std::fs::metadata(dir), std::fs::metadata(&file)) {
        (Err(error), _) => Err(anyhow!(error).context(format!("--kernel-log {file:?}: its directory"))),
        (Ok(meta), _) if !meta.is_dir() => bail!("--kernel-log {file:?}: {dir:?} is not a directory"),
        (_, Ok(meta)) if meta.is_dir() => bail!("--kernel-log {file:?}: is a directory (name a file)"),
        _ => Ok(file),
    }
}

/// Checks that no running VM has the name. The supervisor takes the name later.
fn check_name(name: &str, dir: &Path) -> anyhow::Result<()> {
    match LockedRunDir::lock(dir) {
        Ok(None) => bail!(name_in_use(name)),
        _ => Ok(()),
    }
}

/// The error for a name that a running VM has.
pub(crate) fn name_in_use(name: &str) -> String {
    format!("name {name:?}: a VM of that name is running (take another --name, or run \"msb-stop -r {name}\")")
}

/// The record's scripts, overridden by the flags.
fn scripts(record: &Record, args: &Args, notices: &mut Vec<Notice>) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut scripts = record.scripts.clone();
    for (name, file) in &args.scripts {
        let file = path::absolute(file).with_context(|| format!("script {name:?}"))?;
        scripts.insert(name.clone(), file);
    }
    for (name, file) in &scripts {
        msb::record::script::check_name(name).map_err(|why| anyhow!("script {name:?}: {why}"))?;
        notices.extend(initramfs::check_script(name, file)?.map(Notice::Warning));
    }
    Ok(scripts)
}

fn run_dir(name: &str) -> anyhow::Result<PathBuf> {
    let dir = name::run_dir(name).context("run directory (set MSB_RUN)")?;
    check_socket_path(&dir)?;
    Ok(dir)
}

fn check_socket_path(dir: &Path) -> anyhow::Result<()> {
    let length = vm::ready_socket(&dir.join(rundir::SOCKET_DIR)).as_os_str().len() + 1;
    if length > SOCKET_PATH_MAX {
        bail!(
            "run directory {dir:?}: {} bytes too long for the sockets in it (choose a shorter --name, or a shorter MSB_RUN)",
            length - SOCKET_PATH_MAX
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_is_refused_when_a_socket_in_it_would_be_too_long() {
        assert!(check_socket_path(&Path::new("/").join("x".repeat(85))).is_ok());
        let error = check_socket_path(&Path::new("/").join("x".repeat(86))).unwrap_err().to_string();
        assert!(error.contains("1 bytes too long"), "{error}");
    }
}
