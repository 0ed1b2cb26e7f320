//! What is to be booted, checked: whatever can be wrong before a process starts is said here.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use msb::record::path;
use msb::record::{self, Mount, Record, RestartPolicy, RootChoice, Rootfs, Upper, VmmChoice};
use msb::store::{home, layout, notices};
use msb::vm::boot::{self, Boot, MountStep};
use msb::vm::rundir::Held;
use msb::vm::{name, rundir, supervisor};
use msb::{overlay::reach, tool::env, tool::exit};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::args::{Args, DEFAULT_DISK};
use crate::block::Block;
use crate::block::top::{Reused, Top};
use crate::disk::Disk;
use crate::qemu::Parts;
use crate::vmm::{self, Kind, Root, Vm};
use crate::{TOOL, bootshare, defaults, kernel, programs, request};

/// `sun_path` of `sockaddr_un`, with its NUL.
const SOCKET_PATH_MAX: usize = 108;

/// All that the supervisor needs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The VM's name.
    pub name: String,
    /// The VM.
    pub vm: Vm,
    /// Why the root reaches the guest as it does, in words.
    pub root_why: String,
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
    /// Whether what the guest wrote comes into the upper when the VM has ended, whoever ends it.
    pub commit_on_stop: bool,
    /// When the VM is started again.
    pub restart: RestartPolicy,
    /// Where the logs of boots that failed are kept.
    pub logs: PathBuf,
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
        let asked = asked(record.boot.as_ref(), args)?;
        let ended = record.vm.as_ref().map(has_ended).transpose()?;
        check_flags(&record, &asked)?;
        defaults::check_platform(record.image.as_ref().and_then(|image| image.platform.as_deref()))?;
        if let Some(upper) = record.upper.as_ref().filter(|_| asked.commit_on_stop) {
            reach::require_private(&upper.dir).context("--commit-on-stop")?;
        }
        let choice = choose_root(&record, asked.root)?;
        let name = match (&asked.name, ended) {
            (Some(name), _) => name.clone(),
            // The same VM again: a generated name is kept.
            (None, Some(vm)) => vm.name.clone(),
            (None, None) => format!("vm-{}", layout::fresh_id()?),
        };
        let scripts = scripts(&record, args)?;
        for words in more_than_there_is(&asked)? {
            exit::warn(TOOL, &words);
        }
        let image = record.image.as_ref().map(|image| image.config.clone()).unwrap_or_default();
        if let Some(warning) = defaults::unknown_stop_signal(&image, &asked) {
            exit::warn(TOOL, &warning);
        }
        let (defaults, init) = (defaults::defaults(&image, &asked), defaults::init(&image, &asked));
        let kernel_log = asked.kernel_log.as_deref().map(kernel_log).transpose()?;
        vmm::privileges()?;
        let agent = programs::agent()?;
        let library = kernel::library()?;
        let (kind, words) = vmm::choose(vmm_choice(asked.vmm)?)?;
        if let Some(message) = words.as_ref().filter(|_| args.verbose) {
            exit::warn(TOOL, message);
        }
        let qemu = match kind {
            Kind::Qemu => Some(Parts::find()?),
            Kind::Krun => None,
        };
        let dir = run_dir(&name)?;
        check_name(&name, &dir)?;
        let has_said = Cell::new(false);
        let say = |message: &str| {
            has_said.set(true);
            args.output.say(TOOL, message);
        };
        let root = root(&record, args, &asked, choice.root, say)?;
        // What makes a file comes behind all checks, and what takes long last.
        let kernel = kernel::elf(&library, kind)?;
        let root = root.make(say)?;
        // One line a boot is enough: the choice of the VMM can wait for a boot that has no other. That KVM is used is not news.
        let is_silent = args.verbose || args.output.quiet || has_said.get() || kind != Kind::Qemu;
        if let Some(message) = words.filter(|message| !is_silent && notices::is_new("vmm", message)) {
            exit::warn(TOOL, &message);
        }
        if args.verbose {
            exit::warn(TOOL, &format!("root: {} ({})", root.kind(), choice.why));
        }
        let vm = Vm {
            vmm: kind,
            dir,
            cpus: asked.cpus,
            memory_mib: asked.memory_mib,
            kernel,
            root,
            qemu,
            drives: Vec::new(),
            links: Vec::new(),
        };
        let boot = Boot {
            version: boot::VERSION,
            hostname: asked.hostname.clone().unwrap_or_else(|| name.clone()),
            mounts: mount_steps(&vm.root),
            defaults,
            directories: defaults::volumes(&image),
            commit: false,
            init,
        };
        let mut record = record;
        (record.scripts, record.boot, record.vm) = (scripts.clone(), Some(asked.clone()), None);
        Ok(Self {
            name,
            root_why: choice.why.into(),
            boot,
            agent,
            kernel_log,
            scripts: scripts.clone(),
            timeout: Duration::from_secs(asked.timeout_s().into()),
            restart: asked.restart,
            logs: home::home()?.join("logs"),
            commit_on_stop: asked.commit_on_stop && matches!(vm.root, Root::Block(_)),
            record,
            vm,
            started,
        })
    }

    /// Where the guest's console goes.
    pub(crate) fn log_path(&self, held: &Held) -> PathBuf {
        self.kernel_log.clone().unwrap_or_else(|| held.path().join(rundir::KERNEL_LOG))
    }
}

