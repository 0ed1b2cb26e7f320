//! A bind mount of a file or directory of the host in a jail.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use super::landlock::Rule;
use super::pinned_path::PinnedPath;
use crate::overlay::error::{At, Error};

const CLONE: OpenTreeFlags =
    OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC).union(OpenTreeFlags::AT_RECURSIVE);

/// A bind mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Bind {
    pub source: Source,
    pub target: PathBuf,
    pub writable: bool,
    /// Whether mounts that the host adds later below the source appear in the jail.
    pub follows: bool,
}

/// What a bind mount shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    /// The file at a path.
    Path(PathBuf),
    /// The file at a path, if it is still the same one.
    Pinned(PinnedPath),
    /// A device node.
    Device(PathBuf),
}

/// A directory that any user can enter, whatever the umask is.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    let mut made = PathBuf::new();
    for component in path.components() {
        made.push(component);
        match DirBuilder::new().mode(0o755).create(&made) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => fs::set_permissions(&made, fs::Permissions::from_mode(0o755))?,
        }
    }
    Ok(())
}

impl Bind {
    /// The target, relative to the jail's root.
    pub(super) fn relative_target(&self) -> &Path {
        self.target.strip_prefix("/").unwrap_or(&self.target)
    }

    pub(super) fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::NOSUID;
        flags.set(MountFlags::NODEV, !matches!(self.source, Source::Device(_)));
        flags.set(MountFlags::RDONLY, !self.writable);
        flags
    }

    /// Clones the mounts at the source, detached from the file system.
    pub(super) fn clone_tree(&self) -> Result<OwnedFd, Error> {
        match &self.source {
            Source::Path(path) | Source::Device(path) => clone_tree(path).at(|| format!("{path:?}")),
            Source::Pinned(pinned) => pinned
                .open()
                .and_then(|fd| Ok(rustix::mount::open_tree(fd, "", CLONE | OpenTreeFlags::AT_EMPTY_PATH)?))
                .at(|| format!("volume {:?}", pinned.path())),
        }
    }

    /// Mounts the cloned tree on the target, which is made below the working directory. A user of the jail's own gets a device node of
    /// his own, if this process may make one. Returns what may be done with it.
    pub(super) fn mount(&self, tree: OwnedFd, user: Option<u32>) -> io::Result<Rule> {
        let target = self.relative_target();
        if let Some(parent) = target.parent() {
            make_directory(parent)?;
        }
        let own_node = match (&self.source, user) {
            (Source::Device(device), Some(user)) => make_device(device, target, user)?,
            _ => None,
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode).is_dir() {
            make_directory(target)?;
        } else {
            match File::create_new(target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let tree = own_node.unwrap_or(tree);
        rustix::mount::move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        if self.follows {
            rustix::mount::mount_change(target, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        }
        match self.source {
            Source::Device(_) => Ok(Rule::device(tree)),
            _ => Rule::data(tree, self.writable),
        }
    }
}

fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(CWD, path, CLONE)?)
}

/// Makes a node at `target` for the device, which only `user` may use, and a mount of it, whose flags can be its own. `None` in a user
/// namespace, and in a container without CAP_MKNOD: there the mode and the groups of the host's node decide.
fn make_device(device: &Path, target: &Path, user: u32) -> io::Result<Option<OwnedFd>> {
    let rdev = fs::metadata(device)?.rdev();
    match rustix::fs::mknodat(CWD, target, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, rdev) {
        Err(Errno::PERM) => return Ok(None),
        other => other?,
    }
    std::os::unix::fs::chown(target, Some(user), Some(user))?;
    clone_tree(target).map(Some)
}
