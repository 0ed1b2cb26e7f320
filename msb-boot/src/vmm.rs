//! What all VMMs have in common: the trait, the VM they are told to run, and the choice between them.

pub(crate) mod kvm;

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use msb::record::{self, DiskFormat, VmmChoice};
use msb::wire::READY_PORT;
use msb::{tool::capability, vm::rundir};
use serde::{Deserialize, Serialize};

use crate::block::Block;
use crate::cell::{Cell, Powers};
use crate::disk::Disk;
use crate::krun::Krun;
use crate::qemu::Qemu;
use crate::supervise::crew::Crew;

/// Why something cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Why {
    /// What was found, in words.
    pub found: String,
    /// What to do about it.
    pub remedy: String,
}

impl Why {
    /// From both words.
    pub(crate) fn new(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { found: found.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.found, self.remedy)
    }
}

impl std::error::Error for Why {}

/// Something that runs a VM.
pub(crate) trait Vmm {
    /// Whether it can run one on this machine, and what with, in words.
    fn probe(&self) -> Result<&'static str, Why>;

    /// In the supervisor, before the VMM's own process: starts what serves the VM beside it, into `crew`. Returns the fds that
    /// the VMM is to inherit.
    ///
    /// # Errors
    /// Words for what did not start.
    fn prepare(&self, vm: &mut Vm, crew: &mut Crew) -> anyhow::Result<Vec<OwnedFd>>;

    /// In a process of its own: becomes the VM, in a cell. Stdout is the guest's console, stderr the VMM's words. Returns only on
    /// failure.
    fn enter(&self, vm: &Vm) -> anyhow::Error;
}

/// The VMMs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Krun,
    Qemu,
}

impl Kind {
    /// The VMM behind the name.
    pub(crate) fn vmm(self) -> &'static dyn Vmm {
        match self {
            Self::Krun => &Krun,
            Self::Qemu => &Qemu,
        }
    }

    /// Whether one Unix socket leads to all ports of the guest, by `CONNECT port`.
    pub(crate) fn has_one_socket_for_all_ports(self) -> bool {
        self == Self::Qemu
    }

    /// As the record has it.
    pub(crate) fn in_record(self) -> record::Vmm {
        match self {
            Self::Krun => record::Vmm::Krun,
            Self::Qemu => record::Vmm::Qemu,
        }
    }

    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Krun => "krun",
            Self::Qemu => "qemu",
        }
    }
}

/// The guest's root as the VMM sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Root {
    /// A directory under the tag `rootfs`.
    Share(PathBuf),
    /// A disk.
    Disk(Disk),
    /// Disks that the guest's overlayfs puts together.
    Block(Block),
}

impl Root {
    /// Its kind, as the record has it.
    pub(crate) fn kind(&self) -> record::RootKind {
        match self {
            Self::Share(_) => record::RootKind::Share,
            Self::Disk(_) => record::RootKind::Disk,
            Self::Block(_) => record::RootKind::Block,
        }
    }

    /// Where the guest's writes go, as the record has it.
    pub(crate) fn scratch(&self) -> Option<record::Scratch> {
        match self {
            Self::Block(block) => Some(block.top.in_record()),
            _ => None,
        }
    }
}

/// A disk of the guest's that the VMM inherits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Drive {
    /// The file.
    pub fd: RawFd,
    /// What it is.
    pub format: DiskFormat,
    /// Whether the guest may write to it.
    pub writable: bool,
}

impl Drive {
    /// Its path in a cell that shows `/proc/self/fd`.
    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd)
    }
}

/// The VM to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Vm {
    /// Who runs it.
    pub vmm: Kind,
    /// Its run directory.
    pub dir: PathBuf,
    /// Virtual processors.
    pub cpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The guest's kernel, an ELF file.
    pub kernel: PathBuf,
    /// Its root.
    pub root: Root,
    /// For QEMU: the programs and files that were found for it.
    pub qemu: Option<crate::qemu::Parts>,
    /// Its disks, in the guest's order.
    pub drives: Vec<Drive>,
    /// For QEMU: the connected sockets of its vhost-user devices, which it inherits.
    pub links: Vec<RawFd>,
}

