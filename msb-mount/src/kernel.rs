//! A mount of the kernel's overlayfs in the place of our own file system.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use msb::overlay::user_namespace;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use crate::access::Access;
use crate::config::Config;
use crate::holder::{FSTYPE, source};

/// The longest string that fsconfig(2) takes, in bytes.
const MAX_STRING: usize = 255;

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
    let mut dirs = Vec::new();
    // One by one, since all options as a string have to fit into a page. Linux has that since 6.7.
    for dir in lower {
        dirs.push(Directory::new("lowerdir+", dir, dir.as_os_str().as_bytes().to_owned())?);
    }
    if let Some(upper) = upper.filter(|_| !config.access.is_read_only) {
        dirs.push(Directory::new("upperdir", &upper.dir, escaped(&upper.dir))?);
        dirs.push(Directory::new("workdir", &upper.work, escaped(&upper.work))?);
    }
    let context = fsopen(FSTYPE, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| anyhow!("overlayfs: {error}"))?;
    let configured = configure(&context, config, &dirs);
    configured.map_err(|error| anyhow!("overlayfs: {}", message(context, error)))
}

/// A directory of the mount, as fsconfig(2) takes it.
struct Directory {
    option: &'static str,
    name: Vec<u8>,
    /// What a short name in `name` is of.
    _open: Option<OwnedFd>,
}

impl Directory {
    /// The directory at `path`, which is `name` in this option. If that is too long, the directory is opened, and has a short name as long
    /// as it is open.
    ///
    /// # Errors
    /// The directory that cannot be opened.
    fn new(option: &'static str, path: &Path, name: Vec<u8>) -> anyhow::Result<Self> {
        if name.len() <= MAX_STRING {
            return Ok(Self { option, name, _open: None });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| anyhow!("{path:?}: {error}"))?;
        let name = format!("/proc/self/fd/{}", open.as_raw_fd()).into_bytes();
        Ok(Self { option, name, _open: Some(open) })
    }
}

fn configure(context: &OwnedFd, config: &Config, dirs: &[Directory]) -> Result<(), Errno> {
    fsconfig_set_string(context, "source", source())?;
    for dir in dirs {
        fsconfig_set_string(context, dir.option, OsStr::from_bytes(&dir.name))?;
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
    fn a_name_that_is_too_long_becomes_that_of_an_open_directory() {
        let of = |length: usize| Directory::new("lowerdir+", Path::new("/proc"), vec![b'x'; length]).unwrap();
        assert_eq!(of(MAX_STRING).name.len(), MAX_STRING);
        let long = of(MAX_STRING + 1);
        assert_eq!(std::fs::read_link(OsStr::from_bytes(&long.name)).unwrap(), Path::new("/proc"));
        assert!(Directory::new("lowerdir+", Path::new("/missing"), vec![b'x'; 300]).is_err());
    }

    #[test]
    fn backslashes_are_escaped() {
        assert_eq!(escaped(Path::new(r"/a\b:c,d\")), br"/a\\b:c,d\\");
    }
}
