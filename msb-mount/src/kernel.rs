//! A mount of the kernel's overlayfs in the place of our own file system.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use msb::overlay::user_namespace;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use crate::access::Access;
use crate::config::Config;
use crate::holder::{FSTYPE, source};

/// Mounts overlayfs on the mount point. The caller has locked the layers and the upper.
///
/// # Errors
/// What overlayfs cannot do, with what can; the kernel's own message.
pub(crate) fn mount(config: &Config) -> anyhow::Result<()> {
    if let Some(flag) = config.access.only_of_fuse() {
        bail!("overlayfs cannot do {flag} (leave it out, or use --type fuse)");
    }
    let upper = config.record.upper.as_ref();
    let mut lower: Vec<&Path> = config.lower.iter().map(PathBuf::as_path).collect();
    if config.access.is_read_only {
        lower.splice(0..0, upper.map(|upper| upper.dir.as_path()));
        if lower.len() < 2 {
            bail!("overlayfs does not mount a single layer read-only (use --type fuse)");
        }
    }
    let context = fsopen(FSTYPE, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| anyhow!("overlayfs: {error}"))?;
    let configured = configure(&context, config, &lower);
    configured.map_err(|error| anyhow!("overlayfs: {}", message(context, error)))
}

fn configure(context: &OwnedFd, config: &Config, lower: &[&Path]) -> Result<(), Errno> {
    fsconfig_set_string(context, "source", source())?;
    // One by one, since all options as a string have to fit into a page. Linux has that since 6.7.
    for dir in lower {
        fsconfig_set_string(context, "lowerdir+", *dir)?;
    }
    if let Some(upper) = config.record.upper.as_ref().filter(|_| !config.access.is_read_only) {
        fsconfig_set_string(context, "upperdir", escaped(&upper.dir))?;
        fsconfig_set_string(context, "workdir", escaped(&upper.work))?;
    }
    if user_namespace::is_initial() {
        let redirect = if config.access.can_redirect { "on" } else { "follow" };
        for (name, value) in [("redirect_dir", redirect), ("metacopy", "off"), ("index", "off"), ("xino", "off")] {
            fsconfig_set_string(context, name, value)?;
        }
    } else {
        fsconfig_set_flag(context, "userxattr")?;
    }
    fsconfig_create(context)?;
    let mount = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(config.access))?;
    move_mount(&mount, "", CWD, &config.mountpoint, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn attributes(access: Access) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, access.is_read_only);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, !access.has_devices);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !access.has_set_id);
    flags
}

/// The kernel takes a backslash in these two paths for an escape.
fn escaped(path: &Path) -> Vec<u8> {
    path.as_os_str()
        .as_bytes()
        .iter()
        .flat_map(|&byte| [b'\\', byte].into_iter().skip(usize::from(byte != b'\\')))
        .collect()
}

/// What the kernel says about a failure, else the error.
fn message(context: OwnedFd, error: Errno) -> String {
    let mut text = vec![0; 1024];
    let length = File::from(context).read(&mut text).unwrap_or(0);
    // A letter for the severity precedes it.
    match text.get(2..length) {
        Some(said) => format!("{} ({error})", String::from_utf8_lossy(said).trim_end()),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backslashes_are_escaped() {
        assert_eq!(escaped(Path::new(r"/a\b:c,d\")), br"/a\\b:c,d\\");
    }
}
