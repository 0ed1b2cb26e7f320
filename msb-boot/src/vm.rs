//! The description of a VM: what any VMM has to run. It holds no VMM's own data, and says nothing about how the root was chosen.

use std::path::{Path, PathBuf};

use msb::record::DiskFormat;
use msb::vm::rundir;
use msb::wire::READY_PORT;
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::jail::{Capabilities, Jail};

/// A VM to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Vm {
    /// Its run directory.
    pub dir: PathBuf,
    /// The number of virtual processors.
    pub cpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The guest's kernel, an ELF file.
    pub kernel: PathBuf,
    /// The directory that the guest mounts as its root, under the tag `rootfs`, if its root is shared.
    pub root_share: Option<PathBuf>,
    /// Its disks, in the order in which the guest numbers them.
    pub drives: Vec<Drive>,
    /// Its network card.
    pub card: Option<Card>,
}

/// The network card of a VM. The VMM inherits its socket, on which each frame follows its length: four bytes, big-endian.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Card {
    /// The socket.
    pub fd: InheritedFd,
    /// The Ethernet address.
    pub mac: [u8; 6],
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
    /// The directory that is the guest's first root.
    pub(crate) fn boot_share(&self) -> PathBuf {
        self.dir.join(rundir::BOOT_SHARE)
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

    /// An empty jail for a process of this VM.
    pub(crate) fn jail(&self, capabilities: Capabilities) -> Jail {
        Jail::new(&self.dir, capabilities)
    }
}

/// The socket in `socket_dir` for the agent's report. vhost-device-vsock gives this name to a connection that the guest makes.
pub(crate) fn ready_socket(socket_dir: &Path) -> PathBuf {
    socket_dir.join(format!("{}_{READY_PORT}", rundir::AGENT_SOCKET))
}
