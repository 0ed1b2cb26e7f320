//! `--probe`: what this machine has for VMs, which VMM would be used, and what to do about the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use msb::architecture::Architecture;
use msb::record::{Channel, Limits, VmmChoice};
use msb::store::erofs::Mkfs;
use msb::tool::user_namespace;
use serde::Serialize;

use crate::block::scratch;
use crate::qemu::{self, Qemu};
use crate::unusable::Unusable;
use crate::vmm::{Vmm, any, kvm};
use crate::{agent, cgroup, guest_files, helper_process, jail, kernel, network};

/// The result of a probe. It is printed as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Probe {
    /// The VMM that would be used; `None` if no VM would run.
    vmm: Option<&'static str>,
    /// The choice in one line.
    #[serde(rename = "words")]
    message: String,
    /// The host's memory that such a VM takes besides the guest's, in MiB: for limits of cgroups and the overhead of a RuntimeClass. `None`
    /// for a VMM of which it is not known.
    overhead_mib: Option<u32>,
    /// The VMMs by name.
    vmms: BTreeMap<&'static str, Finding<&'static str>>,
    /// What the VMMs need, by name.
    parts: BTreeMap<&'static str, Finding<PathBuf>>,
    /// Guests of other architectures than this machine's, by platform.
    guests: BTreeMap<String, Finding<&'static str>>,
}

/// Whether one thing is usable.
#[derive(Debug, Serialize)]
struct Finding<T> {
    usable: bool,
    /// Its path, or how it would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<T>,
    /// Its version, where it matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    why: Option<Unusable>,
}

impl<T> From<Result<T, Unusable>> for Finding<T> {
    fn from(result: Result<T, Unusable>) -> Self {
        match result {
            Ok(by) => Self { usable: true, by: Some(by), version: None, why: None },
            Err(why) => Self { usable: false, by: None, version: None, why: Some(why) },
        }
    }
}

/// Whether a VM can have limits on the host, except for that of I/O, which few kernels have.
fn cgroup() -> Result<PathBuf, Unusable> {
    let mut limits = Limits::default();
    (limits.cpu_weight, limits.memory_max_mib, limits.pids_max) = (Some(100), Some(1), Some(1));
    let parents = cgroup::find_parents(&limits)?;
    Ok(parents.first().map(|parent| parent.dir().to_owned()).unwrap_or_default())
}

/// Whether jails have Landlock, their second layer, and which version of it. VMs run without it too.
fn landlock() -> Finding<PathBuf> {
    let missing = || {
        Unusable::new("this kernel has no Landlock, or an old one", "boot Linux 5.19 or later with lsm=landlock,...")
    };
    match msb::jail::landlock_abi() {
        Some(abi) => Ok(format!("ABI {abi}").into()).into(),
        None => Err(missing()).into(),
    }
}

/// What QEMU's shares need. Other VMs run without it.
fn virtiofsd() -> Result<PathBuf, Unusable> {
    helper_process::find_virtiofsd().map_err(|Unusable { found, remedy }| {
        Unusable::new(format!("{found}, so shared roots and volumes do not work with qemu"), remedy)
    })
}

impl Probe {
    /// Checks everything that a boot needs. For a user other than root, this process enters a user namespace.
    pub(crate) fn run(choice: VmmChoice) -> Self {
        let host = Architecture::HOST;
        let privileges = user_namespace::try_out().map_err(|error| match error {
            user_namespace::Error::Missing(missing) => Unusable::new(missing.found, missing.remedy),
            other => Unusable::new(format!("{:#}", anyhow::Error::from(other)), "run it with sudo"),
        });
        let privileges = privileges.and_then(|privileges| jail::check_privileges().map(|()| privileges));
        let agent = agent::find(host).map_err(|error| Unusable::new(format!("{error:#}"), guest_files::remedy(host)));
        let chosen = agent.clone().map_err(Into::into).and_then(|_| any::choose(choice, host, Channel::Vsock));
        let (vmm, message) = match chosen {
            Ok(any::Choice { vmm, message, .. }) => {
                (Some(vmm.name()), message.unwrap_or_else(|| format!("using {}, as told", vmm.name())))
            }
            Err(error) => (None, format!("{error:#}")),
        };
        let mkfs = Mkfs::find().map(|mkfs| mkfs.program().to_owned());
        let mkfs = mkfs.map_err(|_| Unusable::new("mkfs.erofs is not installed", "apt-get install erofs-utils"));
        let passt = network::passt::find_program();
        let version = passt.as_deref().ok().and_then(network::passt::version);
        let parts = [
            ("agentd", agent.into()),
            ("cgroup", cgroup().into()),
            ("kvm", kvm::probe().map(|()| kvm::DEVICE.into()).into()),
            ("landlock", landlock()),
            ("libkrunfw", kernel::library(host).into()),
            ("mke2fs", scratch::mke2fs().into()),
            ("mkfs.erofs", mkfs.into()),
            ("passt", Finding { version, ..passt.into() }),
            ("ping", network::passt::check_ping().into()),
            ("privileges", privileges.map(PathBuf::from).into()),
            ("qemu", qemu::find_program(host).into()),
            ("vhost-device-vsock", helper_process::find_vsock().into()),
            ("virtiofsd", virtiofsd().into()),
        ];
        let overhead_mib = vmm.and_then(any::overhead_mib);
        let vmms = any::survey().map(|(name, result)| (name, result.into()));
        let others = Architecture::ALL.into_iter().filter(|&architecture| architecture != host);
        let guests = others.map(|architecture| (architecture.platform(), guest(architecture).into())).collect();
        Self { vmm, message, overhead_mib, vmms: vmms.into(), parts: parts.into(), guests }
    }

    /// Whether a VM would run.
    pub(crate) fn is_good(&self) -> bool {
        self.vmm.is_some() && self.parts.get("privileges").is_some_and(|part| part.usable)
    }
}

/// How guests of an architecture would run.
fn guest(architecture: Architecture) -> Result<&'static str, Unusable> {
    agent::find(architecture)
        .map_err(|error| Unusable::new(format!("{error:#}"), guest_files::remedy(architecture)))?;
    Qemu::find(architecture).map(|qemu| qemu.acceleration())
}
