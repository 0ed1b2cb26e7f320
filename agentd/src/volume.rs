//! Volumes: directories and files of the host, and file systems in memory, that are mounted in the root. Those of the host are in a
//! share that is mounted in the initramfs, which the root covers, so they are opened before the root is entered. The host decides which
//! of them are read-only.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use msb::vm::boot::{self, Boot, Volume, VolumeSource};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use crate::cleanup::Cleanup;
use crate::error::Error;
use crate::path;

/// A volume whose source is open, unless it is a tmpfs.
pub struct Opened<'b> {
    volume: &'b Volume,
    source: Option<OwnedFd>,
}

/// Opens the sources of all volumes.
///
/// # Errors
/// The volume that is not there.
pub fn open_all<'b>(boot: &'b Boot) -> Result<Vec<Opened<'b>>, Error> {
    let opened = |volume: &'b Volume| {
        // The flag makes the kernel mount a directory that the host announces as a mount.
        let (number, kind) = match &volume.source {
            VolumeSource::Directory(number) => (number, OFlag::O_DIRECTORY),
            VolumeSource::File(number) => (number, OFlag::empty()),
            VolumeSource::Tmpfs(_) => return Ok(Opened { volume, source: None }),
        };
        let path = Path::new("/").join(boot::VOLUMES_DIR).join(number.to_string());
        let source = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC | kind, Mode::empty());
        Ok(Opened { volume, source: Some(source.map_err(|error| failed(volume, error.into()))?) })
    };
    boot.volumes.iter().map(opened).collect()
}

/// Mounts them in the root, which is `/`, in their order.
///
/// # Errors
/// The volume that cannot be mounted, and why.
pub fn mount_all(opened: &[Opened<'_>], cleanup: &mut Cleanup) -> Result<(), Error> {
    opened.iter().try_for_each(|opened| mount_one(opened, cleanup).map_err(|error| failed(opened.volume, error)))
}

fn failed(volume: &Volume, why: io::Error) -> Error {
    Error::step(format!("mount the volume on {:?}", volume.target), why)
}

fn mount_one(opened: &Opened<'_>, cleanup: &mut Cleanup) -> io::Result<()> {
    let Opened { volume, source } = opened;
    let is_dir = !matches!(volume.source, VolumeSource::File(_));
    let target = mount_point(Path::new("/"), Path::new(&volume.target), is_dir, cleanup)?;
    if let VolumeSource::Tmpfs(options) = &volume.source {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        return Ok(mount(Some("tmpfs"), &target, Some("tmpfs"), flags, Some(options.as_str()))?);
    }
    let Some(source) = source else { return Err(Errno::EBADF.into()) };
    let source = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    if volume.readonly {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &target, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

/// Resolves a target in the root, and creates it if it is missing. What was created in the root's own file system, and not in another
/// volume or below `/dev` or `/run`, is added to `cleanup`.
fn mount_point(root: &Path, target: &Path, is_dir: bool, cleanup: &mut Cleanup) -> io::Result<PathBuf> {
    let target = path::follow(root, target)?;
    if let Err(why) = boot::check_volume_target(&target) {
        return Err(io::Error::other(format!("in the image it is a symlink to {target:?}: {why}")));
    }
    match fs::symlink_metadata(path::below(root, &target)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(there) if there.is_dir() == is_dir => return Ok(target),
        Ok(_) if is_dir => return Err(io::Error::other("the root has a file there, and the volume is a directory")),
        Ok(_) => return Err(io::Error::other("the root has a directory there, and the volume is a file")),
    }
    let parent = target.parent().unwrap_or(Path::new("/"));
    path::make_each(root, if is_dir { &target } else { parent }, cleanup)?;
    if !is_dir {
        let place = path::below(root, &target);
        if path::make(&place, || File::create_new(&place).map(drop))? && path::is_in_file_system_of(root, &place) {
            cleanup.add(&target);
        }
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_created_as_what_the_volume_is() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("var/run")).unwrap();
        fs::write(at("var/file"), "").unwrap();
        std::os::unix::fs::symlink("/var/run", at("run")).unwrap();
        std::os::unix::fs::symlink("/", at("all")).unwrap();
        std::os::unix::fs::symlink("/.msb/x", at("own")).unwrap();
        let mut cleanup = Cleanup::default();
        let mut place = |target: &str, is_dir| mount_point(root.path(), Path::new(target), is_dir, &mut cleanup);
        assert_eq!(place("/run/secrets/key", false).unwrap(), Path::new("/var/run/secrets/key"));
        assert_eq!(place("/run/secrets/key", false).unwrap(), Path::new("/var/run/secrets/key"));
        assert_eq!(place("/run/a/b", true).unwrap(), Path::new("/var/run/a/b"));
        assert!(place("/var", false).unwrap_err().to_string().contains("the volume is a file"));
        assert!(place("/var/file", true).unwrap_err().to_string().contains("the volume is a directory"));
        assert!(place("/var/file/x", true).is_err());
        assert!(place("/all", true).unwrap_err().to_string().contains("symlink to \"/\""));
        assert!(place("/own", true).unwrap_err().to_string().contains("symlink to \"/.msb/x\""));
        assert!(at("var/run/a/b").is_dir() && at("var/run/secrets/key").is_file());
        let made = ["/var/run/a/b", "/var/run/a", "/var/run/secrets/key", "/var/run/secrets"];
        assert_eq!(cleanup.mount_points, made.map(PathBuf::from));
    }
}
