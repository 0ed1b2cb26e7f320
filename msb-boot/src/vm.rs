//! The description of a VM: what any VMM has to run. It holds no VMM's own data, and says nothing about how the root was chosen.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use msb::architecture::Architecture;
use msb::jail::{Jail, PinnedPath, Profile};
use msb::record::{Channel, DiskFormat};
use msb::vm::rundir;
use msb::wire::READY_PORT;
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::jail;

/// A VM to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Vm {
    /// Its run directory.
    pub dir: PathBuf,
    /// The user of the host that its processes are, unless they serve files with owners.
    pub user: u32,
    /// The architecture of its guest.
    pub architecture: Architecture,
    /// The number of virtual processors.
    pub cpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The file of the guest's kernel.
    pub kernel: PathBuf,
    /// The directory that the guest mounts as its root, under the tag `rootfs`, if its root is shared.
    pub root_share: Option<PathBuf>,
    /// Whether mounts that are added later below that directory appear in the guest.
    pub root_follows_mounts: bool,
    /// The guest's first root, which the VMM inherits open. The supervisor sets it for each start.
    pub initramfs: InheritedFd,
    /// The directories and files of the host that are volumes. They are shared together, if there are any.
    pub volumes: Vec<SharedVolume>,
    /// Its disks, in the order in which the guest numbers them.
    pub drives: Vec<Drive>,
    /// Its network cards.
    pub cards: Vec<Card>,
    /// What carries the connections to its agent.
    pub channel: Channel,
    /// The socket for its virtio-serial port, if that carries them.
    pub port: Option<InheritedFd>,
    /// What saves it, if it can be saved.
    pub saving: Option<Saving>,
}

/// What saves a VM, which the VMM inherits open.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Saving {
    /// The file that is the guest's memory. `None`: the VMM maps the memory of a snapshot (see [`crate::guest_memory`]), and waits for a
    /// state to load instead of booting.
    pub memory: Option<InheritedFd>,
    /// The socket on which the VMM is told to save or load the state of the devices.
    pub monitor: InheritedFd,
}

impl Saving {
    /// Whether the VMM loads a state instead of booting.
    pub(crate) fn loads(&self) -> bool {
        self.memory.is_none()
    }
}

/// The network card of a VM. The VMM inherits its socket, on which each frame follows its length: four bytes, big-endian.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Card {
    /// The socket.
    pub fd: InheritedFd,
    /// The Ethernet address.
    pub mac: [u8; 6],
    /// Whether the other side takes packets without a checksum, and of several segments.
    pub is_offloaded: bool,
}

/// A directory or file of the host that is a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SharedVolume {
    /// Its name in the share.
    pub number: usize,
    /// The directory or file.
    pub source: PinnedPath,
    /// Whether it is read-only.
    pub readonly: bool,
}

/// A disk of the guest. The VMM inherits it open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Drive {
    /// The open file.
    pub fd: InheritedFd,
    /// The format of the file.
    pub format: DiskFormat,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// The backing file that its header names, which the VMM opens by path.
    pub backing_file: Option<PathBuf>,
}

impl Vm {
    /// The directory with the mount points of the volumes.
    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.dir.join(rundir::VOLUMES)
    }

    /// The socket on which the agent answers, once it has reported.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.dir.join(rundir::AGENT_SOCKET)
    }

    /// The directory in which the VMM and its helper processes make the VM's sockets.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.dir.join(rundir::SOCKET_DIR)
    }

    /// The socket on which the agent's report arrives.
    pub(crate) fn ready_socket(&self) -> PathBuf {
        ready_socket(&self.socket_dir())
    }

    /// Adds the volumes to a jail, in the directory `target`, which is itself read-only.
    pub(crate) fn bind_volumes(&self, jail: Jail, target: &Path) -> Jail {
        self.volumes.iter().fold(jail.ro_bind(&self.volumes_dir(), target), |jail, volume| {
            jail.bind_pinned(&volume.source, &target.join(volume.number.to_string()), !volume.readonly)
        })
    }

    /// Adds the shared root to a jail, if there is one.
    pub(crate) fn bind_root(&self, jail: Jail) -> Jail {
        match &self.root_share {
            Some(root) if self.root_follows_mounts => jail.bind_following(root, jail::ROOT.as_ref()),
            Some(root) => jail.bind(root, jail::ROOT.as_ref()),
            None => jail,
        }
    }

    /// Whether the VMM reads a disk image that only its owner, or his group, may read: a base, or a read-only disk.
    pub(crate) fn has_private_base(&self) -> bool {
        let bases = self
            .drives
            .iter()
            .filter_map(|drive| drive.backing_file.clone().or_else(|| (!drive.writable).then(|| drive.fd.path())));
        bases.into_iter().any(|base| fs::metadata(base).is_ok_and(|meta| meta.mode() & 0o004 == 0))
    }

    /// Whether the VMM can save all of its devices: no other process serves any of them.
    pub(crate) fn has_saved_devices(&self) -> bool {
        let is_virtual = |drive: &Drive| drive.backing_file.is_none();
        self.channel == Channel::Serial
            && self.root_share.is_none()
            && self.volumes.is_empty()
            && self.drives.iter().all(is_virtual)
    }

    /// An empty jail for a process of this VM.
    pub(crate) fn jail(&self, profile: Profile) -> Jail {
        Jail::new(&self.dir, profile, self.user)
    }
}

/// The socket in `socket_dir` for the agent's report. vhost-device-vsock gives this name to a connection that the guest makes.
pub(crate) fn ready_socket(socket_dir: &Path) -> PathBuf {
    socket_dir.join(format!("{}_{READY_PORT}", rundir::AGENT_SOCKET))
}