impl Vm {
    /// The directory that is the guest's first root.
    pub(crate) fn boot_share(&self) -> PathBuf {
        self.dir.join(rundir::BOOT_SHARE)
    }

    /// Where the agent answers, once it has reported.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.dir.join(rundir::AGENT_SOCKET)
    }

    /// The directory in which the VM's sockets appear.
    pub(crate) fn door(&self) -> PathBuf {
        self.dir.join(rundir::DOOR)
    }

    /// An empty cell for a process of this VM.
    pub(crate) fn cell(&self, powers: Powers) -> Cell {
        Cell::new(&self.dir, powers)
    }

    /// Opens the root's disks, which the VMM is to inherit.
    ///
    /// # Errors
    /// Words for a disk that another VM has, or that cannot be made.
    pub(crate) fn open_drives(&mut self) -> anyhow::Result<Vec<OwnedFd>> {
        let opened = match &self.root {
            Root::Share(_) => Vec::new(),
            Root::Disk(disk) => vec![(disk.open_overlay()?, DiskFormat::Qcow2, true)],
            Root::Block(block) => {
                block.open()?.into_iter().map(|disk| (disk.file, DiskFormat::Raw, disk.writable)).collect()
            }
        };
        let drive = |(file, format, writable): &(OwnedFd, _, _)| Drive {
            fd: file.as_raw_fd(),
            format: *format,
            writable: *writable,
        };
        self.drives = opened.iter().map(drive).collect();
        Ok(opened.into_iter().map(|(file, ..)| file).collect())
    }

    /// Where the agent's ready message arrives.
    pub(crate) fn ready_socket(&self) -> PathBuf {
        ready_socket(&self.door())
    }
}

/// The socket in `door` for the ready message. The name is the one that vhost-device-vsock has for a connection from the
/// guest.
pub(crate) fn ready_socket(door: &Path) -> PathBuf {
    door.join(format!("{}_{READY_PORT}", rundir::AGENT_SOCKET))
}

/// Picks the VMM. The words say which and why, where it was this program's choice.
///
/// # Errors
/// Words, where the caller's choice, or none at all, can run here.
pub(crate) fn choose(choice: VmmChoice) -> anyhow::Result<(Kind, Option<String>)> {
    match choice {
        VmmChoice::Qemu => Ok((Qemu.probe().map(|_| Kind::Qemu).context("qemu")?, None)),
        VmmChoice::Krun => Ok((Krun.probe().map(|_| Kind::Krun).context("krun")?, None)),
        VmmChoice::Auto => {
            let krun = match Krun.probe() {
                Ok(how) => return Ok((Kind::Krun, Some(format!("using krun ({how})")))),
                Err(why) => why,
            };
            match Qemu.probe() {
                Ok(how) => Ok((Kind::Qemu, Some(format!("krun: {krun}; using qemu ({how})")))),
                Err(qemu) if krun == qemu => Err(krun.into()),
                Err(qemu) => Err(anyhow!("krun: {krun}; qemu: {qemu}")),
            }
        }
    }
}

/// Whether this user may give a VM's processes roots and namespaces of their own.
pub(crate) fn privileges() -> Result<&'static str, Why> {
    if !rustix::process::geteuid().is_root() {
        return Err(Why::new("needs root, to confine the VM and serve its root", "run it with sudo"));
    }
    match capability::check_sys_admin() {
        Ok(()) => Ok("root"),
        Err(missing) => Err(Why::new(format!("cannot confine a VM: {}", missing.found), missing.remedy)),
    }
}

/// The VMM's own process.
pub(crate) fn enter(vm: &Vm) -> ExitCode {
    let error = vm.vmm.vmm().enter(vm);
    eprintln!("{}: {error:#}", vm.vmm.name());
    ExitCode::FAILURE
}
