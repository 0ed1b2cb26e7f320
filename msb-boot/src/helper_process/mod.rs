//! The helper processes that serve the vhost-user devices of a VM, for every VMM that takes such devices. The supervisor connects to
//! each of them, and the VMM inherits the connection, so nothing waits for a socket to appear, and no socket file remains.

mod virtiofsd;
mod vsock;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use msb::jail::Profile;
use msb::record::Channel;
use msb::vm::boot;
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::jail;
use crate::processes::Processes;
use crate::unusable::Unusable;
use crate::vm::Vm;
use virtiofsd::Submounts;

pub(crate) use {virtiofsd::find as find_virtiofsd, vsock::find as find_vsock};

/// The programs of the helper processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Programs {
    /// What serves the shares. A VM without any does not need it.
    virtiofsd: Result<PathBuf, Unusable>,
    vsock: PathBuf,
}

/// A vhost-user device of the VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Device {
    /// Its kind.
    pub kind: DeviceKind,
    /// The connection to the helper process that serves it.
    pub socket: InheritedFd,
}

/// The kinds of vhost-user devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DeviceKind {
    /// The vsock device.
    Vsock,
    /// A file system, with the tag by which the guest mounts it.
    Fs(String),
}

impl Programs {
    /// Finds them.
    ///
    /// # Errors
    /// One that every VM needs is missing.
    pub(crate) fn find() -> Result<Self, Unusable> {
        Ok(Self { virtiofsd: find_virtiofsd(), vsock: find_vsock()? })
    }

    /// The program that serves a share.
    ///
    /// # Errors
    /// It is missing.
    pub(crate) fn virtiofsd(&self) -> Result<&Path, Unusable> {
        self.virtiofsd.as_deref().map_err(Clone::clone)
    }

    /// Starts the helper processes of a VM: one for the vsock device, if it has one, one for the volumes of the host if there are any, and
    /// one for a shared root. Returns the devices and the descriptors of their sockets.
    ///
    /// # Errors
    /// The process that did not start, and why.
    pub(crate) fn start(&self, vm: &Vm, processes: &mut Processes) -> anyhow::Result<(Vec<Device>, Vec<OwnedFd>)> {
        // The vsock helper takes the longest to start, so it is started first and connected to last.
        let vsock = match vm.channel {
            Channel::Vsock => Some(vsock::Starting::start(vm, &self.vsock, processes)?),
            Channel::Serial => None,
        };
        let jail = || vm.jail(Profile::Virtiofsd);
        let mut sockets = Vec::new();
        if !vm.volumes.is_empty() {
            let volumes = vm.bind_volumes(jail(), jail::ROOT.as_ref());
            let socket = virtiofsd::start(&vm.dir, self.virtiofsd()?, volumes, Submounts::Announced, processes)?;
            sockets.push((DeviceKind::Fs(boot::VOLUMES_DIR.into()), socket));
        }
        if vm.root_share.is_some() {
            let root = vm.bind_root(jail());
            let socket = virtiofsd::start(&vm.dir, self.virtiofsd()?, root, Submounts::Hidden, processes)?;
            sockets.push((DeviceKind::Fs("rootfs".into()), socket));
        }
        if let Some(vsock) = vsock {
            sockets.insert(0, (DeviceKind::Vsock, vsock.connect()?));
        }
        let device = |(kind, socket): (_, OwnedFd)| (Device { kind, socket: InheritedFd::of(&socket) }, socket);
        Ok(sockets.into_iter().map(device).unzip())
    }
}