/// What is asked for, by the record and by the flags.
fn asked(recorded: Option<&record::Boot>, args: &Args) -> anyhow::Result<record::Boot> {
    let mut variables = Vec::new();
    for file in &args.env_file {
        variables.extend(env::read_file(file)?);
    }
    variables.extend(args.env.iter().cloned());
    request::request(recorded, args, &variables, |name| std::env::var_os(name))
}

/// The VM of a record that is to boot again.
///
/// # Errors
/// That it runs.
fn has_ended(vm: &record::Vm) -> anyhow::Result<&record::Vm> {
    if supervisor::find(vm).context("supervisor")?.is_some() {
        bail!(
            "the record has a VM already, {0:?}, and it runs (stop it with \"msb-stop {0}\"; for another VM like it, take \"vm\" out: \
             jq -c 'del(.vm)')",
            vm.name
        );
    }
    Ok(vm)
}

/// What is to run the VM: the request, else `$MSB_VMM`.
///
/// # Errors
/// A usage error for a variable that names none.
pub(crate) fn vmm_choice(asked: Option<VmmChoice>) -> anyhow::Result<VmmChoice> {
    let variable = std::env::var_os("MSB_VMM").filter(|value| !value.is_empty());
    match (asked, variable) {
        (Some(choice), _) => Ok(choice),
        (None, None) => Ok(VmmChoice::Auto),
        (None, Some(value)) => <VmmChoice as clap::ValueEnum>::from_str(&value.to_string_lossy(), false)
            .map_err(|_| exit::coded(exit::USAGE, format!("MSB_VMM {value:?}: auto, krun or qemu is expected")).into()),
    }
}

/// Warnings of what the VM is to have and this machine has not: it runs all the same, and badly.
///
/// # Errors
/// Memory that could not come from anywhere.
fn more_than_there_is(asked: &record::Boot) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let cpus = std::thread::available_parallelism()?.get();
    if usize::from(asked.cpus) > cpus {
        words.push(format!("{} processors are more than the {cpus} of this machine, and take turns", asked.cpus));
    }
    let system = nix::sys::sysinfo::sysinfo()?;
    let (memory, swap) = (system.ram_total() >> 20, system.swap_total() >> 20);
    if u64::from(asked.memory_mib) > memory + swap {
        bail!(
            "{} MiB of memory are more than the {memory} MiB of this machine and its {swap} MiB of swap (ask for less by --memory)",
            asked.memory_mib
        );
    }
    if u64::from(asked.memory_mib) > memory {
        words.push(format!("{} MiB of memory are more than the {memory} MiB of this machine", asked.memory_mib));
    }
    Ok(words)
}

/// A root that was chosen, and why.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    root: RootChoice,
    why: &'static str,
}

/// The root by what the record holds, or the caller's choice where the record allows it.
fn choose_root(record: &Record, asked: RootChoice) -> anyhow::Result<Choice> {
    let chosen = |root, why| Ok(Choice { root, why });
    let rootfs = if record.mount.is_some() { None } else { Some(record.rootfs()?) };
    match (asked, rootfs) {
        (RootChoice::Auto, None) => chosen(RootChoice::Share, "the record has a mount"),
        (RootChoice::Auto, Some(Rootfs::Layers { .. })) => {
            chosen(RootChoice::Block, "the record has layers and no mount")
        }
        (RootChoice::Auto, Some(Rootfs::Dir { .. })) => {
            chosen(RootChoice::Block, "the record has a directory and no mount")
        }
        (RootChoice::Auto, Some(Rootfs::Disk { .. })) => chosen(RootChoice::Disk, "the record has a disk"),
        (RootChoice::Share, Some(Rootfs::Disk { path, .. })) => {
            bail!("disk {path:?} cannot be shared (leave --root out)")
        }
        (RootChoice::Share, Some(_)) => {
            bail!("a shared root is a mounted one, and the record has no mount (put msb-mount before msb-boot)")
        }
        (root, _) => match (root, record.rootfs()?) {
            (RootChoice::Block, Rootfs::Disk { path, .. }) => {
                bail!("disk {path:?} is a root by itself (leave --root out)")
            }
            (RootChoice::Disk, Rootfs::Layers { .. } | Rootfs::Dir { .. }) => {
                bail!("--root disk is for a disk root, and this record has another (leave it out)")
            }
            (root, _) => chosen(root, "--root says so"),
        },
    }
}

