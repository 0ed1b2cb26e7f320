//! The root of a guest, in one of three forms: a shared directory, a disk, or the disks of a block root.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use msb::record::{self, DiskFormat};
use msb::vm::boot::{self, MountStep};
use serde::{Deserialize, Serialize};

use crate::block::BlockRoot;
use crate::disk::DiskRoot;
use crate::inherited_fd::InheritedFd;
use crate::vm::Drive;

/// A guest's root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Root {
    /// A directory of the host, shared under the tag `rootfs`.
    Share(PathBuf),
    /// A disk.
    Disk(DiskRoot),
    /// Disks that the guest's overlayfs merges.
    Block(Box<BlockRoot>),
}

impl Root {
    /// Its form, for the record.
    pub(crate) fn kind(&self) -> record::RootKind {
        match self {
            Self::Share(_) => record::RootKind::Share,
            Self::Disk(_) => record::RootKind::Disk,
            Self::Block(_) => record::RootKind::Block,
        }
    }

    /// The place for what the guest writes, for the record.
    pub(crate) fn scratch(&self) -> Option<record::Scratch> {
        match self {
            Self::Block(block) => Some(block.scratch.in_record()),
            _ => None,
        }
    }

    /// The shared directory.
    pub(crate) fn share(&self) -> Option<PathBuf> {
        match self {
            Self::Share(dir) => Some(dir.clone()),
            _ => None,
        }
    }

    /// How many devices it takes.
    pub(crate) fn device_count(&self) -> usize {
        match self {
            Self::Share(_) | Self::Disk(_) => 1,
            Self::Block(block) => block.disk_count(),
        }
    }

    /// Opens the disks, and makes those that are made for one boot.
    ///
    /// # Errors
    /// A disk that another VM uses, or that cannot be made.
    pub(crate) fn open_drives(&self) -> anyhow::Result<Vec<(Drive, OwnedFd)>> {
        let drive = |file: OwnedFd, format, writable, backing_file| {
            (Drive { fd: InheritedFd::of(&file), format, writable, backing_file }, file)
        };
        Ok(match self {
            Self::Share(_) => Vec::new(),
            Self::Disk(disk) => vec![drive(disk.open_overlay()?, DiskFormat::Qcow2, true, Some(disk.base.clone()))],
            Self::Block(block) => {
                let disks = block.open()?.into_iter();
                disks.map(|disk| drive(disk.file, DiskFormat::Raw, disk.writable, None)).collect()
            }
        })
    }

    /// The mounts with which the agent builds the root.
    pub(crate) fn mount_steps(&self) -> Vec<MountStep> {
        let (source, fstype) = match self {
            Self::Share(_) => ("rootfs", "virtiofs"),
            Self::Disk(_) => ("/dev/vda", "ext4"),
            Self::Block(block) => return block.mount_steps(),
        };
        vec![MountStep {
            source: source.into(),
            target: boot::NEW_ROOT.into(),
            fstype: fstype.into(),
            options: Vec::new(),
            directories: Vec::new(),
        }]
    }
}
