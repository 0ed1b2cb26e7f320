//! The device nodes and symlinks in a container's `/dev`.

use std::io;
use std::path::Path;

use msb::overlay::beneath::Name;
use msb::wire::container::{Container, Device, DeviceKind};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::failed::{Failed, at};
use super::options::Options;
use super::place::{self, Root};

/// The devices of every container (config-linux.md, "Default Devices").
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The symlinks of every container.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Makes the devices. The default ones are made if the container has a file system of its own on `/dev`.
///
/// # Errors
/// The device that failed.
pub fn make_all(container: &Container, root: &Root) -> Result<(), Failed> {
    if has_own_dev(container) {
        for (path, major, minor) in DEFAULT {
            let device = Device {
                path: path.to_owned(),
                kind: DeviceKind::Character,
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
            };
            make(&device, root).map_err(at(format!("device {path:?}")))?;
        }
        let dev = place::lookup(&root.dir, Path::new("/dev")).map_err(at("/dev"))?.into_dir().map_err(at("/dev"))?;
        for (target, name) in LINKS {
            match rustix::fs::symlinkat(target, &dev, name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(at(format!("symlink \"/dev/{name}\""))(error)),
            }
        }
    }
    container.devices.iter().try_for_each(|device| make(device, root).map_err(at(format!("device {:?}", device.path))))
}

fn has_own_dev(container: &Container) -> bool {
    let mut on_dev = container.mounts.iter().filter(|mount| Path::new(&mount.target) == Path::new("/dev"));
    on_dev.next_back().is_some_and(|mount| !Options::parse(&mount.options).is_bind && mount.fstype != "bind")
}

/// Makes a node. One that is there already stays.
fn make(device: &Device, root: &Root) -> io::Result<()> {
    let path = Path::new(&device.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = place::mount_point(root, parent, true)?.into_dir()?;
    let name = Name::new(name)?;
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    match rustix::fs::mknodat(&dir, name.as_os_str(), kind, mode, rustix::fs::makedev(device.major, device.minor)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let Some(node) = dir.entry(name)? else { return Err(io::ErrorKind::NotFound.into()) };
    node.set_owner(Some(device.uid), Some(device.gid))?;
    // The umask has applied to the node.
    node.set_mode(mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::wire::container::Mount;

    #[test]
    fn a_dev_of_its_own_is_not_a_bind_mount() {
        let on = |target: &str, fstype: &str, options: &[&str]| Mount {
            target: target.into(),
            fstype: fstype.into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Mount::default()
        };
        let tmpfs = on("/dev", "tmpfs", &["mode=755"]);
        for (mounts, expected) in [
            (vec![tmpfs.clone()], true),
            (vec![on("/dev/", "tmpfs", &[])], true),
            (vec![tmpfs.clone(), on("/dev", "bind", &["rbind"])], false),
            (vec![on("/dev", "none", &["bind"])], false),
            (vec![on("/dev/shm", "tmpfs", &[])], false),
            (vec![], false),
        ] {
            assert_eq!(
                has_own_dev(&Container { mounts: mounts.clone(), ..Container::default() }),
                expected,
                "{mounts:?}"
            );
        }
    }
}