/// Flags that another root than the record's would need.
fn check_flags(record: &Record, asked: &record::Boot) -> anyhow::Result<()> {
    if asked.overlay.is_some() && !matches!(record.rootfs, Some(Rootfs::Disk { .. })) {
        bail!("--overlay is for a disk root, and this record has another (leave it out)");
    }
    Ok(())
}

/// A root that was checked.
enum Checked<'r> {
    /// There is nothing to make.
    Whole(Root),
    /// The image has to be made yet, where it is not kept.
    Block { lower: &'r [PathBuf], upper: Option<&'r Upper>, top: Top },
}

impl Checked<'_> {
    fn make(self, say: impl Fn(&str)) -> anyhow::Result<Root> {
        match self {
            Self::Whole(root) => Ok(root),
            Self::Block { lower, upper, top } => Ok(Root::Block(Block::check(lower, upper, top, say)?)),
        }
    }
}

fn root<'r>(
    record: &'r Record,
    args: &Args,
    asked: &record::Boot,
    choice: RootChoice,
    say: impl Fn(&str),
) -> anyhow::Result<Checked<'r>> {
    // A disk that an earlier boot of the record had is no reason to refuse another root. That nothing is kept would be one.
    let block_flags = [
        ("--disk", args.disk.is_some()),
        ("--fresh", args.fresh),
        ("--ephemeral", asked.ephemeral),
        ("--commit-on-stop", args.commit_on_stop == Some(true)),
    ];
    if choice != RootChoice::Block
        && let Some((flag, _)) = block_flags.iter().find(|(_, given)| *given)
    {
        bail!("{flag} is for a block root, and this one is not (leave it out, or leave msb-mount out)");
    }
    match (choice, &record.mount) {
        (RootChoice::Share, Some(mount)) => {
            check_mount(mount)?;
            return Ok(Checked::Whole(Root::Share(mount.path.clone())));
        }
        (RootChoice::Share, None) => bail!("the record has no mount (put msb-mount before msb-boot)"),
        _ => {}
    }
    match record.rootfs()? {
        Rootfs::Disk { path, format, .. } => {
            Ok(Checked::Whole(Root::Disk(Disk::check(path, *format, asked.overlay.as_deref())?)))
        }
        Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => {
            let base = Block::base_name(lower)?;
            let size = request::disk_size(asked)?;
            let top = match &asked.name {
                _ if asked.ephemeral => Top::Memory,
                Some(name) => Top::named(name, size, base.as_encoded_bytes(), args.fresh)?,
                None => Top::Unnamed { size: size.unwrap_or(DEFAULT_DISK) },
            };
            if let Some(upper) = &record.upper {
                check_upper(upper)?;
            }
            if let (Some(reused), Some(name)) = (top.check(&home::home()?)?, &asked.name) {
                say(&reuse(name, &reused, record.upper.as_ref()));
            }
            Ok(Checked::Block { lower, upper: record.upper.as_ref(), top })
        }
    }
}

/// What to say of a disk that a VM finds again.
fn reuse(name: &str, disk: &Reused, upper: Option<&Upper>) -> String {
    let newer = upper.is_some_and(|upper| {
        let changed = std::fs::metadata(&upper.dir).map(|meta| {
            SystemTime::UNIX_EPOCH + Duration::new(meta.ctime().unsigned_abs(), meta.ctime_nsec().unsigned_abs() as u32)
        });
        changed.is_ok_and(|changed| changed > disk.last_written)
    });
    let hidden = if newer { ", which hides patches that were made since to the same files" } else { "" };
    let mib = disk.written as f64 / f64::from(1 << 20);
    format!("{name}: reusing its disk, {mib:.1} MiB written{hidden}; --fresh starts a new one")
}

fn check_upper(upper: &Upper) -> anyhow::Result<()> {
    match [&upper.dir, &upper.work].into_iter().find(|dir| !dir.is_dir()) {
        Some(dir) => bail!("upper {dir:?} is gone (run msb-patch again)"),
        None => Ok(()),
    }
}

