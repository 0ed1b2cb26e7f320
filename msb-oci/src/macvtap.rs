//! macvtap interfaces. The kernel passes the frames of an interface to the process that has opened the character device of its macvtap
//! interface.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, anyhow};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::iproute::ip;

/// Makes the macvtap interface `name` on an interface of this thread's network namespace, with its Ethernet address, and opens its device.
/// `place` is a directory for temporary mounts. The caller has a mount namespace of its own.
///
/// # Errors
/// Those of ip(8), also if the kernel has no macvtap; those of `mount(2)`, and of `mknod(2)`, which fails in a user namespace.
pub(crate) fn make(interface: &str, ethernet: &str, mtu: u32, name: &str, place: &Path) -> anyhow::Result<OwnedFd> {
    ip(&["link", "add", "link", interface, "name", name, "address", ethernet, "type", "macvtap", "mode", "passthru"])?;
    ip(&["link", "set", "dev", name, "mtu", &mtu.to_string(), "up"])?;
    fs::create_dir_all(place)?;
    open_device(name, place).context("device of macvtap (run the engine as root, or use dev.msb.network=tap)")
}

/// Opens the device of a macvtap interface. There is no udev here, so the number comes from sysfs.
fn open_device(name: &str, place: &Path) -> anyhow::Result<OwnedFd> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    // A sysfs shows the interfaces of the network namespace in which it was mounted.
    let number = mounted(place, "sysfs", quiet | MountFlags::NODEV | MountFlags::RDONLY, || {
        let dir = place.join("class/net").join(name).join("macvtap");
        let tap = fs::read_dir(&dir)?.next().ok_or_else(|| anyhow!("{dir:?} is empty"))??;
        Ok(fs::read_to_string(tap.path().join("dev"))?)
    })?;
    let (major, minor) = parse_device(&number).ok_or_else(|| anyhow!("{number:?} is not a device"))?;
    mounted(place, "tmpfs", quiet, || {
        let node = place.join("tap");
        mknodat(CWD, &node, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(major, minor))?;
        Ok(open(&node, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    })
}

/// Runs `work` while a file system is mounted at `place`.
fn mounted<T>(
    place: &Path,
    fstype: &str,
    flags: MountFlags,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    mount("msb-oci", place, fstype, flags, c"").with_context(|| format!("{fstype} on {place:?}"))?;
    let result = work();
    unmount(place, UnmountFlags::DETACH)?;
    result
}

/// The numbers of a device, as sysfs writes them.
fn parse_device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_two_numbers() {
        for (text, expected) in
            [("246:1\n", Some((246, 1))), ("246", None), ("a:1", None), ("1:", None), ("1:2:3", None)]
        {
            assert_eq!(parse_device(text), expected, "{text:?}");
        }
    }
}