/// Where the log goes that the caller names, which is made when the VM starts.
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

/// Refuses a name that a running VM has. The supervisor takes it, where it is free.
fn check_name(name: &str, dir: &Path) -> anyhow::Result<()> {
    match Held::take(dir) {
        Ok(None) => bail!(name_in_use(name)),
        _ => Ok(()),
    }
}

/// What to say of it.
pub(crate) fn name_in_use(name: &str) -> String {
    format!("name {name:?}: a VM of that name is running (take another --name, or run \"msb-stop -r {name}\")")
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

fn mount_steps(root: &Root) -> Vec<MountStep> {
    let (source, fstype) = match root {
        Root::Share(_) => ("rootfs", "virtiofs"),
        Root::Disk(_) => ("/dev/vda", "ext4"),
        Root::Block(block) => return block.mount_steps(),
    };
    let target = boot::NEW_ROOT.into();
    let step = MountStep {
        source: source.into(),
        target,
        fstype: fstype.into(),
        options: Vec::new(),
        directories: Vec::new(),
    };
    vec![step]
}

/// The record's scripts, and the caller's over them.
fn scripts(record: &Record, args: &Args) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut scripts = record.scripts.clone();
    for (name, file) in &args.scripts {
        let file = path::absolute(file).with_context(|| format!("script {name:?}"))?;
        scripts.insert(name.clone(), file);
    }
    for (name, file) in &scripts {
        msb::record::script::check_name(name).map_err(|why| anyhow!("script {name:?}: {why}"))?;
        if let Some(words) = bootshare::check_script(name, file)? {
            exit::warn(TOOL, &words);
        }
    }
    Ok(scripts)
}

fn run_dir(name: &str) -> anyhow::Result<PathBuf> {
    let dir = name::run_dir(name).context("run directory (set MSB_RUN)")?;
    check_socket_path(&dir)?;
    Ok(dir)
}

fn check_socket_path(dir: &Path) -> anyhow::Result<()> {
    let length = vmm::ready_socket(&dir.join(rundir::DOOR)).as_os_str().len() + 1;
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
    use clap::ValueEnum;
    use msb::record::DiskFormat;

    use super::*;

    #[test]
    fn a_run_directory_is_refused_when_a_socket_in_it_would_be_too_long() {
        assert!(check_socket_path(&Path::new("/").join("x".repeat(85))).is_ok());
        let words = check_socket_path(&Path::new("/").join("x".repeat(86))).unwrap_err().to_string();
        assert!(words.contains("1 bytes too long"), "{words}");
    }

    #[test]
    fn the_root_is_chosen_by_the_record_and_by_the_caller_where_it_can_be() {
        let dir = std::env::temp_dir();
        let layers = || Some(Rootfs::layers(vec![dir.clone()]));
        let directory = || Some(Rootfs::dir(dir.clone()));
        let disk = || Some(Rootfs::disk(dir.clone(), DiskFormat::Raw));
        let mount = || Mount::new(dir.clone(), 1, "x".into());
        let record = |rootfs, mount| {
            let mut record = Record::new();
            (record.rootfs, record.mount) = (rootfs, mount);
            record
        };
        for (record, flag, expected) in [
            (record(layers(), None), "auto", Ok(RootChoice::Block)),
            (record(directory(), None), "auto", Ok(RootChoice::Block)),
            (record(disk(), None), "auto", Ok(RootChoice::Disk)),
            (record(layers(), Some(mount())), "auto", Ok(RootChoice::Share)),
            (record(None, Some(mount())), "auto", Ok(RootChoice::Share)),
            (record(layers(), Some(mount())), "block", Ok(RootChoice::Block)),
            (record(None, None), "auto", Err("start with msb-pull")),
            (record(None, Some(mount())), "block", Err("start with msb-pull")),
            (record(layers(), None), "share", Err("put msb-mount before")),
            (record(directory(), None), "share", Err("put msb-mount before")),
            (record(disk(), None), "share", Err("cannot be shared")),
            (record(disk(), None), "block", Err("is a root by itself")),
            (record(layers(), None), "disk", Err("is for a disk root")),
        ] {
            let asked = RootChoice::from_str(flag, false).unwrap();
            match (choose_root(&record, asked), expected) {
                (Ok(choice), Ok(root)) => assert_eq!(choice.root, root, "{record:?} {flag}"),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (other, _) => panic!("{record:?} {flag}: {other:?}"),
            }
        }
    }
}
